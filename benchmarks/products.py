"""Products that read the same input, one by one and as one wide product, on one GPU.

    python -m benchmarks.products [--seconds 60] [--out FILE]

A layer's queries, keys and values, and the two inputs of its SwiGLU. "Joint" puts their weights
side by side, which the trainer would do in every step, so that checkpoints stay what they are; its
gradient of the input is one product where "apart" has several and adds them up. Both are compiled.
Times are medians of replayed CUDA graphs in ms, of forward and of forward + backward; ``floor_ms``
is what the products of both take at the rate of a large one. Writes JSON after each row.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention import median_ms
from benchmarks.provenance import gpu
from benchmarks.training import matmul_rate

SIZES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "530M: q, k, v": (98304, 1024, (1024, 1024, 1024)),
    "530M: w1, w3": (98304, 1024, (1536, 1536)),
    "8B: q, k, v": (65536, 4096, (4096, 1024, 1024)),
    "8B: w1, w3": (65536, 4096, (14336, 14336)),
}
"""Rows, channels, and channels out of each product."""

BUDGET_MS = 200

Products = Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]]


def apart(x: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    return [F.linear(x, weight) for weight in weights]


def joint(x: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    sizes = [weight.shape[0] for weight in weights]
    return F.linear(x, torch.cat(list(weights))).split(sizes, dim=-1)


FORMS: dict[str, Products] = {"apart": apart, "joint": joint}


def measure(
    products: Products, rows: int, channels: int, outs: Sequence[int], device: str
) -> dict[str, Any]:
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    x = random(rows, channels).requires_grad_()
    weights = [(random(out, channels) / channels**0.5).requires_grad_() for out in outs]
    grads = [random(rows, out) for out in outs]
    torch._dynamo.reset()
    call = torch.compile(products, fullgraph=True)

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(x, weights), (x, *weights), grads)

    with torch.no_grad():
        forward_ms = median_ms(lambda: call(x, weights), budget_ms=BUDGET_MS)
    return {"ms": [forward_ms, median_ms(both, budget_ms=BUDGET_MS)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/products.json"))
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    rate = matmul_rate()
    report: dict[str, Any] = {**gpu(), "matmul_tflops": rate, "rows": []}
    for what, (rows, channels, outs) in SIZES.items():
        floor = 2 * rows * channels * sum(outs) / rate / 1e9
        for name, products in FORMS.items():
            row: dict[str, Any] = {"what": what, "form": name, "floor_ms": [floor, 3 * floor]}
            if time.monotonic() > end:
                row["error"] = "no time left"
            else:
                row |= measure(products, rows, channels, outs, "cuda")
            report["rows"].append(row)
            print(json.dumps(row), flush=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
