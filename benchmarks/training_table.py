"""Tables of training.py's results, for docs/speed.md."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.floor import (
    ATTENTION,
    ELEMENTWISE,
    OPTIMIZER,
    PRODUCTS,
    Alone,
    floor_around_attention,
    floor_ms,
)
from benchmarks.training_cases import tokens_per_step

RESULTS = Path(__file__).parent / "results"
SPLITS = ((10, 6), (12, 4), (14, 2))

STAGES = {
    "98k": ("Lighthouse", "none"),
    "98k-op": ("Lighthouse", "selective, op"),
    "98k-full": ("Lighthouse", "full"),
    "98k-dense": ("dense", "none"),
    "98k-dense-op": ("dense", "selective, op"),
    "98k-530M": ("Lighthouse, vocabulary 128,256", "none"),
}


PLANNED = ("tokens_per_second", "memory_gib")


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def by_case(report: dict[str, Any]) -> dict[str, Any]:
    return {result["case"]: result for result in report["results"] if "error" not in result}


def speed_table(report: dict[str, Any]) -> str:
    """Speed and memory at 98,304 tokens."""
    lines = ["| layers | checkpointing | tokens/s | GiB |", "| --- | --- | --- | --- |"]
    results = by_case(report)
    for case, (layers, checkpointing) in STAGES.items():
        r = results[case]
        speed, memory = f"{r['tokens_per_second']:,}", f"{r['memory_gib']:.1f}"
        lines.append(f"| {layers} | {checkpointing} | {speed} | {memory} |")
    return "\n".join(lines)


def gains(report: dict[str, Any]) -> str:
    """How much sooner than all-dense training the recipe ends, by its two measured speeds."""
    results = by_case(report)
    lighthouse, dense = (results[case]["tokens_per_second"] for case in ("98k", "98k-dense"))

    def gain(first: int, second: int) -> str:
        times = (first + second) / dense / (first / lighthouse + second / dense)
        return f"{times:.2f}x for {first}k + {second}k"

    return ", ".join(gain(*split) for split in SPLITS)


def step_table(report: dict[str, Any], alone: Alone) -> str:
    """A step of the Lighthouse stage without checkpointing, by kind of kernel, beside its floor."""
    run = by_case(report)["98k"]
    profile, floor = run["profile"][0], floor_ms(run, alone, report["matmul_tflops"])
    kinds, total = profile["by_kind_ms"], profile["span_ms"]
    outside = {"loss, embedding, copies": kinds["copies"] + kinds["other"]}
    rows = [
        ("attention kernels, 30 layers", kinds["attention"], None),
        ("around them, 26 layers", kinds["lighthouse"], None),
        ("all attention", kinds["attention"] + kinds["lighthouse"], floor[ATTENTION]),
        ("matrix products", kinds["matmul"], floor[PRODUCTS]),
        (
            "norms, rotary embedding, SwiGLU, residuals",
            kinds["compiled elementwise"],
            floor[ELEMENTWISE],
        ),
        ("optimizer", kinds["optimizer"], floor[OPTIMIZER]),
        *((name, ms, None) for name, ms in outside.items()),
        ("no kernel running", profile["idle_ms"], None),
        ("step", total, sum(floor.values())),
    ]
    lines = ["| | ms | share | floor, ms |", "| --- | --- | --- | --- |"]
    for name, ms, least in rows:
        shown = f"{least:.0f}" if least else ""
        lines.append(f"| {name} | {ms:.0f} | {ms / total:.0%} | {shown} |")
    return "\n".join(lines)


def attention_ms(run: dict[str, Any]) -> float:
    """What attention took of the first rank's profiled step, with all around it."""
    kinds = run["profile"][0]["by_kind_ms"]
    return sum(kinds.get(kind, 0.0) for kind in ("attention", "lighthouse", "window"))


STEPS = {
    "98k-growing:2k": "dense, 2,048",
    "98k-growing:8k": "dense, 8,192",
    "98k-growing:window": "windows of 8,192, 98,304",
    "98k": "Lighthouse, first and last two layers dense",
    "98k-windows": "Lighthouse, first and last two layers windows of 4,096",
    "98k-all": "Lighthouse",
}


