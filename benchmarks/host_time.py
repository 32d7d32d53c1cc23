"""Host time of a Lighthouse layer in eager mode: Python and launches, without a GPU.

    python -m benchmarks.host_time [--seq-len 8192] [--kv-heads 8] [--out FILE]

The kernels are compiled for an H100 and launched by Triton as ever, but through a driver that does
nothing where a GPU's queue would be called. "Without launches" leaves out all that Triton does;
"as operators" is what a mode or a compiler sees, by way of torch's dispatcher.
Missing are that last call, of a few us, and dense attention, in whose place something allocates its
results; memory comes from the CPU's allocator. Times are the least of many, in us, since whatever
else runs on a CPU only adds to them. Prints JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.provenance import commit
from lighthouse import LighthouseConfig, lighthouse_attention
from lighthouse.inputs import check_inputs
from lighthouse.ops import triton as ops
from lighthouse.ops.triton import gather_scatter, operator
from lighthouse.ops.triton.geometry import geometry_of

Inputs = tuple[Tensor, Tensor, Tensor]


class Attention(torch.autograd.Function):
    """Results of a dense attention call that nobody computes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors)


def attention(q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool) -> Tensor:
    return Attention.apply(q, k, v)


class Driver:
    """An H100 that does nothing, as Triton sees it."""

    launcher_cls = staticmethod(lambda source, metadata: Driver.launch)
    utils = SimpleNamespace(
        load_binary=lambda *_: (object(), 0, 0, 0, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 232448},
    )

    @staticmethod
    def launch(*_: Any) -> None: ...

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def cpu_name() -> str:
    names = (x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x)
    return next(names, "unknown").split(":")[-1].strip()


def least_us(call: Callable[[], Any], seconds: float = 2.0, least: int = 200) -> float:
    """Least time of a call among those that fit."""
    for _ in range(20):
        call()
    end = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(min(times) * 1e6, 1)


def make_inputs(seq_len: int, heads: int, kv_heads: int, head_dim: int) -> Inputs:
    """In the trainer's memory order; never written."""
    q, k, v = (
        torch.empty(1, seq_len, h, head_dim, dtype=torch.bfloat16).transpose(1, 2)
        for h in (heads, kv_heads, kv_heads)
    )
    return q, k, v


def steps_of(inputs: Inputs, config: LighthouseConfig) -> dict[str, Callable[[], Any]]:
    """Each on its own; "tracked" with gradients to come."""
    q = inputs[0]
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    coarsest, maxima = ops.summarize(inputs, config, scored=True)
    selection = ops.select(*maxima, config)
    rows = ops.gather(inputs, coarsest, selection, config)
    row_leaf = rows[0].detach().requires_grad_()
    geometry = geometry_of(config)
    of_tokens = (selection.slot, q.shape[2], geometry, [True] * 3)

    @torch.no_grad()
    def scatter_backward() -> None:
        gather_scatter._scatter_backward(q, selection.index, None, geometry)

    @torch.no_grad()
    def gather_backward() -> None:
        gather_scatter._gather_backward(list(rows), *of_tokens)

    return {
        "check_inputs": lambda: check_inputs(*inputs),
        "validate": lambda: config.validate(q.shape[2]),
        "geometry_of": lambda: geometry_of(config),
        "attention's stand-in": lambda: attention(*rows, enable_gqa=False),
        "summarize": lambda: ops.summarize(inputs, config, scored=True),
        "select": lambda: ops.select(*maxima, config),
        "gather": lambda: ops.gather(inputs, coarsest, selection, config),
        "gather, tracked": lambda: ops.gather(leaves, coarsest, selection, config),
        "scatter": lambda: ops.scatter(rows[0], selection, q, config),
        "scatter, tracked": lambda: ops.scatter(row_leaf, selection, q, config),
        "scatter backward": scatter_backward,
        "gather backward": gather_backward,
    }


def measure(inputs: Inputs, config: LighthouseConfig, seconds: float) -> dict[str, float]:
    """Of the layer and its steps."""
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    run = partial(lighthouse_attention, config=config, impl="triton", attention=attention)
    grad = run(*inputs)

    def no_grad() -> None:
        with torch.no_grad():
            run(*leaves)

    calls = {
        "forward, no grad": no_grad,
        "forward": lambda: run(*leaves),
        "forward + backward": lambda: torch.autograd.grad(run(*leaves), leaves, grad),
    } | steps_of(inputs, config)
    return {name: least_us(call, seconds) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    triton.runtime.driver.set_active(Driver())
    ops.INTERPRETED = True  # what makes a CPU's tensors welcome
    config = LighthouseConfig(topk=args.seq_len // 64)
    inputs = make_inputs(args.seq_len, 8, args.kv_heads, 128)
    result = {
        "cpu": cpu_name(),
        "seq_len": args.seq_len,
        "kv_heads": args.kv_heads,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit(),
        "with_launches_us": measure(inputs, config, args.seconds),
    }
    operator.is_in_torch_dispatch_mode = lambda: True
    result["as_operators_us"] = measure(inputs, config, args.seconds)
    operator.is_in_torch_dispatch_mode = lambda: False
    JITFunction.run = lambda *_, **__: None
    result["without_launches_us"] = measure(inputs, config, args.seconds)
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
