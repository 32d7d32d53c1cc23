"""Tokens from rows of the sub-sequence: scatter forward and gather backward.

At each level at most one entry concerns a token, known from the token's position alone.
"""

import triton
import triton.language as tl
from torch import Tensor

from lighthouse.ops.triton.geometry import Geometry

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
    H: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPOKEN: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BATCH_HEADS: tl.constexpr,
):
    """A program has BLOCK_N tokens of one head.

    With SPOKEN a token sums the rows of the entries of its chunk and document that speak for it,
    without it the rows of the entries that cover it, each divided by the tokens that it covers.
    """
    i_bh = tl.program_id(0) % BATCH_HEADS
    i_n = tl.program_id(0) // BATCH_HEADS * BLOCK_N + tl.arange(0, BLOCK_N)
    i_d = tl.arange(0, BLOCK_D)
    in_n = i_n < seq_len
    in_d = i_d < D
    i_b = (i_bh // H).to(tl.int64)
    i_h = (i_bh % H).to(tl.int64)
    p_slot = slot + (i_b * (H // G) + i_h // G) * num_entries
    p_rows = rows + i_b * row_stride_b + i_h * row_stride_h + i_d[None, :]

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
        p_row = p_rows + (b_slot.to(tl.int64) * row_stride_s)[:, None]
        b_row = tl.load(p_row, mask=(b_slot >= 0)[:, None] & in_d[None, :], other=0)
        b_row = b_row.to(tl.float32)
        # A true division would take longer than the memory does.
        b_sum += b_row if SPOKEN else b_row * (1.0 / P**level)
        p_slot += size
        size = size // P
    p_x = x + i_b * stride_b + i_h * stride_h
    p_x = p_x + (i_n.to(tl.int64) * stride_n)[:, None] + i_d[None, :]
    tl.store(p_x, b_sum.to(x.dtype.element_ty), mask=in_n[:, None] & in_d[None, :])


def empty_tokens(rows: Tensor, seq_len: int, token_major: bool) -> Tensor:
    """(B, H, N, D) for the heads of ``rows``, in (B, N, H, D)-ordered memory if ``token_major``."""
    batch, heads, _, head_dim = rows.shape
    if token_major:
        return rows.new_empty(batch, seq_len, heads, head_dim).transpose(1, 2)
    return rows.new_empty(batch, heads, seq_len, head_dim)


def pull_rows(
    rows: Tensor,
    slot: Tensor,
    x: Tensor,
    geometry: Geometry,
    *,
    spoken: bool,
    first_token: Tensor | None = None,
) -> Tensor:
    """Launch the kernel.

    Args:
        rows: (B, H, S, D), any strides.
        slot: int32 (B, Hkv, E), contiguous.
        x: (B, H, N, D), to be written; see :func:`empty_tokens`.
        spoken: the entries that speak for a token, rather than the means that it is part of.
        first_token: with documents, if ``spoken``: as in a selection, contiguous.

    Returns:
        ``x``.
    """
    rows = rows if rows.stride(3) == 1 else rows.contiguous()
    batch, heads, seq_len, head_dim = x.shape
    block_d = triton.next_power_of_2(head_dim)
    block_n = max(1, _TILE // block_d)
    _pull_kernel[(batch * heads * triton.cdiv(seq_len, block_n),)](
        rows,
        slot,
        slot if first_token is None else first_token,
        x,
        seq_len,
        slot.shape[2],
        *rows.stride()[:3],
        *x.stride()[:3],
        H=heads,
        G=heads // slot.shape[1],
        D=head_dim,
        L=geometry.num_levels,
        P=geometry.pooling_factor,
        CHUNKS=geometry.num_chunks,
        SPOKEN=spoken,
        DOCUMENTS=first_token is not None,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        BATCH_HEADS=batch * heads,
    )
    return x
