"""A residual sum and the norm behind it in several forms, forward and backward, on one GPU.

    python -m benchmarks.norms [--seconds 60] [--out FILE]

"Compiled" is what the trainer has: inductor's, whose backward makes the weight's gradient in the
kernel that makes the input's, some rows of it at a time. "Rows of 16", 32 and 64 fix how many rows
a program has, "apart" makes the two gradients in kernels of their own. quack's is taken where it is
installed. Times are medians of replayed CUDA graphs in ms, of forward and of forward + backward;
``floor_ms`` is what a copy of the same bytes takes. Writes JSON after each row.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention import median_ms
from benchmarks.provenance import gpu

SHAPES = ((98304, 1024), (65536, 4096), (131072, 4096), (262144, 4096), (131072, 8192))
"""Rows and channels: of ``530M_byte``, of Llama-3-8B on one and more GPUs, of Llama-3-70B."""

SETTINGS: dict[str, dict[str, Any]] = {
    "compiled": {},
    **{f"rows of {n}": {"triton.mix_order_reduction_split_size": n} for n in (16, 32, 64)},
    "apart": {"triton.mix_order_reduction": False},
}
"""Inductor's, by the name of the form."""

MOVED = 8
"""Tensors. Forward reads two and writes two; backward reads three and writes one."""

BUDGET_MS = 150
EPSILON = 1e-5

Norm = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def sum_and_norm(x: Tensor, added: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The sum, and its norm."""
    total = x + added
    return total, F.rms_norm(total, weight.shape, weight, EPSILON)


def forms() -> dict[str, Norm]:
    """By name; quack's last."""
    found: dict[str, Norm] = {
        name: torch.compile(sum_and_norm, options=options) for name, options in SETTINGS.items()
    }
    if importlib.util.find_spec("quack") is not None:
        found["quack"] = by_quack
    return found


def by_quack(x: Tensor, added: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    quack = importlib.import_module("quack")
    out, total = quack.rmsnorm(x, weight, residual=added, eps=EPSILON, prenorm=True)
    return total, out


def measure(norm: Norm, rows: int, channels: int, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    x, added, *grads = (
        torch.randn(rows, channels, device=device, dtype=torch.bfloat16) for _ in range(4)
    )
    weight = torch.rand(channels, device=device, dtype=torch.bfloat16)
    leaves = [leaf.requires_grad_() for leaf in (x, added, weight)]
    torch._dynamo.reset()

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(norm(*leaves), leaves, grads)

    wanted = torch.autograd.grad(sum_and_norm(*leaves), leaves, grads)
    off = max(_difference(a, b) for a, b in zip(both(), wanted, strict=True))
    del wanted
    with torch.no_grad():
        forward_ms = median_ms(lambda: norm(*leaves), budget_ms=BUDGET_MS)
    both_ms = median_ms(both, budget_ms=BUDGET_MS)
    source = torch.empty(MOVED * rows // 2, channels, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return {
        "ms": [forward_ms, both_ms],
        "floor_ms": median_ms(lambda: target.copy_(source), budget_ms=BUDGET_MS),
        "difference": off,
    }


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Relative to the whole."""
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/norms.json"))
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    report: dict[str, Any] = {**gpu(), "rows": []}
    for rows, channels in SHAPES:
        for name, norm in forms().items():
            row: dict[str, Any] = {"form": name, "rows": rows, "channels": channels}
            if time.monotonic() > end:
                row["error"] = "no time left"
            else:
                try:
                    row |= measure(norm, rows, channels, "cuda")
                except Exception as error:  # another's kernel may fail in its own way
                    row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
                torch.cuda.empty_cache()
            report["rows"].append(row)
            print(json.dumps(row), flush=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
