"""Rotary embedding in several forms, compiled: one layer's queries and keys, on one GPU.

    python -m benchmarks.rotary [--tokens 98304] [--out FILE]

"Words" is what the trainer compiles: both channels of a pair as one integer of 32 bits, and a
backward of its own, which turns the other way. "Pairs" takes them apart and puts them together;
"swapped" adds each channel's neighbour. Sequences are as long as in the stages of
``growing_98k.toml``. Times are medians of replayed CUDA graphs in ms, of forward and of forward +
backward; ``floor_ms`` is what a copy of the same bytes takes. Writes JSON.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention import backward_of, median_ms
from benchmarks.provenance import gpu
from lighthouse.titan.llama3.rotary import rotate

HEADS, HEAD_DIM = 8, 128
LENGTHS = (2048, 8192, 98304)

Rotation = Callable[[Tensor, Tensor], Tensor]


def pairs(x_BNHD: Tensor, freqs_cis: Tensor) -> Tensor:
    """Of each pair its channels apart, then together."""
    real, imaginary = x_BNHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.flatten(-2).type_as(x_BNHD)


def swapped(x_BNHD: Tensor, freqs_cis: Tensor) -> Tensor:
    """x cos + (its neighbour) (-sin, sin)."""
    pairs = x_BNHD.float().unflatten(-1, (-1, 2))
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    turned = pairs * cos.unsqueeze(-1) + pairs.flip(-1) * torch.stack((-sin, sin), dim=-1)
    return turned.flatten(-2).type_as(x_BNHD)


FORMS: dict[str, Rotation] = {"words": rotate, "pairs": pairs, "swapped": swapped}


def layer(form: Rotation, freqs_cis: Tensor, q_BNHD: Tensor, k_BNHD: Tensor) -> Tensor:
    """Both, heads first and side by side, as attention takes them."""
    turned = [form(x, freqs_cis).transpose(1, 2) for x in (q_BNHD, k_BNHD)]
    return torch.stack(turned)


def measure(name: str, batch: int, seq_len: int, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    q, k = (
        torch.randn(batch, seq_len, HEADS, HEAD_DIM, device=device, dtype=torch.bfloat16)
        for _ in range(2)
    )
    angles = torch.rand(1, seq_len, 1, HEAD_DIM // 2, device=device) * 6
    freqs_cis = torch.polar(torch.ones_like(angles), angles)
    torch._dynamo.reset()
    call = torch.compile(partial(layer, FORMS[name], freqs_cis), fullgraph=True)
    wanted = layer(rotate, freqs_cis, q, k)
    leaves = tuple(x.requires_grad_() for x in (q, k))
    both = backward_of(call, leaves, torch.randn_like(wanted))
    with torch.no_grad():
        off = (call(*leaves).float() - wanted.float()).abs().max().item()
        forward_ms = median_ms(lambda: call(*leaves))
    target = torch.empty_like(wanted)
    return {
        "form": name,
        "batch": batch,
        "seq_len": seq_len,
        "ms": [forward_ms, median_ms(both)],
        "floor_ms": median_ms(lambda: target.copy_(wanted)),
        "largest_difference": off,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=98304)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rotary.json"))
    options = parser.parse_args()
    report: dict[str, Any] = {**gpu(), "heads": HEADS, "head_dim": HEAD_DIM, "rows": []}
    for seq_len in LENGTHS:
        for name in FORMS:
            row = measure(name, options.tokens // seq_len, seq_len, "cuda")
            report["rows"].append(row)
            print(json.dumps(row), flush=True)
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
