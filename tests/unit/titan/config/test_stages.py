"""The stages of a run: by hand, and against a list with the attention of each step."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchtitan.config import JobConfig

from lighthouse.titan.config.stages import Stage, Stages

SEQ_LEN = 512


def job(steps: int, enable: bool = True, dense_from_step: int | None = None) -> JobConfig:
    config = JobConfig()
    config.training.steps, config.training.seq_len = steps, SEQ_LEN
    config.lighthouse.enable, config.lighthouse.dense_from_step = enable, dense_from_step
    return config


def test_the_two_stages_of_the_recipe() -> None:
    stages = Stages.of(job(10, dense_from_step=7))
    lighthouse = Stage(1, "lighthouse", 1, 6, SEQ_LEN, "causal")
    dense = Stage(2, "dense", 7, 10, SEQ_LEN, None)
    assert list(stages) == [lighthouse, dense]
    assert [(stage.steps, stage.dense) for stage in stages] == [(6, False), (4, True)]
    assert [stages.at(step) for step in (1, 6, 7, 10)] == [lighthouse, lighthouse, dense, dense]
    assert stages.left_after(0) == {lighthouse: 6, dense: 4}
    assert stages.left_after(4) == {lighthouse: 2, dense: 4}
    assert stages.left_after(8) == {lighthouse: 0, dense: 2}
    assert stages.left_after(10) == {lighthouse: 0, dense: 0}
    assert stages.end_dense


@pytest.mark.parametrize(
    ("enable", "dense_from_step", "attention"),
    [
        (False, None, "dense"),
        (False, 4, "dense"),
        (True, None, "lighthouse"),
        (True, 1, "dense"),
        (True, 11, "lighthouse"),
        (True, 99, "lighthouse"),
    ],
)
def test_a_run_of_one_stage(enable: bool, dense_from_step: int | None, attention: str) -> None:
    (stage,) = stages = Stages.of(job(10, enable, dense_from_step))
    assert (stage.number, stage.attention, stage.first, stage.last) == (1, attention, 1, 10)
    assert stage.selection == ("causal" if attention == "lighthouse" else None)
    assert stages.end_dense == (attention == "dense")


def test_beyond_the_last_step_the_last_stage_goes_on() -> None:
    stages = Stages.of(job(10, dense_from_step=7))
    assert stages.at(11) == stages.at(10**6) == stages.at(10)
    assert sum(stages.left_after(10**6).values()) == 0


def test_a_switch_at_the_last_step() -> None:
    assert [stage.steps for stage in Stages.of(job(10, dense_from_step=10))] == [9, 1]


def test_the_selection_is_the_jobs() -> None:
    config = job(10, dense_from_step=7)
    config.lighthouse.selection = "published"
    assert [stage.selection for stage in Stages.of(config)] == ["published", None]


@given(
    steps=st.integers(1, 40),
    enable=st.booleans(),
    dense_from_step=st.none() | st.integers(1, 50),
    data=st.data(),
)
def test_as_a_list_of_steps(
    steps: int, enable: bool, dense_from_step: int | None, data: st.DataObject
) -> None:
    def is_dense(step: int) -> bool:
        return not enable or (dense_from_step is not None and step >= dense_from_step)

    naive = ["dense" if is_dense(step) else "lighthouse" for step in range(1, steps + 1)]
    stages = Stages.of(job(steps, enable, dense_from_step))
    assert [stages.at(step).attention for step in range(1, steps + 1)] == naive
    assert [stage.attention for stage in stages for _ in range(stage.steps)] == naive
    assert [stage.number for stage in stages] == list(range(1, len(set(naive)) + 1))
    assert stages.end_dense == (naive[-1] == "dense")
    done = data.draw(st.integers(0, steps + 5))
    left = {stage.attention: n for stage, n in stages.left_after(done).items()}
    assert left == {attention: naive[done:].count(attention) for attention in set(naive)}
    assert Stages.from_record(json.loads(json.dumps(stages.record()))) == stages


def listed() -> JobConfig:
    config = job(9)
    config.lighthouse.topk, config.lighthouse.stratum = 16, 8
    config.stages = [
        {"steps": 2, "attention": "dense", "seq_len": 1024},
        {"steps": 4, "attention": "lighthouse", "dense_layers": [1], "topk": 8},
        {"steps": 1, "attention": "lighthouse", "selection": "published", "seq_len": 256},
        {"steps": 2, "attention": "dense"},
    ]
    return config


def test_stages_that_are_listed() -> None:
    config = listed()
    stages = Stages.of(config)
    assert [(s.number, s.first, s.last, s.seq_len, s.selection) for s in stages] == [
        (1, 1, 2, 1024, None),
        (2, 3, 6, SEQ_LEN, "causal"),
        (3, 7, 7, 256, "published"),
        (4, 8, 9, SEQ_LEN, None),
    ]
    assert [stages.at(step).number for step in range(1, 11)] == [1, 1, 2, 2, 2, 2, 3, 4, 4, 4]
    assert (stages.listed, stages.longest, stages.end_dense) == (True, 1024, True)
    assert list(stages.left_after(4).values()) == [0, 2, 1, 2]
    assert [stage.job(config).training.seq_len for stage in stages] == [1024, 512, 256, 512]
    topks = [[c and c.topk for c in stage.layers(config, 3)] for stage in stages]
    assert topks == [[None] * 3, [8, None, 8], [16] * 3, [None] * 3]


def test_a_record_of_listed_stages_is_read_again() -> None:
    stages = Stages.of(listed())
    again = Stages.from_record(json.loads(json.dumps(stages.record())))
    assert again == stages and again.listed
    assert not Stages.of(job(9)).listed
