"""Tables of training.py's results, for docs/speed.md."""

import json
from pathlib import Path
from typing import Any

from lighthouse.titan.llama3.flavors import BYTE_VOCAB_SIZE

RESULTS = Path(__file__).parent / "results"
SPLITS = ((10, 6), (12, 4), (14, 2))
TOKENS, DENSE_LAYERS, LIGHTHOUSE_LAYERS = 98304, 4, 26
# Weights of 530M_byte that multiply each token.
MATRICES = 30 * (4 * 1024 * 1024 + 3 * 1024 * 1536) + BYTE_VOCAB_SIZE * 1024

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


def step_table(report: dict[str, Any], attention: dict[str, Any]) -> str:
    """A step of the Lighthouse stage without checkpointing, by kind of kernel, beside its floor.

    The floor: the model's products at the measured rate, and the attention layers by themselves.
    """
    profile = by_case(report)["98k"]["profile"][0]
    kinds = profile["by_kind_ms"]
    layer = next(
        r
        for r in attention["results"]
        if (r["seq_len"], r["topk"], r["pooling_factor"], r["scorer"]) == (TOKENS, 1536, 4, "norm")
    )
    products = 6 * MATRICES * TOKENS / report["matmul_tflops"] / 1e9
    dense = DENSE_LAYERS * layer["dense_ms"][1]
    lighthouse = LIGHTHOUSE_LAYERS * layer["lighthouse_ms"][1]
    rest = kinds["optimizer"] + kinds["copies"] + kinds["other"]
    total = profile["span_ms"]
    rows = [
        ("attention kernels, 30 layers", kinds["attention"], None),
        ("around them, 26 layers", kinds["lighthouse"], None),
        ("all attention", kinds["attention"] + kinds["lighthouse"], dense + lighthouse),
        ("matrix products", kinds["matmul"], products),
        ("norms, rotary embedding, SwiGLU, residuals", kinds["compiled elementwise"], None),
        ("optimizer, loss, embedding, copies", rest, None),
        ("no kernel running", profile["idle_ms"], None),
        ("step", total, dense + lighthouse + products),
    ]
    lines = ["| | ms | share | floor, ms |", "| --- | --- | --- | --- |"]
    for name, ms, floor in rows:
        shown = f"{floor:.0f}" if floor else ""
        lines.append(f"| {name} | {ms:.0f} | {ms / total:.0%} | {shown} |")
    return "\n".join(lines)


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


def llama_table(report: dict[str, Any], case: str) -> str:
    """The stages of an 8B, and what others publish of models of its size at its length."""
    lines = [
        "| | of each GPU, tokens/s | MFU | GiB | plan: speed | memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    results = by_case(report)
    for stage, words in LLAMA_8B.items():
        if (r := results.get(f"{case}:{stage}")) is None:
            continue
        speed, memory = (-r["measured_over_planned_percent"][key] for key in PLANNED)
        lines.append(
            f"| {words} | {r['tokens_per_second']:,} | {r['causal_mfu_percent']:.0f}% "
            f"| {r['memory_gib']:.1f} | {speed:+.1f}% | {memory:+.1f}% |"
        )
    return "\n".join(lines)


def llama_gain(report: dict[str, Any], case: str) -> str:
    """Of the first stage over the dense one, and what is not hidden of the communication."""
    results = by_case(report)
    sparse, dense = (results[f"{case}:{stage}"] for stage in ("published", "dense"))
    hidden = f"{sparse['communication_percent']:.1f}% of a step, and "
    hidden += f"{sparse['exposed_communication_percent']:.1f}% without computation beside it"
    gain = sparse["tokens_per_second"] / dense["tokens_per_second"]
    return f"{gain:.2f} times as fast as dense; NCCL runs in\n{hidden}"


def half_speeds(*reports: dict[str, Any]) -> str:
    """One GPU with half of the ring's sequences."""
    results: dict[str, Any] = {}
    for report in reports:
        results = by_case(report) | results
    short, long = (results[case]["tokens_per_second"] for case in ("98k-op", "262k-one"))
    return f"{short:,} tokens/s at 98,304 and {long:,} at 262,144"


LENGTHS = (262144, 524288, 786432, 851968, 917504, 1048576)


def length_table(*reports: dict[str, Any]) -> str:
    """Long sequences on one GPU."""
    lines = ["| tokens a sequence | GPU | tokens/s | GiB |", "| --- | --- | --- | --- |"]
    for length in LENGTHS:
        for report in reports:
            r = by_case(report).get(f"{length}-L4")
            if r:
                device = report["device"].removeprefix("NVIDIA ").split()[0]
                speed, memory = f"{r['tokens_per_second']:,}", f"{r['memory_gib']:.1f}"
                lines.append(f"| {length:,} | {device} | {speed} | {memory} |")
    return "\n".join(lines)
