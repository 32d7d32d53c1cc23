"""A layer without its attention, in several forms, forward and backward, on one GPU.

    python -m benchmarks.products [--seconds 90] [--out FILE]

The norm and the products for queries, keys and values; the norm and the feed-forward. "Apart" is
what the trainer has, compiled. "Joint" puts the weights of products that read the same side by
side, which the trainer would do in every step, so that checkpoints stay what they are: its gradient
of the input is one product, where "apart" has several and adds them up. Liger's and quack's kernels
are taken where they are installed; quack has SwiGLU and its backward within the products. Times are
medians of replayed CUDA graphs in ms, of forward and of forward + backward; ``products_ms`` is what
the products of both take at the rate of a large one. Writes JSON after each row.
"""

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention import median_ms
from benchmarks.ceilings import matmul_rate
from benchmarks.norms import EPSILON, difference
from benchmarks.provenance import gpu
from benchmarks.rows import add_row

SIZES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "530M": (98304, 1024, (1024, 1024, 1024)),
    "530M, feed-forward": (98304, 1024, (1536, 1536)),
    "8B": (65536, 4096, (4096, 1024, 1024)),
    "8B, feed-forward": (65536, 4096, (14336, 14336)),
}
"""Rows, channels, and channels out of each product that reads the norm."""

BUDGET_MS = 200

Form = Callable[..., Sequence[Tensor]]
"""Of the input, the norm's weight, the products' and, for a feed-forward, the last product's."""


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPSILON)


def apart(x: Tensor, scale: Tensor, *weights: Tensor) -> Sequence[Tensor]:
    x = norm(x, scale)
    return [F.linear(x, weight) for weight in weights]


def joint(x: Tensor, scale: Tensor, *weights: Tensor) -> Sequence[Tensor]:
    sizes = [weight.shape[0] for weight in weights]
    return F.linear(norm(x, scale), torch.cat(weights)).split(sizes, dim=-1)


def feed_forward(first: Form) -> Form:
    def form(x: Tensor, scale: Tensor, *weights: Tensor) -> Sequence[Tensor]:
        gate, up = first(x, scale, *weights[:2])
        return [F.linear(F.silu(gate) * up, weights[2])]

    return form


def by_liger(x: Tensor, scale: Tensor, *weights: Tensor) -> Sequence[Tensor]:
    """The norm and SwiGLU; products are torch's."""
    ops = importlib.import_module("liger_kernel.ops")
    x = ops.LigerRMSNormFunction.apply(x, scale, EPSILON, 0.0, "llama", False)
    outs = [F.linear(x, weight) for weight in weights[:2]]
    return [F.linear(ops.LigerSiLUMulFunction.apply(*outs), weights[2])]


def by_quack(x: Tensor, scale: Tensor, *weights: Tensor) -> Sequence[Tensor]:
    """All of the feed-forward."""
    x = importlib.import_module("quack").rmsnorm(x, scale, eps=EPSILON)
    mlp = importlib.import_module("quack.mlp").mlp_func
    first = torch.cat(weights[:2])
    return [mlp(x, first, weights[2], "swiglu", tuned=False, concat_layout=True)]


def compiled(form: Form) -> Form:
    return torch.compile(form, fullgraph=True)


def forms(of_feed_forward: bool) -> dict[str, Form]:
    """By name; the first is what the others are compared with."""
    if not of_feed_forward:
        return {"apart": compiled(apart), "joint": compiled(joint)}
    found = {name: compiled(feed_forward(form)) for name, form in PLAIN.items()}
    libraries = {"liger_kernel": by_liger, "quack": by_quack}
    there = {name: form for name, form in libraries.items() if importlib.util.find_spec(name)}
    return found | there


PLAIN: dict[str, Form] = {"apart": apart, "joint": joint}


def random_tensors(
    rows: int, channels: int, outs: Sequence[int], of_feed_forward: bool, device: str, dtype: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """What a form is given, and gradients of what it returns."""
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    x, scale = random(rows, channels), torch.rand(channels, device=device, dtype=dtype)
    weights = [random(out, channels) / channels**0.5 for out in outs]
    if of_feed_forward:
        weights.append(random(channels, outs[0]) / outs[0] ** 0.5)
    grads = [random(rows, out) for out in ((channels,) if of_feed_forward else outs)]
    return [leaf.requires_grad_() for leaf in (x, scale, *weights)], grads


def measure(form: Form, leaves: Sequence[Tensor], grads: Sequence[Tensor]) -> dict[str, Any]:
    torch._dynamo.reset()

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(form(*leaves), leaves, grads)

    plain = apart if len(grads) > 1 else feed_forward(apart)
    wanted = torch.autograd.grad(plain(*leaves), leaves, grads)
    off = max(difference(*pair) for pair in zip(both(), wanted, strict=True))
    del wanted
    with torch.no_grad():
        forward_ms = median_ms(lambda: form(*leaves), budget_ms=BUDGET_MS)
    return {"ms": [forward_ms, median_ms(both, budget_ms=BUDGET_MS)], "difference": off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/products.json"))
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    rate = matmul_rate()
    report: dict[str, Any] = {**gpu(), "matmul_tflops": rate, "rows": []}
    for what, (rows, channels, outs) in SIZES.items():
        of_feed_forward = what.endswith("feed-forward")
        leaves, grads = random_tensors(
            rows, channels, outs, of_feed_forward, "cuda", torch.bfloat16
        )
        floor = 2 * rows * sum(leaf.numel() for leaf in leaves[2:]) / rate / 1e9
        for name, form in forms(of_feed_forward).items():
            row: dict[str, Any] = {"what": what, "form": name, "products_ms": [floor, 3 * floor]}
            add_row(report, options.out, row, partial(measure, form, leaves, grads), end)


if __name__ == "__main__":
    main()