def stage_table(
    results: Iterable[dict[str, Any]], copy_tb_per_s: float, matmul_tflops: float
) -> str:
    """Steps of stages by kind of kernel, beside a floor with their own attention."""
    lines = [
        "| stage | attention, ms | products | elementwise, loss, copies | step | over the floor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in results:
        kinds = run["profile"][0]["by_kind_ms"]
        rest = sum(kinds[kind] for kind in ("compiled elementwise", "other", "copies"))
        ms = step_ms(run)
        floor = floor_around_attention(run, copy_tb_per_s, matmul_tflops)
        over = over_floor(run, ms, copy_tb_per_s, matmul_tflops)
        lines.append(
            f"| {STEPS[run['case']]} | {attention_ms(run):.0f} "
            f"| {kinds['matmul']:.0f}, floor {floor[PRODUCTS]:.0f} "
            f"| {rest:.0f}, floor {floor[ELEMENTWISE]:.0f} | {ms:.0f} | {over:.0%} |"
        )
    return "\n".join(lines)


def step_ms(run: dict[str, Any]) -> float:
    """A step on one GPU."""
    return 1e3 * tokens_per_step(run) / run["tokens_per_second"]


def over_floor(run: dict[str, Any], ms: float, copy_tb_per_s: float, matmul_tflops: float) -> float:
    """A step of so many milliseconds over a floor with its own attention, less one."""
    around = floor_around_attention(run, copy_tb_per_s, matmul_tflops)
    return ms / (attention_ms(run) + sum(around.values())) - 1


RINGS = {
    "196,608; k=3,072; 4 dense layers; selective": ("196k-one", "196k-cp2"),
    "196,608; all layers dense; selective": ("196k-dense-one", "196k-dense-cp2"),
    "524,288; k=8,192; no dense layer; full": ("524k-one", "524k-cp2"),
}


def ring_table(report: dict[str, Any]) -> str:
    """Two GPUs under context parallelism beside one with the same sequence and chunks."""
    lines = [
        "| tokens a sequence | one GPU, tokens/s | two, of each | overhead |",
        "| --- | --- | --- | --- |",
    ]
    results = by_case(report)
    for name, (one, two) in RINGS.items():
        alone, each = (results[case]["tokens_per_second"] for case in (one, two))
        lines.append(f"| {name} | {alone:,} | {each:,} | {alone / each - 1:.1%} |")
    return "\n".join(lines)


def ring_gains(report: dict[str, Any]) -> str:
    """How much faster Lighthouse is than dense on one GPU and on two."""
    results = by_case(report)
    one, two = (
        results[f"196k-{gpus}"]["tokens_per_second"]
        / results[f"196k-dense-{gpus}"]["tokens_per_second"]
        for gpus in ("one", "cp2")
    )
    return f"{one:.2f}x as fast as dense on one GPU, {two:.2f}x on two"


LLAMA_8B = {
    "published": "Lighthouse, first and last two layers dense",
    "lighthouse": "Lighthouse",
    "window": "windows of 8,192",
    "short": "dense, 8,192 tokens",
    "dense": "dense",
}


def llama_table(reports: Sequence[dict[str, Any]], case: str, copy_tb_per_s: float) -> str:
    """The stages of a run over several GPUs; of a stage the last report that has it.

    The floor has the attention of the step itself.
    """
    lines = [
        "| | of each GPU, tokens/s | MFU | NCCL, of it alone | over the floor | GiB "
        "| plan: speed | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage, words in LLAMA_8B.items():
        found = [r for r in reports if f"{case}:{stage}" in by_case(r)]
        if not found:
            continue
        report = found[-1]
        r = by_case(report)[f"{case}:{stage}"]
        speed, memory = (-r["measured_over_planned_percent"][key] for key in PLANNED)
        ms = r["profile"][0]["span_ms"]
        over = over_floor(r, ms, copy_tb_per_s, report["matmul_tflops"])
        lines.append(
            f"| {words} | {r['tokens_per_second']:,} | {r['causal_mfu_percent']:.0f}% "
            f"| {r['communication_percent']:.1f}%, {r['exposed_communication_percent']:.1f}% "
            f"| {over:.0%} | {r['memory_gib']:.1f} | {speed:+.1f}% | {memory:+.1f}% |"
        )
    return "\n".join(lines)


def float8_table(report: dict[str, Any], apart: dict[str, Any]) -> str:
    """Products in float8 beside those in bf16, and with a norm's two gradients apart."""
    rows = [
        (report, "98k", "bf16"),
        (report, "98k-float8-tensorwise", "float8, a scale a tensor"),
        (report, "98k-float8-rowwise", "float8, a scale a row"),
        (apart, "98k-float8-tensorwise", "float8, a scale a tensor, as it is now"),
    ]
    lines = [
        "| products | tokens/s | products, ms | elementwise, ms | GiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for of_run, case, words in rows:
        r = by_case(of_run)[case]
        kinds = r["profile"][0]["by_kind_ms"]
        lines.append(
            f"| {words} | {r['tokens_per_second']:,} | {kinds['matmul']:.0f} "
            f"| {kinds['compiled elementwise']:.0f} | {r['memory_gib']:.1f} |"
        )
    return "\n".join(lines)


def half_speeds(*reports: dict[str, Any]) -> str:
    """One GPU with half of the ring's sequences."""
    results: dict[str, Any] = {}
    for report in reports:
        results = by_case(report) | results
    short, long = (results[case]["tokens_per_second"] for case in ("98k-op", "262k-one"))
    return f"{short:,} tokens/s at 98,304 and {long:,} at 262,144"


LENGTHS = (262144, 524288, 786432, 851968, 917504, 1048576, 1572864)
LENGTH_FLAGS = {"": "", "-offload": ", offload", "-offload-ffn": ", offload and chunks"}


def length_table(*reports: dict[str, Any]) -> str:
    """Long sequences on one GPU."""
    lines = ["| tokens a sequence | GPU | tokens/s | GiB |", "| --- | --- | --- | --- |"]
    for length in LENGTHS:
        for report in reports:
            for flags, where in LENGTH_FLAGS.items():
                r = by_case(report).get(f"{length}-L4{flags}")
                if r:
                    device = report["device"].removeprefix("NVIDIA ").split()[0] + where
                    speed, memory = f"{r['tokens_per_second']:,}", f"{r['memory_gib']:.1f}"
                    lines.append(f"| {length:,} | {device} | {speed} | {memory} |")
    return "\n".join(lines)
