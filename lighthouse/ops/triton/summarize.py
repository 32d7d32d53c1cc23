"""The one pass over every token: coarsest means, and the level-1 entries' scores by norm."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.inputs import QKV
from lighthouse.ops.triton.geometry import Geometry, ceil_div, geometry_of, power_of_two
from lighthouse.ops.triton.operator import operator
from lighthouse.ops.triton.tensors import head_of, of_tensor, rows_contiguous, strides_of

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
    HEADS: tl.constexpr,
    ALL_HEADS: tl.constexpr,
    BATCH: tl.constexpr,
    D: tl.constexpr,
    P: tl.constexpr,
    WIDTH: tl.constexpr,  # tokens under a coarsest entry
    CHUNKS: tl.constexpr,
    SCORED: tl.constexpr,
    CAUSAL: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A program has BLOCK_E coarsest entries of one head of a tensor; see tensors.py.

    It walks through their tokens together.
    """
    i_any = tl.program_id(0) % ALL_HEADS
    i_b = (tl.program_id(0) // ALL_HEADS % BATCH).to(tl.int64)
    i_e = tl.program_id(0) // (ALL_HEADS * BATCH) * BLOCK_E + tl.arange(0, BLOCK_E)
    i_d = tl.arange(0, BLOCK_D)
    in_e = i_e < num_coarsest
    mask = in_e[:, None] & (i_d < D)[None, :]
    i_h = head_of(i_any, HEADS).to(tl.int64)
    i_bh = i_b * of_tensor(i_any, HEADS, HEADS) + i_h
    to_head = i_b * of_tensor(i_any, stride_b, HEADS) + i_h * of_tensor(i_any, stride_h, HEADS)
    # int64: windows can be long
    to_next = tl.full((), 1, tl.int64) * of_tensor(i_any, stride_n, HEADS)
    # (BLOCK_E, BLOCK_D): the first token of each entry
    p_x = of_tensor(i_any, x, HEADS) + to_head
    p_x = p_x + (i_e.to(tl.int64) * WIDTH * to_next)[:, None] + i_d[None, :]
    if SCORED:
        p_maxima = of_tensor(i_any, maxima, HEADS) + (i_bh * num_coarsest + i_e) * (WIDTH // P)

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
    p_coarsest = of_tensor(i_any, coarsest, HEADS)
    p_coarsest = p_coarsest + ((i_bh * num_coarsest + i_e) * D)[:, None] + i_d[None, :]
    tl.store(p_coarsest, tl.div_rn(b_sum, WIDTH * 1.0).to(p_coarsest.dtype.element_ty), mask=mask)


def _empty_outputs(
    q: Tensor, k: Tensor, v: Tensor, geometry: list[int], scored: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = Geometry(*geometry)
    batch, heads, seq_len, head_dim = q.shape
    kv_heads = k.shape[1]
    coarsest = seq_len // g.coarsest_width
    level1 = seq_len // g.pooling_factor if scored else 0
    return (
        q.new_empty(batch, heads, coarsest, head_dim),
        k.new_empty(batch, kv_heads, coarsest, head_dim),
        v.new_empty(batch, kv_heads, coarsest, head_dim),
        q.new_empty(batch, heads, level1, dtype=torch.float32),
        k.new_empty(batch, kv_heads, level1, dtype=torch.float32),
    )


@operator(_empty_outputs)
def _summarize(
    q: Tensor, k: Tensor, v: Tensor, geometry: list[int], scored: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    outputs = _empty_outputs(q, k, v, geometry, scored)
    q_coarsest, k_coarsest, v_coarsest, query_maxima, key_maxima = outputs
    g = Geometry(*geometry)
    if scored:
        _launch(g, [q, k], (q_coarsest, k_coarsest), (query_maxima, key_maxima))
        # On their own: a kernel that scores some of its tensors needs more registers for all.
        _launch(g, [v], (v_coarsest,), None)
    else:
        _launch(g, [q, k, v], (q_coarsest, k_coarsest, v_coarsest), None)
    return outputs


def _launch(
    g: Geometry,
    tensors: list[Tensor],
    coarsest: tuple[Tensor, ...],
    maxima: tuple[Tensor, ...] | None,
) -> None:
    x = rows_contiguous(tensors)
    batch, _, _, head_dim = x[0].shape
    heads = tuple([t.shape[1] for t in x])
    all_heads = sum(heads)
    num_coarsest = coarsest[0].shape[2]
    block_d = power_of_two(head_dim)
    block_e = max(1, _TILE // block_d)
    # Counted for the first tensor alone. The tile's shape decides the order in which a norm is
    # summed, so that its bits would depend on what else is in the launch.
    while block_e > 1 and batch * heads[0] * ceil_div(num_coarsest, block_e) < _ENOUGH_PROGRAMS:
        block_e //= 2
    _summarize_kernel[(batch * all_heads * ceil_div(num_coarsest, block_e),)](
        x,
        coarsest,
        maxima,
        num_coarsest,
        *strides_of(x),
        HEADS=heads,
        ALL_HEADS=all_heads,
        BATCH=batch,
        D=head_dim,
        P=g.pooling_factor,
        WIDTH=g.coarsest_width,
        CHUNKS=g.num_chunks,
        SCORED=maxima is not None,
        CAUSAL=bool(g.causal),
        UNROLL=min(g.pooling_factor - 1, 4),
        BLOCK_E=block_e,
        BLOCK_D=block_d,
    )


def summarize(
    qkv: QKV, config: LighthouseConfig, *, scored: bool
) -> tuple[QKV, tuple[Tensor, Tensor] | None]:
    """As in the reference; the coarsest means carry no gradient, ``gather`` accounts for it."""
    q, k, v = qkv
    outputs = _summarize(q.detach(), k.detach(), v.detach(), geometry_of(config), scored)
    q_coarsest, k_coarsest, v_coarsest, query_maxima, key_maxima = outputs
    maxima = (query_maxima, key_maxima) if scored else None
    return (q_coarsest, k_coarsest, v_coarsest), maxima
