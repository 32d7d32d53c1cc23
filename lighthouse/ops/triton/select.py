"""The cascade and the order of the sub-sequence, a program for each stratum.

A stratum's share of the sub-sequence begins at a place known beforehand, and so is the number of
its candidates at each level, so no sort is needed: a threshold found by counting on the bits of the
scores says what is refined, and prefix sums say where each entry goes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.ops.triton.geometry import Geometry, geometry_of
from lighthouse.pyramid import Selection

_BLOCK = 1024

# Keys are int32 with the order of the scores; these three are the key of no number.
_FIRST = tl.constexpr(2**31 - 1)
_NAN = tl.constexpr(2**31 - 2)
_EXCLUDED = tl.constexpr(-(2**31))


@triton.jit
def _key_of(b_score):
    """int32 in the order of the scores. NaN counts as largest, as in ``torch.sort``."""
    bits = (b_score + 0.0).to(tl.int32, bitcast=True)  # adding zero unites -0.0 and 0.0
    b_key = tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return tl.where(b_score != b_score, _NAN, b_key)


@triton.jit
def _score_of(
    maxima,
    b_i,
    mask,
    chunk_start,
    UNDER: tl.constexpr,
    CAUSAL: tl.constexpr,
    HEADS: tl.constexpr,
    head_stride,
):
    """Score of entries ``b_i``, each over UNDER level-1 entries, the largest of HEADS heads.

    These are the ones under the entry, or as many that end with its first, from the chunk's on.
    """
    b_first = b_i.to(tl.int64) * UNDER
    b_largest = tl.load(maxima + b_first, mask=mask, other=0.0)
    for head in range(HEADS):
        for j in range(UNDER):
            if CAUSAL:
                b_j = b_first - j
                exists = mask & (b_j >= chunk_start)
            else:
                b_j = b_first + j
                exists = mask
            b_score = tl.load(maxima + head * head_stride + b_j, mask=exists, other=float("-inf"))
            b_largest = tl.maximum(b_largest, b_score, propagate_nan=tl.PropagateNan.ALL)
    return b_largest


@triton.jit
def _threshold(keys, count, wanted, BLOCK: tl.constexpr):
    """The ``wanted``-th largest of ``count`` keys, and how many of its equals are wanted.

    Found bit by bit, from the highest, as the largest number that ``wanted`` keys reach. For that
    keys are shifted to begin at zero.
    """
    t = tl.full((), 0, tl.int64)
    for bit in range(32):
        trial = t + (tl.full((), 1, tl.int64) << (31 - bit))
        reached = 0
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            b_key = tl.load(keys + i, mask=i < count, other=_EXCLUDED).to(tl.int64) + 2**31
            reached += tl.sum((b_key >= trial).to(tl.int32))
        t = tl.where(reached >= wanted, trial, t)
    above = 0
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        b_key = tl.load(keys + i, mask=i < count, other=_EXCLUDED).to(tl.int64) + 2**31
        above += tl.sum((b_key > t).to(tl.int32))
    return t, wanted - above


@triton.jit
def _taken(keys, i, count, t, wanted_equals, seen_equals):
    """Which of the block's keys are above the threshold or among its first equals."""
    b_key = tl.load(keys + i, mask=i < count, other=_EXCLUDED).to(tl.int64) + 2**31
    equal = ((b_key == t) & (i < count)).to(tl.int32)
    among_first = seen_equals + tl.cumsum(equal) <= wanted_equals
    taken = (i < count) & ((b_key > t) | ((equal == 1) & among_first))
    return taken, seen_equals + tl.sum(equal)


