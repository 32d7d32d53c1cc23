"""Latency and memory of one attention layer: Lighthouse beside dense attention, on one GPU.

    python benchmarks/attention.py [--cases bars|lengths|shapes|short|all] [--out FOLDER]

Every case is first checked against the reference. Times are medians of replayed CUDA graphs, with
the L2 cache flushed in between, so they are what the GPU needs; ``eager_ms`` adds Python's share.
All of a run's figures are from one process on one device. Writes ``attention.json`` and a plot.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.ceilings import copy_rate, matmul_rate
from benchmarks.provenance import gpu
from lighthouse import LighthouseConfig, lighthouse_attention
from lighthouse.documents import first_tokens, row_starts
from lighthouse.ops import Implementation, implementation
from lighthouse.ops.triton.geometry import geometry_of
from lighthouse.pyramid import Selection
from lighthouse.scorers import level0_scores, level1_maxima

Inputs = tuple[Tensor, ...]

# (N, L, p, k) of the published comparison, and of the million-token run.
BARS = [
    (98304, 3, 4, 1536),
    (98304, 3, 4, 4096),
    (98304, 3, 2, 1536),
    (131072, 3, 4, 2048),
    (262144, 3, 4, 4096),
    (524288, 3, 4, 8192),
    (1048576, 4, 4, 4096),
]
LENGTHS = [(n, 3, 4, n // 64) for n in (8192, 16384, 32768, 65536, 131072, 262144)]
DENSE_UP_TO = 524288  # a longer dense call takes the whole benchmark's time


def cudnn_first(q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool = False) -> Tensor:
    """Causal attention with the backends in torchtitan's order."""
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=enable_gqa)


