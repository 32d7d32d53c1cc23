"""The cases of the measurement of training, and what is made of a step and its trace."""

from pathlib import Path

import pytest

from benchmarks.training import arguments, measured
from benchmarks.training_cases import Case, cases, named, sizes
from benchmarks.training_plan import expectations, planned
from benchmarks.training_trace import summarise
from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.cost.rates import load_rates
from lighthouse.titan.plan.job import machine_of, parse
from tests.support.tiers import tiers


@pytest.mark.parametrize(
    "name",
    tiers((name for name, case in cases().items() if case.stages), "98k-growing", "8B-262k-cp2"),
)
def test_stages_are_a_job_on_gpus(name: str) -> None:
    case = cases()[name]
    seconds, lines = expectations(name, case, load_rates("h100"))
    assert len(lines) == len(case.stages)
    assert seconds > 10 * len(lines)


A_STAGE_ALONE = "8B-131k-cp2:short"
"""Which has a length of its own, so that the run's is for none."""


@pytest.mark.parametrize(
    "word",
    tiers(
        [*cases(), A_STAGE_ALONE],
        *("98k", "98k-growing", "524k-cp4", "8B-131k-cp2-float8", "1966080-L4-offload-ffn"),
        A_STAGE_ALONE,
    ),
)
def test_no_case_is_refused(word: str, tmp_path: Path) -> None:
    _, case = named(word)
    job_config = parse(arguments(case, tmp_path), machine_of("h100", case.gpus))
    ends = sum(table["steps"] for table in case.tables()) or case.steps
    assert job_config.training.steps == ends


def test_stages_of_a_case_can_be_chosen() -> None:
    name, case = named("8B-131k-cp4:dense,published")
    assert name == "8B-131k-cp4"
    assert [*case.stages] == ["dense", "published"]
    assert named("98k")[1].stages == {}
    for word, there in (("98k:dense", "none"), ("8B-131k-cp4:sparse", "published, lighthouse")):
        with pytest.raises(ValueError, match=f"the case has these: {there}"):
            named(word)
    with pytest.raises(ValueError, match="there are 98k"):
        named("9k")


def test_layers_of_a_stage_are_those_of_its_table() -> None:
    case = named("8B-131k-cp4")[1]
    run = {"gpus": 4, "flags": case.flags}
    tables = dict(zip(case.stages, case.tables(), strict=True))
    model, layout, work = sizes(run | {"stage_table": tables["published"]})
    assert (model.layers, model.vocab_size, layout.cp, layout.fsdp) == (32, 128256, 4, 4)
    assert [i for i, layer in enumerate(work.attention) if layer is None] == [0, 1, 30, 31]
    assert isinstance(work.attention[2], LighthouseConfig)
    assert work.attention[2].selection == "published"
    assert set(sizes(run | {"stage_table": tables["window"]})[2].attention) == {WindowConfig(8192)}
    short = sizes(run | {"stage_table": tables["short"]})[2]
    assert (short.seq_len, short.local_batch, set(short.attention)) == (8192, 16, {None})


def test_products_of_causal_attention_count_once() -> None:
    case = named("8B-131k-cp4:dense")[1]
    run = {"gpus": 4, "flags": case.flags, "stage_table": case.tables()[0]}
    measured = {"tokens_per_second": 2000, "memory_gib": 60.0}
    found = planned(run | measured, load_rates("h100"))
    # Two products of N * N / 2 pairs forward, four backward, each 2 FLOPs.
    attention = 6 * 2 * 32 * 4096 * 131072 / 2
    assert found["causal_flops_per_token"] == pytest.approx(6 * 7.5e9 + attention, rel=2e-3)
    mfu = 2000 * found["causal_flops_per_token"] / 989e12
    assert found["causal_mfu_percent"] == pytest.approx(100 * mfu, abs=0.05)
    off = found["measured_over_planned_percent"]["tokens_per_second"]
    speed = found["planned"]["tokens_per_second"]
    assert off == pytest.approx(100 * (2000 / speed - 1), abs=0.1)


def test_lines_of_the_log_count_that_are_of_no_warmup_and_no_trace() -> None:
    """The first of a stage, the one before the traced step, and the traced step have lines too."""
    speeds = {21: 1, 24: 2, 27: 50, 30: 40, 32: 60, 33: 3}
    lines = [
        {
            "step": step,
            "loss": 1.0,
            "tokens_per_second": speed,
            "memory/max_reserved(GiB)": speed,
            "memory/max_active(GiB)": speed,
            "time_metrics/data_loading(%)": 0.5,
        }
        for step, speed in speeds.items()
    ]
    case = Case(1, "", warmup=3, log_every=3)
    found = measured({"case": "a"}, case, lines, begin=20, end=33, profile=[])
    assert found["case"] == "a"
    assert found["tokens_per_second"] == 50 and found["slowest_and_fastest"] == [40, 60]
    assert found["memory_gib"] == 60


def test_a_traced_step_alone_behind_the_warmup_counts_by_its_kernels() -> None:
    """Its line of the log has the time in it that the trace took to write."""
    name, case = named("8B-524k-cp4:dense")
    (table,) = case.tables()
    assert (table["steps"], case.warmup) == (2, 1)
    line = {
        "loss": 1.0,
        "tokens_per_second": 3,
        "mfu(%)": 0.1,
        "memory/max_reserved(GiB)": 90,
        "memory/max_active(GiB)": 80,
        "time_metrics/data_loading(%)": 0.5,
    }
    lines = [line | {"step": step} for step in (5, 6)]
    what = {"case": name, "gpus": 4, "flags": case.flags, "stage_table": table}
    ranks = [
        {"span_ms": ms, "communication_ms": 8.0, "exposed_communication_ms": 1.0}
        for ms in (100000, 131072)
    ]
    found = measured(what, case, lines, begin=4, end=6, profile=ranks)
    assert found["tokens_per_second"] == 1000
    assert found["memory_gib"] == 90 and "mfu_percent" not in found
    assert "tokens_per_second" not in measured(what, case, lines[:1], 4, 6, profile=[])


def test_a_step_is_split_by_what_runs_at_a_time() -> None:
    """Communication beside a product is not exposed, nor counted twice where two overlap."""
    trace = {
        "traceEvents": [
            kernel("nvjet_gemm", 0, 40),
            kernel("ncclDevKernel_AllGather_RING_LL", 20, 40),
            kernel("ncclDevKernel_SendRecv", 50, 20),
            kernel("Memcpy DtoD", 90, 10, "gpu_memcpy"),
            {"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 1e6},
        ]
    }
    found = summarise(trace)
    assert found["span_ms"] == 100
    assert found["communication_ms"] == 50
    assert found["exposed_communication_ms"] == 30
    assert found["idle_ms"] == 20
    assert found["not_computing_ms"] == 50
    assert found["by_kind_ms"] == {"matmul": 40, "communication": 60, "copies": 10}


def kernel(name: str, start: float, ms: float, kind: str = "kernel") -> dict[str, object]:
    return {"cat": kind, "name": name, "ts": 1000 * start, "dur": 1000 * ms}