@triton.jit
def _entries(i, mask, refined, first, LEVEL: tl.constexpr, L: tl.constexpr, P: tl.constexpr, M):
    """Position within its level of candidate ``i`` of the stratum."""
    if LEVEL == L - 1:
        return first + i
    return tl.load(refined + (LEVEL + 1) * M + i // P, mask=mask, other=0) * P + i % P


@triton.jit
def _select_kernel(
    query_maxima,
    key_maxima,
    index,
    slot,
    scratch,
    seq_len,
    num_rows,
    num_entries,
    capacity,  # of a level's candidates in the scratch space
    G: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    STRATA: tl.constexpr,  # per chunk
    CHUNKS: tl.constexpr,
    COVER_PREFIX: tl.constexpr,
    CAUSAL: tl.constexpr,
    COARSEST_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_t = tl.program_id(0) % (STRATA * CHUNKS)
    i_bk = (tl.program_id(0) // (STRATA * CHUNKS)).to(tl.int64)
    level1 = seq_len // P
    per_chunk = seq_len // COARSEST_WIDTH // CHUNKS
    chunk = i_t // STRATA
    chunk_start = chunk * (level1 // CHUNKS)
    # int64: strata times entries can exceed 2^31
    in_chunk = (i_t % STRATA).to(tl.int64)
    first = (chunk * per_chunk + in_chunk * per_chunk // STRATA).to(tl.int32)
    last = (chunk * per_chunk + (in_chunk + 1) * per_chunk // STRATA).to(tl.int32)
    query_maxima += i_bk * G * level1
    key_maxima += i_bk * level1
    index += i_bk * num_rows
    slot += i_bk * num_entries
    # Scratch of the program:
    #   keys     capacity              of the level at hand
    #   counts   (L - 1) x capacity    levels 1 .. L-1: refined candidates up to and including each
    #   refined  L x M                 each level's refined candidates: position in the level
    #   places   L x M                 the same ones: place among the candidates
    # What one thread writes others read, after a barrier.
    keys = scratch + tl.program_id(0).to(tl.int64) * (L * capacity + 2 * L * M)
    counts = keys  # level l's at l * capacity: level 0, which has none, leaves its place to keys
    refined = keys + L * capacity
    places = refined + L * M

    # The cascade, from the coarsest level down.
    for LEVEL in tl.static_range(L - 1, 0, -1):
        count = (last - first) if LEVEL == L - 1 else M * P
        chunk_size = per_chunk * P ** (L - 1 - LEVEL)
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            in_i = i < count
            b_e = _entries(i, in_i, refined, first, LEVEL, L, P, M)
            b_score = _score_of(
                query_maxima, b_e, in_i, chunk_start, P ** (LEVEL - 1), CAUSAL, G, level1
            )
            b_key = _key_of(b_score)
            if COVER_PREFIX:
                b_key = tl.where(b_e % chunk_size == 0, _FIRST, b_key)
            tl.store(keys + i, b_key, mask=in_i)
        tl.debug_barrier()
        t, equals = _threshold(keys, count, M // 2, BLOCK)
        seen = 0
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            in_i = i < count
            by_query, seen = _taken(keys, i, count, t, equals, seen)
            b_e = _entries(i, in_i, refined, first, LEVEL, L, P, M)
            b_score = _score_of(
                key_maxima, b_e, in_i, chunk_start, P ** (LEVEL - 1), CAUSAL, 1, level1
            )
            b_key = _key_of(b_score)
            tl.debug_barrier()
            tl.store(keys + i, tl.where(by_query, _EXCLUDED, b_key), mask=in_i)
        tl.debug_barrier()
        t, equals = _threshold(keys, count, M // 2, BLOCK)
        seen = 0
        total = 0
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            in_i = i < count
            by_key, seen = _taken(keys, i, count, t, equals, seen)
            b_key = tl.load(keys + i, mask=in_i, other=0)
            taken = by_key | (in_i & (b_key == _EXCLUDED))
            b_count = total + tl.cumsum(taken.to(tl.int32))
            total += tl.sum(taken.to(tl.int32))
            b_e = _entries(i, in_i, refined, first, LEVEL, L, P, M)
            tl.store(counts + LEVEL * capacity + i, b_count, mask=in_i)
            tl.store(refined + LEVEL * M + b_count - 1, b_e, mask=taken)
            tl.store(places + LEVEL * M + b_count - 1, i, mask=taken)
        tl.debug_barrier()

    # The order: an entry comes after all candidates before it in its level, after all that is below
    # it or them, and after every coarser candidate before its own ancestors.
    stratum_start = first.to(tl.int64) + i_t.to(tl.int64) * (L - 1) * M * P
    offset = tl.full((), 0, tl.int64)
    level_size = seq_len
    for LEVEL in tl.static_range(L):
        count = (last - first) if LEVEL == L - 1 else M * P
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            in_i = i < count
            b_row = stratum_start + i
            b_under = i + 1  # candidates of the level up to and including this one
            for step in tl.static_range(LEVEL):
                p_count = counts + (LEVEL - step) * capacity + b_under - 1
                b_under = P * tl.load(p_count, mask=in_i & (b_under > 0), other=0)
                b_row += b_under
            b_above = i
            for step in tl.static_range(L - 1 - LEVEL):
                p_place = places + (LEVEL + 1 + step) * M + b_above // P
                b_above = tl.load(p_place, mask=in_i, other=0)
                b_row += b_above
            b_flat = offset + _entries(i, in_i, refined, first, LEVEL, L, P, M)
            tl.store(index + b_row, b_flat.to(tl.int32), mask=in_i)
            tl.store(slot + b_flat, b_row.to(tl.int32), mask=in_i)
        offset += level_size
        level_size = level_size // P


@torch.library.custom_op("lighthouse::select", mutates_args=())
def _select(query_maxima: Tensor, key_maxima: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    g = Geometry(*geometry)
    batch, kv_heads, level1 = key_maxima.shape
    seq_len = level1 * g.pooling_factor
    index, slot = _empty_outputs(query_maxima, key_maxima, geometry)
    slot.fill_(-1)
    strata = g.topk // g.stratum // g.num_chunks
    longest = triton.cdiv(seq_len // g.coarsest_width // g.num_chunks, strata)
    capacity = max(longest, g.stratum * g.pooling_factor)
    programs = batch * kv_heads * strata * g.num_chunks
    scratch = index.new_empty(programs * g.num_levels * (capacity + 2 * g.stratum))
    _select_kernel[(programs,)](
        query_maxima.contiguous(),
        key_maxima.contiguous(),
        index,
        slot,
        scratch,
        seq_len,
        index.shape[2],
        slot.shape[2],
        capacity,
        G=query_maxima.shape[1] // kv_heads,
        L=g.num_levels,
        P=g.pooling_factor,
        M=g.stratum,
        STRATA=strata,
        CHUNKS=g.num_chunks,
        COVER_PREFIX=bool(g.cover_prefix),
        CAUSAL=bool(g.causal),
        COARSEST_WIDTH=g.coarsest_width,
        BLOCK=min(_BLOCK, triton.next_power_of_2(capacity)),
    )
    return index, slot


@_select.register_fake
def _empty_outputs(
    query_maxima: Tensor, key_maxima: Tensor, geometry: list[int]
) -> tuple[Tensor, Tensor]:
    g = Geometry(*geometry)
    batch, kv_heads, level1 = key_maxima.shape
    seq_len = level1 * g.pooling_factor
    rows = seq_len // g.coarsest_width + (g.num_levels - 1) * g.pooling_factor * g.topk
    entries = sum(seq_len // g.pooling_factor**level for level in range(g.num_levels))
    return (
        key_maxima.new_empty(batch, kv_heads, rows, dtype=torch.int32),
        key_maxima.new_empty(batch, kv_heads, entries, dtype=torch.int32),
    )


def select(query_maxima_BHE: Tensor, key_maxima_BKE: Tensor, config: LighthouseConfig) -> Selection:
    """As in the reference."""
    return Selection(*_select(query_maxima_BHE, key_maxima_BKE, geometry_of(config)))
