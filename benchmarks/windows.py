"""Which stock kernel attends in a window fastest: one layer, forward + backward, on one GPU.

    python -m benchmarks.windows [--seq-len 98304] [--windows 1024 2048 4096 8192] [--out FILE]

"Two triangles" is :func:`lighthouse.window_attention`. Every candidate is first checked against
dense attention with a mask. ``of_dense`` is the time over that of dense causal attention scaled by
the number of pairs. Times are medians of replayed CUDA graphs from one process. Writes JSON.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.attention import backward_of, cudnn_first, make_inputs, median_ms, without_grad
from benchmarks.provenance import gpu
from lighthouse import window_attention

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Flash(torch.autograd.Function):
    """The flash kernels that PyTorch is built with, which know a window."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        n = q.shape[1]
        out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            None,
            None,
            n,
            n,
            0.0,
            True,
            False,
            window_size_left=window - 1,
            window_size_right=0,
        )
        ctx.save_for_backward(q, k, v, out, lse, seed, offset)
        ctx.window = window
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, lse, seed, offset = ctx.saved_tensors
        n = q.shape[1]
        grads = torch.ops.aten._flash_attention_backward(
            grad.transpose(1, 2),
            q,
            k,
            v,
            out,
            lse,
            None,
            None,
            n,
            n,
            0.0,
            True,
            seed,
            offset,
            window_size_left=ctx.window - 1,
            window_size_right=0,
        )
        return *(x.transpose(1, 2) for x in grads), None


def flash(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
    return _Flash.apply(q, k, v, window)


def flex(seq_len: int, window: int, block: int | None = None) -> Call:
    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q - k < window)

    size = {} if block is None else {"BLOCK_SIZE": block}
    # Compiled: otherwise each pair of tokens takes eight bytes before there are blocks.
    blocks = torch.compile(create_block_mask)
    mask = blocks(near, None, None, seq_len, seq_len, device="cuda", **size)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def masked_blocks(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
    """Blocks of queries with the keys of their own and the previous block, as a batch."""
    b, h, _, d = q.shape
    index = torch.arange(window, device=q.device)
    behind = index[:, None] + window - torch.arange(2 * window, device=q.device)
    mask = (behind >= 0) & (behind < window)
    out = [q.new_empty(0)] * 2
    first = (x[:, :, :window] for x in (q, k, v))
    out[0] = F.scaled_dot_product_attention(*first, is_causal=True)
    blocks = q[:, :, window:].reshape(b, h, -1, window, d).transpose(1, 2).flatten(0, 1)
    keys, values = (
        x.unfold(2, 2 * window, window).permute(0, 2, 1, 4, 3).flatten(0, 1) for x in (k, v)
    )
    rest = F.scaled_dot_product_attention(blocks, keys, values, attn_mask=mask)
    out[1] = rest.view(b, -1, h, window, d).transpose(1, 2).reshape(b, h, -1, d)
    return torch.cat(out, 2)


def varlen(seq_len: int, window: int) -> Call:
    """The public call for sequences of several lengths, where it knows a window."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, seq_len], dtype=torch.int32, device="cuda")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        out = varlen_attn(*flat, ends, ends, seq_len, seq_len, window_size=(window - 1, 0))
        return out.unflatten(0, (1, -1)).transpose(1, 2)

    return call


def candidates(seq_len: int, window: int) -> dict[str, Callable[[], Call]]:
    return {
        "flash": lambda: partial(flash, window=window),
        "varlen": lambda: varlen(seq_len, window),
        "flex": lambda: flex(seq_len, window),
        "flex, blocks of 256": lambda: flex(seq_len, window, 256),
        "two triangles, cuDNN": lambda: partial(window_attention, window=window),
        "masked blocks": lambda: partial(masked_blocks, window=window),
    }


def check(call: Call, seq_len: int, window: int, kv_heads: int) -> float:
    """Largest error of output and gradients over that of dense attention in bf16, both against
    float32 with a mask."""
    inputs = make_inputs(seq_len, 8, kv_heads, 128, torch.bfloat16)
    grad = torch.randn_like(inputs[0])
    index = torch.arange(seq_len, device="cuda")
    behind = index[:, None] - index
    mask = (behind >= 0) & (behind < window)

    def dense(dtype: torch.dtype) -> list[Tensor]:
        own = [x.detach().to(dtype).requires_grad_() for x in inputs]
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(*own, attn_mask=mask, enable_gqa=kv_heads != 8)
        return [out, *torch.autograd.grad(out, own, grad.to(dtype))]

    out = call(*inputs)
    found = [out, *torch.autograd.grad(out, inputs, grad)]
    true, same = dense(torch.float32), dense(torch.bfloat16)
    pairs = zip(found, same, true, strict=True)
    return max(((f - t).norm() / (s - t).norm()).item() for f, s, t in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seq-len", type=int, default=98304)
    parser.add_argument("--windows", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/windows_h100.json"))
    options = parser.parse_args()
    seq_len = options.seq_len
    rows: list[dict[str, Any]] = []
    for kv_heads in (8, 2):
        inputs = make_inputs(seq_len, 8, kv_heads, 128, torch.bfloat16)
        grad = torch.randn_like(inputs[0])
        dense = partial(cudnn_first, enable_gqa=kv_heads != 8)
        times = [
            median_ms(without_grad(dense, *inputs)),
            median_ms(backward_of(dense, inputs, grad)),
        ]
        rows.append({"kernel": "dense, cuDNN", "kv_heads": kv_heads, "ms": times})
        print(rows[-1], flush=True)
        for window in options.windows if kv_heads == 8 else [4096]:
            pairs = window * (window + 1) / 2 + (seq_len - window) * window
            share = pairs / (seq_len * (seq_len + 1) / 2)
            for name, make in candidates(seq_len, window).items():
                row: dict[str, Any] = {"kernel": name, "kv_heads": kv_heads, "window": window}
                rows.append(row)
                try:
                    torch.compiler.reset()  # else the limit of recompilations ends in eager code
                    small = candidates(4096, 512)[name]()
                    if window == options.windows[0] or kv_heads != 8:
                        row["error_over_bf16"] = check(small, 4096, 512, kv_heads)
                    call = make()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                    row["ms"] = [
                        median_ms(without_grad(call, *inputs), graph=name != "varlen"),
                        median_ms(backward_of(call, inputs, grad), graph=name != "varlen"),
                    ]
                    row["of_dense"] = [
                        found / (share * all_pairs)
                        for found, all_pairs in zip(row["ms"], times, strict=True)
                    ]
                    row["memory_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {error}"[:300]
                print(row, flush=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(
                    json.dumps({**gpu(), "seq_len": seq_len, "rows": rows}, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
