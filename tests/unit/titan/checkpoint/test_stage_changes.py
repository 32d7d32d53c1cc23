"""What may change of the stages of a run that goes on."""

import copy
from typing import Any

import pytest
from torchtitan.config import JobConfig

from lighthouse.titan.checkpoint.changes import changes
from lighthouse.titan.checkpoint.record import RunRecord
from tests.unit.titan.checkpoint.test_changes import STEP, changes_of


@pytest.fixture
def job() -> JobConfig:
    job = JobConfig()
    job.training.steps = job.lr_scheduler.total_steps = 20
    job.lr_scheduler.warmup_steps = 2
    job.lighthouse.enable = True
    return job


def test_a_lighthouse_stage_to_come_may_have_other_parameters(job: JobConfig) -> None:
    tables: list[dict[str, Any]] = [
        {"steps": 15, "attention": "dense"},
        {"steps": 5, "attention": "lighthouse"},
    ]
    job.stages = tables
    now = copy.deepcopy(job)
    now.lighthouse.topk, now.lighthouse.scorer = 128, "dilated"
    found = changes_of(job, now)
    assert {change.key for change in found} == {"lighthouse.topk", "lighthouse.scorer"}
    assert not any(change.needs_a_word for change in found)


def test_a_key_of_a_stage_behind_that_says_what_held_anyway(job: JobConfig) -> None:
    job.stages = [
        {"steps": 5, "attention": "dense"},
        {"steps": 15, "attention": "lighthouse"},
    ]
    now = copy.deepcopy(job)
    length = job.training.seq_len
    now.stages[0] |= {"lr_factor": 1.0, "warmup_steps": 0, "seq_len": length}
    now.stages[1]["topk"] = job.lighthouse.topk
    assert not any(change.needs_a_word for change in changes_of(job, now))
    now.stages[0]["lr_factor"] = 0.5
    assert any(change.needs_a_word for change in changes_of(job, now))


@pytest.mark.parametrize(
    ("was", "now", "refused"),
    [
        # Cut or joined, stages are the same steps.
        ([(15, {})], [(4, {}), (11, {})], None),
        ([(4, {}), (11, {})], [(5, {}), (10, {})], None),
        ([(5, {})], [(5, {}), (9, {"warmup_steps": 1})], None),
        ([(15, {})], [(5, {}), (10, {"lr_factor": 0.5})], "stages.1.steps"),
        ([(15, {})], [(STEP, {}), (9, {"lr_factor": 0.5})], None),
        ([(5, {}), (9, {})], [(5, {}), (9, {"warmup_steps": 3})], "stages.2.warmup_steps"),
        # Without a list there is one stage.
        ([], [(15, {})], None),
        ([], [(15, {"lr_factor": 0.5})], "stages.1.lr_factor"),
        ([], [(5, {}), (10, {"lr_factor": 0.5})], "stages.2.lr_factor"),
        ([], [(STEP, {}), (10, {"lr_factor": 0.5})], None),
        ([(15, {"warmup_steps": 3})], [], "stages.1.warmup_steps"),
    ],
)
def test_stages_are_judged_by_the_steps_that_were_taken(
    job: JobConfig, was: list[Any], now: list[Any], refused: str | None
) -> None:
    def with_stages(tables: list[Any]) -> JobConfig:
        found = copy.deepcopy(job)
        found.lighthouse.enable = False
        found.stages = [{"steps": n, "attention": "dense", **more} for n, more in tables]
        return found

    found = [c for c in changes_of(with_stages(was), with_stages(now)) if c.needs_a_word]
    assert [change.key for change in found] == ([refused] if refused else [])
    assert all(change.name in ("lr_scheduler", "training") for change in found)


def test_where_the_decay_begins_is_of_steps_taken_once_it_has(job: JobConfig) -> None:
    job.lr_scheduler.total_steps = None
    job.lr_scheduler.decay_ratio = 0.5
    job.stages = [{"steps": 8, "attention": "dense"}, {"steps": 8, "attention": "lighthouse"}]
    job.training.steps = 16
    now = copy.deepcopy(job)
    now.lr_scheduler.decay_ratio = 0.25

    def refused(step: int) -> list[str]:
        found = changes(RunRecord.of(job, 1), RunRecord.of(now, 1), step, own=True)
        return [change.key for change in found if change.needs_a_word]

    assert refused(STEP) == ["lr_scheduler.decay_ratio"]
    assert refused(4) == []
    # The same decay of more stages, which has not begun.
    now.stages.append({"steps": 16, "attention": "dense"})
    now.training.steps = 32
    assert refused(4) == []
