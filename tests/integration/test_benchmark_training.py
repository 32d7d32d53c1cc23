"""The measurement of training steps runs the trainer, stage by stage."""

import sys

import pytest

from benchmarks import training
from benchmarks.training_cases import Case
from benchmarks.training_plan import planned
from lighthouse.cost.rates import load_rates
from tests.support.processes import python

# A small model: a CPU may compute bfloat16 in software, slowly.
TINY = (
    "--model.flavor tiny_byte --model.args.n_layers 2 --model.args.dim 64 "
    "--training.seq_len 512 --lighthouse.topk 32 --lighthouse.stratum 4 "
    "--lighthouse.dense_layers --compile.no-enable "
    "--activation_checkpoint.mode full --parallelism.context_parallel_degree 2"
)
STAGES = {
    "window": {"attention": "window", "window": 100},
    "lighthouse": {"attention": "lighthouse", "window_layers": [0], "window": 100},
    "short": {"attention": "dense", "seq_len": 256, "local_batch_size": 2, "steps": 3},
}


def test_each_stage_of_a_run_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a CPU nothing is traced that summarise knows.
    monkeypatch.setattr(training, "summarise", lambda trace: rank_of(len(trace["traceEvents"]) > 0))
    case = Case(2, TINY, steps=4, warmup=1, stages=STAGES)
    results = training.run("tiny", case)
    assert [result["case"] for result in results] == [f"tiny:{name}" for name in STAGES]
    for result, steps in zip(results, (4, 4, 3), strict=True):
        assert "error" not in result
        assert len(result["losses"]) == steps
        slowest, fastest = result["slowest_and_fastest"]
        assert 0 < slowest <= result["tokens_per_second"] <= fastest
        assert len(result["profile"]) == 2
        assert result["communication_percent"] == 10.0
        assert planned(result, load_rates("h100"))["planned"]["fits"]


@pytest.fixture(autouse=True)
def start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", python())


def rank_of(traced: bool) -> dict[str, float]:
    assert traced
    return {"span_ms": 10.0, "communication_ms": 1.0, "exposed_communication_ms": 0.5}


@pytest.mark.thorough
def test_what_was_measured_before_a_failure_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "summarise", lambda trace: rank_of(True))
    fails = "--experimental.custom_import tests.support.fail_at_length"
    case = Case(2, f"{TINY} {fails}", steps=4, warmup=1, stages=STAGES)
    *_, before, last = training.run("tiny", case)
    assert before["case"] == "tiny:lighthouse"
    assert before["tokens_per_second"] > 0
    assert last["case"] == "tiny:short"
    assert last["error"].endswith("RuntimeError: 128 tokens are too many")
    assert "tokens_per_second" not in last
    assert "measured_over_planned_percent" not in planned(last, load_rates("h100"))


def test_a_case_is_stopped_when_its_time_is_up() -> None:
    (result,) = training.run("tiny", Case(1, TINY, stages=STAGES), left=0.1)
    assert result["error"] == "stopped after 0 seconds"
