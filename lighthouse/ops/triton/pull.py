"""Tokens from rows of the sub-sequence: scatter forward and gather backward.

At each level at most one entry concerns a token, known from the token's position alone.
"""

import triton
import triton.language as tl
from torch import Tensor

from lighthouse.ops.triton.geometry import Geometry, ceil_div, power_of_two
from lighthouse.ops.triton.tensors import head_of, of_tensor, rows_contiguous, strides_of

_TILE = 4096


@triton.jit
def _pull_kernel(
    rows,
    slot,
    first_token,
    x,
    seq_len,
    num_entries,
    row_stride_b,
    row_stride_h,
    row_stride_s,
    stride_b,
    stride_h,
    stride_n,
    HEADS: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BATCH: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPOKEN: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program has BLOCK_N tokens of one head of a tensor; see tensors.py.

    With SPOKEN a token sums the rows of the entries of its chunk and document that speak for it,
    without it the rows of the entries that cover it, each divided by the tokens that it covers.
    """
    i_any = tl.program_id(0) % ALL_HEADS
    i_b = (tl.program_id(0) // ALL_HEADS % BATCH).to(tl.int64)
    i_n = tl.program_id(0) // (ALL_HEADS * BATCH) * BLOCK_N + tl.arange(0, BLOCK_N)
    i_d = tl.arange(0, BLOCK_D)
    in_n = i_n < seq_len
    in_d = i_d < D
    heads = of_tensor(i_any, HEADS, HEADS)
    i_h = head_of(i_any, HEADS).to(tl.int64)
    p_slot = slot + (i_b * KV_HEADS + i_h // (heads // KV_HEADS)) * num_entries
    to_row = i_b * of_tensor(i_any, row_stride_b, HEADS)
    to_row += i_h * of_tensor(i_any, row_stride_h, HEADS)
    stride_s = of_tensor(i_any, row_stride_s, HEADS)
    p_rows = of_tensor(i_any, rows, HEADS) + to_row + i_d[None, :]

    chunk_len = seq_len // CHUNKS
    b_chunk = i_n // chunk_len
    if DOCUMENTS:
        width: tl.constexpr = P ** (L - 1)
        p_first = first_token + i_b * (seq_len // width) + i_n // width
        b_first = tl.load(p_first, mask=in_n, other=0)
    b_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    size = seq_len
    for level in tl.static_range(L):
        if DOCUMENTS:
            b_entry = (i_n + 1) // P**level - 1
            concerned = in_n & (b_entry * P**level >= b_first)
        elif SPOKEN:
            b_entry = (i_n - b_chunk * chunk_len + 1) // P**level - 1
            concerned = in_n & (b_entry >= 0)
            b_entry += b_chunk * (chunk_len // P**level)
        else:
            b_entry = i_n // P**level
            concerned = in_n
        b_slot = tl.load(p_slot + b_entry, mask=concerned, other=-1)
        p_row = p_rows + (b_slot.to(tl.int64) * stride_s)[:, None]
        b_row = tl.load(p_row, mask=(b_slot >= 0)[:, None] & in_d[None, :], other=0)
        b_row = b_row.to(tl.float32)
        # A true division would take longer than the memory does.
        b_sum += b_row if SPOKEN else b_row * (1.0 / P**level)
        p_slot += size
        size = size // P
    to_token = i_b * of_tensor(i_any, stride_b, HEADS) + i_h * of_tensor(i_any, stride_h, HEADS)
    b_to_token = i_n.to(tl.int64) * of_tensor(i_any, stride_n, HEADS)
    p_x = of_tensor(i_any, x, HEADS) + to_token + b_to_token[:, None] + i_d[None, :]
    tl.store(p_x, b_sum.to(p_x.dtype.element_ty), mask=in_n[:, None] & in_d[None, :])


def empty_tokens(rows: Tensor, seq_len: int, token_major: bool) -> Tensor:
    """(B, H, N, D) for the heads of ``rows``, in (B, N, H, D)-ordered memory if ``token_major``."""
    batch, heads, _, head_dim = rows.shape
    if token_major:
        return rows.new_empty(batch, seq_len, heads, head_dim).transpose(1, 2)
    return rows.new_empty(batch, heads, seq_len, head_dim)


def pull_rows(
    rows: list[Tensor],
    slot: Tensor,
    tokens: list[Tensor],
    geometry: Geometry,
    *,
    spoken: bool,
    first_token: Tensor | None = None,
) -> None:
    """Launch the kernel.

    Args:
        rows: one tensor or more, each (B, H, S, D) with any H and strides.
        slot: int32 (B, Hkv, E), contiguous.
        tokens: of each (B, H, N, D), to be written; see :func:`empty_tokens`.
        spoken: the entries that speak for a token, rather than the means that it is part of.
        first_token: with documents, if ``spoken``: as in a selection, contiguous.
    """
    of_rows, x = rows_contiguous(rows), tuple(tokens)
    batch, _, seq_len, head_dim = x[0].shape
    kv_heads, num_entries = slot.shape[1:]
    heads = tuple([t.shape[1] for t in x])
    all_heads = sum(heads)
    block_d = power_of_two(head_dim)
    block_n = max(1, _TILE // block_d)
    _pull_kernel[(batch * all_heads * ceil_div(seq_len, block_n),)](
        of_rows,
        slot,
        first_token,
        x,
        seq_len,
        num_entries,
        *strides_of(of_rows),
        *strides_of(x),
        HEADS=heads,
        ALL_HEADS=all_heads,
        KV_HEADS=kv_heads,
        BATCH=batch,
        D=head_dim,
        L=geometry.num_levels,
        P=geometry.pooling_factor,
        CHUNKS=geometry.num_chunks,
        SPOKEN=spoken,
        DOCUMENTS=first_token is not None,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
    )
