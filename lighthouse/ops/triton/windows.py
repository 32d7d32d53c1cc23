"""Rows of the sub-sequence from windows of tokens: gather forward and scatter backward."""

import triton
import triton.language as tl
from torch import Tensor

from lighthouse.ops.triton.geometry import Geometry, ceil_div, power_of_two
from lighthouse.ops.triton.tensors import head_of, of_tensor, rows_contiguous, strides_of

_TILE = 1024


@triton.jit
def _windows_kernel(
    x,
    coarsest,
    index,
    first_token,
    rows,
    seq_len,
    num_rows,
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
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program has BLOCK_S rows of one head of a tensor; see tensors.py.

    Without SPOKEN a row is the mean of its entry's tokens, at the coarsest level read from
    ``coarsest``. With SPOKEN it is the sum of the tokens that the entry speaks for, which begin at
    its last token, are as many as it has, and end with the chunk and the document.
    """
    i_any = tl.program_id(0) % ALL_HEADS
    i_b = (tl.program_id(0) // ALL_HEADS % BATCH).to(tl.int64)
    i_s = tl.program_id(0) // (ALL_HEADS * BATCH) * BLOCK_S + tl.arange(0, BLOCK_S)
    i_d = tl.arange(0, BLOCK_D)
    in_s = i_s < num_rows
    in_d = i_d < D
    heads = of_tensor(i_any, HEADS, HEADS)
    i_h = head_of(i_any, HEADS)
    i_bh = i_b * heads + i_h
    p_index = index + (i_b * KV_HEADS + i_h // (heads // KV_HEADS)) * num_rows + i_s
    b_flat = tl.load(p_index, mask=in_s, other=0)

    # Level 0 unless a later level begins at or before the flat index.
    b_entry = b_flat
    b_width = tl.full((BLOCK_S,), 1, tl.int32)
    offset = 0
    size = seq_len
    width: tl.constexpr = P ** (L - 1)
    for level in tl.static_range(1, L):
        offset += size
        size = size // P
        b_entry = tl.where(b_flat >= offset, b_flat - offset, b_entry)
        b_width = tl.where(b_flat >= offset, P**level, b_width)

    b_first = b_entry * b_width
    if SPOKEN:
        if DOCUMENTS:
            # Nothing ends inside a coarsest entry, so nothing does inside the tokens behind this.
            b_behind = b_first + b_width
            b_next = b_behind // width
            in_next = in_s & (b_behind < seq_len)
            p_next = first_token + i_b * (seq_len // width) + b_next
            b_begin = tl.load(p_next, mask=in_next, other=seq_len)
            b_count = tl.where(b_begin < b_behind, b_width, 1)
        else:
            chunk_len = seq_len // CHUNKS
            b_chunk_end = (b_first // chunk_len + 1) * chunk_len
            b_count = tl.minimum(b_width, b_chunk_end - b_first - b_width + 1)
        b_first += b_width - 1
        b_sum = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    else:
        is_coarsest = b_width == width
        b_count = tl.where(is_coarsest, 0, b_width)
        p_coarsest = of_tensor(i_any, coarsest, HEADS)
        p_coarsest = p_coarsest + (i_bh * (seq_len // width) + b_entry) * D
        from_coarsest = (in_s & is_coarsest)[:, None] & in_d[None, :]
        b_sum = tl.load(p_coarsest[:, None] + i_d[None, :], mask=from_coarsest, other=0)
        b_sum = b_sum.to(tl.float32)

    b_count = tl.where(in_s, b_count, 0)
    to_head = i_b * of_tensor(i_any, stride_b, HEADS)
    to_head += i_h.to(tl.int64) * of_tensor(i_any, stride_h, HEADS)
    # int64: windows can be long
    to_next = tl.full((), 1, tl.int64) * of_tensor(i_any, stride_n, HEADS)
    p_x = of_tensor(i_any, x, HEADS) + to_head
    p_x = p_x + (b_first.to(tl.int64) * to_next)[:, None] + i_d[None, :]
    for token in tl.range(0, tl.max(b_count), loop_unroll_factor=4):
        mask = (token < b_count)[:, None] & in_d[None, :]
        b_sum += tl.load(p_x + token * to_next, mask=mask, other=0).to(tl.float32)
    if not SPOKEN:
        b_tokens = tl.maximum(b_count, 1).to(tl.float32)[:, None]
        b_sum = tl.div_rn(b_sum, tl.broadcast_to(b_tokens, b_sum.shape))
    p_rows = of_tensor(i_any, rows, HEADS)
    p_rows = p_rows + ((i_bh * num_rows + i_s) * D)[:, None] + i_d[None, :]
    tl.store(p_rows, b_sum.to(p_rows.dtype.element_ty), mask=in_s[:, None] & in_d[None, :])


def sum_windows(
    tensors: list[Tensor],
    coarsest: tuple[Tensor, ...] | None,
    index: Tensor,
    geometry: Geometry,
    first_token: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Launch the kernel.

    Args:
        tensors: one or more, each (B, H, N, D) with any H and strides.
        coarsest: of each (B, H, n_{L-1}, D) contiguous, for means; None for sums over spoken-for
            tokens.
        index: int32 (B, Hkv, S), contiguous.
        first_token: with documents, for sums: as in a selection, contiguous.

    Returns:
        Of each (B, H, S, D), contiguous, in its dtype.
    """
    x = rows_contiguous(tensors)
    batch, _, seq_len, head_dim = x[0].shape
    kv_heads, num_rows = index.shape[1:]
    heads = tuple([t.shape[1] for t in x])
    all_heads = sum(heads)
    rows = tuple([t.new_empty(batch, h, num_rows, head_dim) for t, h in zip(x, heads, strict=True)])
    block_d = power_of_two(head_dim)
    block_s = max(1, _TILE // block_d)
    _windows_kernel[(batch * all_heads * ceil_div(num_rows, block_s),)](
        x,
        coarsest,
        index,
        first_token,
        rows,
        seq_len,
        num_rows,
        *strides_of(x),
        HEADS=heads,
        ALL_HEADS=all_heads,
        KV_HEADS=kv_heads,
        BATCH=batch,
        D=head_dim,
        L=geometry.num_levels,
        P=geometry.pooling_factor,
        CHUNKS=geometry.num_chunks,
        SPOKEN=coarsest is None,
        DOCUMENTS=first_token is not None,
        BLOCK_S=block_s,
        BLOCK_D=block_d,
    )
    return rows
