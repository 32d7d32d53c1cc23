"""The one pass over every token: coarsest means, and the level-1 entries' scores by norm."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.ops.triton.geometry import Geometry, geometry_of

# Elements of a tile, and programs that fill the largest GPUs several times over.
_TILE = 2048
_ENOUGH_PROGRAMS = 2048


@triton.jit
def _summarize_kernel(
    x,
    coarsest,
    maxima,
    num_coarsest,
    stride_b,
    stride_h,
    stride_n,
    H: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,  # tokens under a coarsest entry
    CHUNKS: tl.constexpr,
    SCORED: tl.constexpr,
    CAUSAL: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BATCH_HEADS: tl.constexpr,
):
    """A program has BLOCK_E coarsest entries of one head, and walks through their tokens together.

    Heads are neighbours in the grid, since in the trainer they are neighbours in memory.
    """
    i_bh = tl.program_id(0) % BATCH_HEADS
    i_e = tl.program_id(0) // BATCH_HEADS * BLOCK_E + tl.arange(0, BLOCK_E)
    i_d = tl.arange(0, BLOCK_D)
    in_e = i_e < num_coarsest
    mask = in_e[:, None] & (i_d < D)[None, :]
    p_head = x + (i_bh // H).to(tl.int64) * stride_b + (i_bh % H).to(tl.int64) * stride_h
    # (BLOCK_E, BLOCK_D): the first token of each entry
    p_x = p_head + (i_e.to(tl.int64) * WIDTH * stride_n)[:, None] + i_d[None, :]
    p_maxima = maxima + (i_bh.to(tl.int64) * num_coarsest + i_e) * (WIDTH // P)

    to_next = tl.full((), 1, tl.int64) * stride_n  # int64: windows can be long
    b_sum = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    b_largest = tl.zeros((BLOCK_E,), tl.float32)  # square of the norms in the window at hand
    if SCORED and CAUSAL:
        # The first window begins in the entry before, whose program reads these tokens as well.
        in_before = mask & (i_e % (num_coarsest // CHUNKS) > 0)[:, None]
        for token in tl.range(1, P, loop_unroll_factor=UNROLL):
            b_x = tl.load(p_x - token * to_next, mask=in_before, other=0).to(tl.float32)
            b_square = tl.sum(b_x * b_x, axis=1)
            b_largest = tl.maximum(b_largest, b_square, propagate_nan=tl.PropagateNan.ALL)
    for child in range(WIDTH // P):
        p_child = p_x + child * P * to_next
        b_x = tl.load(p_child, mask=mask, other=0).to(tl.float32)
        b_sum += b_x
        if SCORED:
            b_square = tl.sum(b_x * b_x, axis=1)
            if CAUSAL:
                b_largest = tl.maximum(b_largest, b_square, propagate_nan=tl.PropagateNan.ALL)
                tl.store(p_maxima + child, tl.sqrt_rn(b_largest), mask=in_e)
                b_largest = tl.zeros((BLOCK_E,), tl.float32)
            else:
                b_largest = b_square
        for token in tl.range(1, P, loop_unroll_factor=UNROLL):
            b_x = tl.load(p_child + token * to_next, mask=mask, other=0).to(tl.float32)
            b_sum += b_x
            if SCORED:
                b_square = tl.sum(b_x * b_x, axis=1)
                b_largest = tl.maximum(b_largest, b_square, propagate_nan=tl.PropagateNan.ALL)
        if SCORED and not CAUSAL:
            tl.store(p_maxima + child, tl.sqrt_rn(b_largest), mask=in_e)
    p_coarsest = coarsest + ((i_bh.to(tl.int64) * num_coarsest + i_e) * D)[:, None] + i_d[None, :]
    tl.store(p_coarsest, tl.div_rn(b_sum, WIDTH * 1.0).to(coarsest.dtype.element_ty), mask=mask)


@torch.library.custom_op("lighthouse::summarize", mutates_args=())
def _summarize(x: Tensor, geometry: list[int], scored: bool) -> tuple[Tensor, Tensor]:
    g = Geometry(*geometry)
    batch, heads, _, head_dim = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    coarsest, maxima = _empty_outputs(x, geometry, scored)
    num_coarsest = coarsest.shape[2]
    block_d = triton.next_power_of_2(head_dim)
    block_e = max(1, _TILE // block_d)
    while block_e > 1 and batch * heads * triton.cdiv(num_coarsest, block_e) < _ENOUGH_PROGRAMS:
        block_e //= 2
    _summarize_kernel[(batch * heads * triton.cdiv(num_coarsest, block_e),)](
        x,
        coarsest,
        maxima,
        num_coarsest,
        *x.stride()[:3],
        H=heads,
        D=head_dim,
        P=g.pooling_factor,
        WIDTH=g.coarsest_width,
        CHUNKS=g.num_chunks,
        SCORED=scored,
        CAUSAL=bool(g.causal),
        UNROLL=min(g.pooling_factor - 1, 4),
        BLOCK_E=block_e,
        BLOCK_D=block_d,
        BATCH_HEADS=batch * heads,
    )
    return coarsest, maxima


@_summarize.register_fake
def _empty_outputs(x: Tensor, geometry: list[int], scored: bool) -> tuple[Tensor, Tensor]:
    g = Geometry(*geometry)
    batch, heads, seq_len, head_dim = x.shape
    coarsest = x.new_empty(batch, heads, seq_len // g.coarsest_width, head_dim)
    level1 = seq_len // g.pooling_factor if scored else 0
    return coarsest, x.new_empty(batch, heads, level1, dtype=torch.float32)


def summarize(
    x_BHND: Tensor, config: LighthouseConfig, *, scored: bool
) -> tuple[Tensor, Tensor | None]:
    """As in the reference; the coarsest means carry no gradient, ``gather`` accounts for it."""
    coarsest, maxima = _summarize(x_BHND.detach(), geometry_of(config), scored)
    return coarsest, maxima if scored else None