def make_inputs(
    seq_len: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> Inputs:
    """Random q, k, v in the trainer's memory order, (B, N, H, D)."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(h: int) -> Tensor:
        x = torch.randn(1, seq_len, h, head_dim, device="cuda", generator=generator)
        return x.to(dtype).transpose(1, 2).requires_grad_()

    return draw(heads), draw(kv_heads), draw(kv_heads)


def backward_of(call: Callable[..., Tensor], inputs: Inputs, grad: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(call(*inputs), inputs, grad)


def without_grad(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return call(*args)

    return run


def median_ms(call: Callable[[], Any], graph: bool = True, budget_ms: float = 400) -> float:
    """Median time of ``call``; as many runs as fit the budget, at least three."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
        call()
    stream.synchronize()
    replay = call
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            call()
        replay = captured.replay
    flush = torch.empty(128 * 2**20, dtype=torch.int8, device="cuda")
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget_ms and len(times) < 50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def floor_ms(inputs: Inputs, config: LighthouseConfig, tb_per_s: float, backward: bool) -> float:
    """Time to move each byte once around the inner attention.

    Forward: q, k, v read, the refined windows read again, the sub-sequence written, its output
    read, the output written. Backward: the output's gradient read, its rows written, the gradients
    of the sub-sequence read, those of q, k, v written.
    """
    q = inputs[0]
    seq_len = q.shape[2]
    row_bytes = sum(x.shape[1] * x.shape[3] * x.element_size() for x in inputs)
    out_row_bytes = q.shape[1] * q.shape[3] * q.element_size()
    rows = config.gathered_len(seq_len)
    again = config.topk * sum(config.pooling_factor**lv for lv in range(1, config.num_levels))
    total = (seq_len + again + rows) * row_bytes + (seq_len + rows) * out_row_bytes
    if backward:
        total += (seq_len + rows) * (out_row_bytes + row_bytes)
    return total / tb_per_s / 1e9


def check(config: LighthouseConfig, inputs: Inputs) -> None:
    """Kernels against the reference, on one head: selection, moved rows, gradients.

    The error against a float64 run may be at most twice that of the reference in the inputs' dtype.
    """
    q, k, v = (x[:, :1].detach().requires_grad_() for x in inputs)
    triton, reference = (
        implementation(name, q.device, q.dtype) for name in ("triton", "reference")
    )
    _, maxima = triton.summarize((q, k, v), config, scored=True)
    assert maxima is not None
    selection, wanted = (ops.select(*maxima, config) for ops in (triton, reference))
    if not (
        torch.equal(selection.index, wanted.index) and torch.equal(selection.slot, wanted.slot)
    ):
        raise AssertionError(f"{config}: selection differs from the reference")
    grad = torch.randn_like(q)

    def run(ops: Implementation, dtype: torch.dtype) -> list[Tensor]:
        x, y, z = (t.detach().to(dtype).requires_grad_() for t in (q, k, v))
        coarsest, _ = ops.summarize((x, y, z), config, scored=False)
        rows = ops.gather((x, y, z), coarsest, selection, config)
        out = ops.scatter(sum(rows), selection, x, config)
        gradients = torch.autograd.grad(out, (x, y, z), grad.to(dtype))
        return [*(r.detach() for r in rows), out.detach(), *gradients]

    names = [
        *(f"sub-sequence of {x}" for x in "qkv"),
        "output",
        *(f"gradient of {x}" for x in "qkv"),
    ]
    runs = (run(triton, q.dtype), run(reference, q.dtype), run(reference, torch.float64))
    for name, got, rounded, want in zip(names, *runs, strict=True):
        error, allowed = ((x.double() - want).norm() / want.norm() for x in (got, rounded))
        if not error <= 2 * allowed + 1e-7:
            raise AssertionError(f"{config}: {name} is off by {error:.2e}, reference {allowed:.2e}")


def stage_times(
    inputs: Inputs, config: LighthouseConfig, starts_BM: Tensor | None = None
) -> dict[str, float]:
    """Each step on its own, forward and, where it has one, backward; with documents if told."""
    q, k, v = (x.detach() for x in inputs)
    qkv = q, k, v
    ops = implementation("triton", q.device, q.dtype)
    summarize = partial(ops.summarize, qkv, config, scored=config.scorer == "norm")
    coarsest, maxima = summarize()
    times = {"summarize": median_ms(summarize)}
    if maxima is None:
        times["scores"] = median_ms(without_grad(level0_scores, *qkv, config), graph=False)
        query_scores, key_scores = level0_scores(*qkv, config)
        maxima = level1_maxima(query_scores, config), level1_maxima(key_scores, config)
    select: Callable[[], Selection] = partial(ops.select, *maxima, config)
    if starts_BM is not None:
        seq_len = q.shape[2]
        first = first_tokens(starts_BM, seq_len, config)
        times["first tokens"] = median_ms(lambda: first_tokens(starts_BM, seq_len, config))
        select = partial(ops.select, *maxima, config, first)
    selection = select()
    times["select"] = median_ms(select)
    if starts_BM is not None:
        cut = partial(row_starts, selection, starts_BM, seq_len, config)
        times["row starts"] = median_ms(cut)
    gather = partial(ops.gather, qkv, coarsest, selection, config)
    times["gather"] = median_ms(gather)
    rows = gather()
    out = cudnn_first(*rows, enable_gqa=True)
    times["scatter"] = median_ms(lambda: ops.scatter(out, selection, q, config))
    grad = torch.randn_like(q)
    geometry = geometry_of(config)
    operators = torch.ops.lighthouse
    times["scatter backward"] = median_ms(
        lambda: operators.scatter_backward(grad, selection.index, selection.first_token, geometry)
    )
    of_tokens = selection.slot, q.shape[2], geometry, [True] * 3
    times["gather backward"] = median_ms(lambda: operators.gather_backward(list(rows), *of_tokens))
    return times


def extra_memory_gib(call: Callable[[], Any], inputs: Inputs) -> float:
    """Peak over the inputs, q first, the output, its gradient and theirs."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    kept = inputs[0].nbytes + sum(x.nbytes for x in inputs)
    return (peak - kept) / 2**30


def measure(
    config: LighthouseConfig,
    seq_len: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    tb_per_s: float,
    dense: bool,
) -> dict[str, Any]:
    inputs = make_inputs(seq_len, heads, kv_heads, head_dim, dtype)
    check(config, inputs)
    torch.cuda.empty_cache()
    grad = torch.randn_like(inputs[0])
    graph = config.scorer == "norm"

    def lighthouse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return lighthouse_attention(q, k, v, config=config, attention=cudnn_first)

    def dense_call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return cudnn_first(q, k, v, enable_gqa=heads != kv_heads)

    def both(call: Callable[..., Tensor], x: Inputs, dy: Tensor, graphs: bool) -> list[float]:
        detached = tuple(t.detach() for t in x)
        return [
            median_ms(without_grad(call, *detached), graphs),
            median_ms(backward_of(call, x, dy), graphs),
        ]

    result: dict[str, Any] = {
        "seq_len": seq_len,
        "num_levels": config.num_levels,
        "pooling_factor": config.pooling_factor,
        "topk": config.topk,
        "scorer": config.scorer,
        "selection": config.selection,
        "gathered_len": config.gathered_len(seq_len),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "dtype": str(dtype).removeprefix("torch."),
    }
    result["lighthouse_ms"] = both(lighthouse, inputs, grad, graph)
    result["eager_ms"] = both(lighthouse, inputs, grad, False)
    short = make_inputs(result["gathered_len"], heads, kv_heads, head_dim, dtype)
    short = tuple(x.detach().contiguous().requires_grad_() for x in short)
    result["inner_ms"] = both(dense_call, short, torch.randn_like(short[0]), True)
    result["overhead_ms"] = [
        a - b for a, b in zip(result["lighthouse_ms"], result["inner_ms"], strict=True)
    ]
    result["floor_ms"] = [floor_ms(inputs, config, tb_per_s, b) for b in (False, True)]
    del short
    result["extra_memory_gib"] = extra_memory_gib(backward_of(lighthouse, inputs, grad), inputs)
    if dense:
        result["dense_ms"] = both(dense_call, inputs, grad, True)
        result["speedup"] = [
            a / b for a, b in zip(result["dense_ms"], result["lighthouse_ms"], strict=True)
        ]
    result["stages_ms"] = stage_times(inputs, config)
    return result


def cases(which: str) -> list[dict[str, Any]]:
    base = {
        "heads": 8,
        "kv_heads": 8,
        "head_dim": 128,
        "dtype": torch.bfloat16,
        "scorer": "norm",
        "selection": "causal",
    }
    if which == "short":  # where Python's share is all there is to see
        return [base | {"shape": LENGTHS[0], "kv_heads": kv_heads} for kv_heads in (8, 2)]
    lists = {
        "bars": [base | {"shape": shape} for shape in BARS],
        "lengths": [base | {"shape": shape} for shape in LENGTHS],
        "shapes": [
            base | {"shape": BARS[0]} | change
            for change in (
                {"selection": "published"},
                {"scorer": "dilated"},
                {"scorer": "gla"},
                {"dtype": torch.float16},
                {"heads": 32, "kv_heads": 8},
                {"heads": 16, "head_dim": 64, "kv_heads": 16},
            )
        ],
    }
    return [case for name, found in lists.items() if which in (name, "all") for case in found]


def describe(r: dict[str, Any]) -> str:
    def pair(values: list[float]) -> str:
        return " / ".join(f"{value:.3g}" if value < 1 else f"{value:.2f}" for value in values)

    dense = f"dense {pair(r['dense_ms'])}, x{pair(r['speedup'])}" if "dense_ms" in r else "dense -"
    stages = ", ".join(f"{name} {ms:.3f}" for name, ms in r["stages_ms"].items())
    return (
        f"N={r['seq_len']} L={r['num_levels']} p={r['pooling_factor']} k={r['topk']} "
        f"S={r['gathered_len']} {r['scorer']} {r['heads']}/{r['kv_heads']}x{r['head_dim']} "
        f"{r['dtype']}: {pair(r['lighthouse_ms'])} ms (eager {pair(r['eager_ms'])}); {dense}; "
        f"inner {pair(r['inner_ms'])}, around it {pair(r['overhead_ms'])}, floor "
        f"{pair(r['floor_ms'])}; extra {r['extra_memory_gib']:.2f} GiB\n    {stages}"
    )


def plot(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curve = [
        r
        for r in results
        if r["scorer"] == "norm"
        and r["topk"] * 64 == r["seq_len"]
        and r["pooling_factor"] == 4
        and r["heads"] == r["kv_heads"] == 8
        and r["dtype"] == "bfloat16"
    ]
    curve = sorted({r["seq_len"]: r for r in curve}.values(), key=lambda r: r["seq_len"])
    if not curve:
        return
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for side, (axes, title) in enumerate(
        zip(panels, ("forward", "forward + backward"), strict=True)
    ):
        x = [r["seq_len"] for r in curve]
        dense = [(r["seq_len"], r["dense_ms"][side]) for r in curve if "dense_ms" in r]
        axes.loglog(*zip(*dense, strict=True), "o-", color="tab:orange", label="dense")
        axes.loglog(x, [r["lighthouse_ms"][side] for r in curve], "o-", label="Lighthouse")
        axes.loglog(x, [r["inner_ms"][side] for r in curve], ":", label="attention on S alone")
        floor = [r["inner_ms"][side] + r["floor_ms"][side] for r in curve]
        axes.loglog(x, floor, "--", color="gray", label="floor: that + bytes / bandwidth")
        axes.set_xlabel("tokens (k = N/64, L = 3, p = 4)")
        axes.set_xticks(x, [f"{n // 1024}K" for n in x])
        axes.minorticks_off()
        axes.set_title(title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("ms, 8 heads of 128, bf16")
    panels[0].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", default="all", choices=["bars", "lengths", "shapes", "short", "all"]
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    top = {"copy_tb_per_s": copy_rate(), "matmul_tflops": matmul_rate()}
    report: dict[str, Any] = {
        **gpu(),
        "statistic": "median of CUDA graph replays, L2 flushed; [forward, forward + backward]",
        **top,
        "results": [],
    }
    print(
        f"{report['device']}, torch {report['torch']}, cuDNN {report['cudnn']}, {top}", flush=True
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case in cases(arguments.cases):
        seq_len, num_levels, pooling_factor, topk = case.pop("shape")
        choices = {key: case.pop(key) for key in ("scorer", "selection")}
        config = LighthouseConfig(num_levels, pooling_factor, topk, **choices)
        result = measure(
            config,
            seq_len,
            tb_per_s=top["copy_tb_per_s"],
            dense=seq_len <= DENSE_UP_TO,
            **case,
        )
        report["results"].append(result)
        print(describe(result), flush=True)
        (arguments.out / "attention.json").write_text(json.dumps(report, indent=1) + "\n")
        torch.cuda.empty_cache()
    plot(report["results"], arguments.out / "attention.png")


if __name__ == "__main__":
    main()
