"""The backward of a residual sum and the norm behind it, in several forms, on one GPU.

    python -m benchmarks.norms [--seconds 60] [--out FILE]

It reads the gradients of the products behind the norm, that of the sum, and the sum. "Compiled" is
what the trainer has: inductor's, which makes the weight's gradient in the kernel that makes the
input's, some rows of it at a time. "Rows of 16", 32 and 64 fix how many rows a program has, "apart"
makes the two gradients in kernels of their own. Liger's and quack's are taken where they are
installed, as forward + backward less forward; the gradients of several products they want added up.
Times are medians of replayed CUDA graphs in ms. Writes JSON after each row.
"""

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention import median_ms
from benchmarks.ceilings import copy_rate
from benchmarks.provenance import gpu
from benchmarks.rows import add_row

SHAPES = ((98304, 1024), (65536, 4096), (131072, 4096), (262144, 4096), (131072, 8192))
"""Rows and channels: of ``530M_byte``, of Llama-3-8B on one and more GPUs, of Llama-3-70B."""

PRODUCTS = (3, 2)
"""Behind the norm: queries, keys and values; the two inputs of SwiGLU."""

SETTINGS: dict[str, dict[str, Any]] = {
    "compiled": {},
    **{f"rows of {n}": {"triton.mix_order_reduction_split_size": n} for n in (16, 32, 64)},
    "apart": {"triton.mix_order_reduction": False},
}
"""Inductor's, by the name of the form."""

BUDGET_MS = 100
EPSILON = 1e-5


@dataclass(frozen=True)
class Inputs:
    """Of the backward.

    Attributes:
        total: (rows, channels), what the norm is of.
        weight: (channels,).
        of_total: the gradient of the sum.
        of_norm: gradients of what the norm gave, one for each product.
    """

    total: Tensor
    weight: Tensor
    of_total: Tensor
    of_norm: Sequence[Tensor]


def random_inputs(rows: int, channels: int, products: int, device: str, dtype: Any) -> Inputs:
    torch.manual_seed(0)
    total, of_total, *of_norm = (
        torch.randn(rows, channels, device=device, dtype=dtype) for _ in range(2 + products)
    )
    return Inputs(total, torch.rand(channels, device=device, dtype=dtype), of_total, of_norm)


def gradients(
    total: Tensor, weight: Tensor, rstd: Tensor, of_total: Tensor, *of_norm: Tensor
) -> tuple[Tensor, Tensor]:
    """Of the sum's parts, which have the same one, and of the weight."""
    wide = torch.promote_types(total.dtype, torch.float32)
    of_norm_w = sum(of_norm[1:], of_norm[0]).to(wide)
    normed, by_weight = total.to(wide) * rstd, of_norm_w * weight
    of_input = rstd * (by_weight - normed * (by_weight * normed).mean(-1, keepdim=True))
    of_weight = (of_norm_w * normed).sum(0)
    return (of_input + of_total).to(total.dtype), of_weight.to(weight.dtype)


def rstd_of(total: Tensor) -> Tensor:
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    return (wide.square().mean(-1, keepdim=True) + EPSILON).rsqrt()


def compiled_ms(inputs: Inputs, settings: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds, and how far off the eager ones the gradients are."""
    torch._dynamo.reset()
    call = torch.compile(gradients, options=settings)
    arguments = (inputs.total, inputs.weight, rstd_of(inputs.total), inputs.of_total)
    wanted, found = gradients(*arguments, *inputs.of_norm), call(*arguments, *inputs.of_norm)
    off = max(difference(*pair) for pair in zip(found, wanted, strict=True))
    del wanted, found
    return median_ms(lambda: call(*arguments, *inputs.of_norm), budget_ms=BUDGET_MS), off


def by_liger(x: Tensor, added: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The norm, and the sum."""
    function = importlib.import_module("liger_kernel.ops").LigerFusedAddRMSNormFunction
    return function.apply(x, added, weight, EPSILON)


def by_quack(x: Tensor, added: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The norm, and the sum."""
    quack = importlib.import_module("quack")
    return quack.rmsnorm(x, weight, residual=added, eps=EPSILON, prenorm=True)


LIBRARIES = {"liger_kernel": by_liger, "quack": by_quack}


def library_ms(inputs: Inputs, norm: Callable[..., Any]) -> tuple[float, float]:
    """As :func:`compiled_ms`, of a library whose gradient of the norm is one tensor."""
    zeros = torch.zeros_like(inputs.total)
    leaves = [leaf.requires_grad_() for leaf in (inputs.total, zeros, inputs.weight)]

    def both() -> tuple[Tensor, ...]:
        of_norm = sum(inputs.of_norm[1:], inputs.of_norm[0])
        return torch.autograd.grad(norm(*leaves), leaves, (of_norm, inputs.of_total))

    plain = F.rms_norm(leaves[0], inputs.weight.shape, inputs.weight, EPSILON)
    of_norm = sum(inputs.of_norm[1:], inputs.of_norm[0])
    wanted = torch.autograd.grad((plain, leaves[0]), leaves[::2], (of_norm, inputs.of_total))
    found = both()
    off = max(difference(*pair) for pair in zip(found[::2], wanted, strict=True))
    del plain, of_norm, wanted, found
    forward = median_ms(lambda: norm(*leaves), budget_ms=BUDGET_MS)
    return median_ms(both, budget_ms=BUDGET_MS) - forward, off


def difference(found: Tensor, wanted: Tensor) -> float:
    """Relative to the whole."""
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


def measure(name: str, rows: int, channels: int, products: int, device: str) -> dict[str, Any]:
    inputs = random_inputs(rows, channels, products, device, torch.bfloat16)
    if name in LIBRARIES:
        ms, off = library_ms(inputs, LIBRARIES[name])
    else:
        ms, off = compiled_ms(inputs, SETTINGS[name])
    return {"ms": ms, "difference": off}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/norms.json"))
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    report: dict[str, Any] = {**gpu(), "copy_tb_per_s": copy_rate(), "rows": []}
    names = [*SETTINGS, *(name for name in LIBRARIES if importlib.util.find_spec(name))]
    for rows, channels in SHAPES:
        for products in PRODUCTS:
            for name in names:
                row = {"form": name, "rows": rows, "channels": channels, "products": products}
                measured = partial(measure, name, rows, channels, products, "cuda")
                add_row(report, options.out, row, measured, end)


if __name__ == "__main__":
    main()
