"""The cascade and the order of the sub-sequence, a program for each stratum.

A stratum's share of the sub-sequence begins at a place known beforehand, and so is the number of
its candidates at each level, so no sort is needed: a threshold found by counting on the bits of the
scores says what is refined, and prefix sums say where each entry goes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.ops.triton.geometry import Geometry, ceil_div, geometry_of, power_of_two
from lighthouse.ops.triton.operator import operator
from lighthouse.pyramid import Selection

# Candidates that a program holds in registers. A level with more is gone through in such blocks.
_BLOCK = 8192
# Of a threshold, found in a pass over the keys: 1 or 2. For two three things are counted, at once,
# and half as many counts waited for.
_BITS = 2

# Keys are uint32 in the order of the scores; these three are the key of no number.
# None is the largest number: one more than a threshold must be one.
_FIRST = tl.constexpr(2**32 - 2)
_NAN = tl.constexpr(2**32 - 3)
_EXCLUDED = tl.constexpr(0)


def _num_warps(tile: int) -> int:
    """Warps for a tile of candidates. Few wait less for each other, many have less to do each."""
    return min(max(tile // 256, 4), 16)


@triton.jit
def _key_of(b_score):
    """uint32 in the order of the scores. NaN counts as largest, as in ``torch.sort``."""
    bits = (b_score + 0.0).to(tl.uint32, bitcast=True)  # adding zero unites -0.0 and 0.0
    b_key = tl.where(bits < 2**31, bits | 2**31, bits ^ (2**32 - 1))
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
    b_first = b_i * UNDER
    b_largest = tl.full(b_i.shape, float("-inf"), tl.float32)
    for head in range(HEADS):
        # Unrolled, so that loads don't wait for each other.
        for j in tl.range(0, UNDER, loop_unroll_factor=UNDER if UNDER < 16 else 16):
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
def _held_or_stored(b_held, stored, i, count, HELD: tl.constexpr):
    """A block of a level's keys: the only one, in registers, or one of several, in memory."""
    if HELD:
        return b_held
    return tl.load(stored + i, mask=i < count, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _reaching(
    b_held, stored, count, t, step, BITS: tl.constexpr, FIELD: tl.constexpr, HELD: tl.constexpr
):
    """How many keys reach t + step, t + 2 step, .. t + (2^BITS - 1) step.

    They are packed into one number to be summed at once, the first into its lowest FIELD bits.
    """
    BLOCK: tl.constexpr = b_held.shape[0]
    DTYPE: tl.constexpr = tl.int32 if FIELD * (2**BITS - 1) < 32 else tl.int64
    counts = tl.full((), 0, DTYPE)
    for start in range(0, BLOCK if HELD else count, BLOCK):
        b_key = _held_or_stored(b_held, stored, start + tl.arange(0, BLOCK), count, HELD)
        b_reaches = tl.full([BLOCK], 0, DTYPE)
        for digit in tl.static_range(1, 2**BITS):
            b_reaches += (b_key >= t + digit * step).to(DTYPE) << (FIELD * (digit - 1))
        counts += tl.sum(b_reaches)
    return counts


@triton.jit
def _threshold(b_held, stored, count, wanted, BITS: tl.constexpr, HELD: tl.constexpr):
    """A number that ``wanted`` keys reach, and 0.

    Or, where ties allow none, the ``wanted``-th largest key and how many of its equals are wanted.
    Found BITS bits at a time, from the highest, as the largest number that at least ``wanted`` keys
    reach; seldom are all bits needed.
    """
    FIELD: tl.constexpr = 31 if BITS == 1 else 10 if HELD and b_held.shape[0] <= 512 else 21
    t = tl.full((), 0, tl.uint32)
    reached = tl.full((), 0, tl.int32)
    step = tl.full((), 2 ** (32 - BITS), tl.uint32)
    while (reached != wanted) & (step != 0):
        counts = _reaching(b_held, stored, count, t, step, BITS, FIELD, HELD)
        base = t
        for digit in tl.static_range(1, 2**BITS):
            at_digit = ((counts >> (FIELD * (digit - 1))) & (2**FIELD - 1)).to(tl.int32)
            reached = tl.where(at_digit >= wanted, at_digit, reached)
            t = tl.where(at_digit >= wanted, base + digit * step, t)
        step = step >> BITS
    equals = tl.full((), 0, tl.int32)
    if reached > wanted:
        equals = wanted - _reaching(b_held, stored, count, t, 1, 1, 31, HELD)
    return t, equals


@triton.jit
def _taken(b_key, t, equals, seen):
    """Which of a block's keys are wanted, and the equals of ``t`` up to here: ``seen`` before."""
    b_taken = b_key >= t
    if equals > 0:
        b_equal = (b_key == t).to(tl.int32)
        b_taken = b_taken & ((b_key != t) | (seen + tl.cumsum(b_equal) <= equals))
        seen += tl.sum(b_equal)
    return b_taken, seen


@triton.jit
def _level_start(LEVEL: tl.constexpr, P: tl.constexpr, seq_len):
    """Flat index of the level's first entry."""
    start = tl.full((), 0, tl.int64)
    for finer in tl.static_range(LEVEL):
        start += seq_len // P**finer
    return start


@triton.jit
def _entries(
    i, mask, refined, first, LEVEL: tl.constexpr, L: tl.constexpr, P: tl.constexpr, M: tl.constexpr
):
    """Of candidates ``i`` of the stratum: position within the level, and coarser rows before it."""
    if LEVEL == L - 1:
        return first + i, tl.zeros_like(i)
    p_parent = refined + (LEVEL + 1) * 2 * M + i // P
    b_parent = tl.load(p_parent, mask=mask, other=0)
    return b_parent * P + i % P, tl.load(p_parent + M, mask=mask, other=0)


@triton.jit
def _is_first(b_e, mask, first_token, LEVEL: tl.constexpr, L: tl.constexpr, P: tl.constexpr):
    """Whether a document or a chunk begins with entries ``b_e`` of the level."""
    OF_COARSEST: tl.constexpr = P ** (L - 1 - LEVEL)
    b_coarsest = b_e // OF_COARSEST
    b_begin = tl.load(first_token + b_coarsest, mask=mask, other=-1)
    return (b_e % OF_COARSEST == 0) & (b_begin == b_coarsest * P ** (L - 1))


@triton.jit
def _refine(
    query_maxima,
    key_maxima,
    first_token,
    head_stride,
    slots_below,
    num_below,
    keys,
    counts,
    refined,
    capacity,
    first,
    count,
    chunk_start,
    chunk_first,
    LEVEL: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    G: tl.constexpr,
    COVER_PREFIX: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_MAX: tl.constexpr,
    BITS: tl.constexpr,
):
    """Choose M of the level's candidates, ``count``: ``counts`` and ``refined`` of this level."""
    HELD: tl.constexpr = TILE <= BLOCK_MAX
    BLOCK: tl.constexpr = TILE if HELD else BLOCK_MAX
    UNDER: tl.constexpr = P ** (LEVEL - 1)
    span = BLOCK if HELD else count
    queries = keys + capacity
    b_query = tl.full([BLOCK], _EXCLUDED, tl.uint32)
    b_key = b_query
    for start in range(0, span, BLOCK):
        i = start + tl.arange(0, BLOCK)
        in_i = i < count
        b_e, _ = _entries(i, in_i, refined, first, LEVEL, L, P, M)
        # The keys' scores are not needed before the queries' are searched, but on their way then.
        b_score = _score_of(query_maxima, b_e, in_i, chunk_start, UNDER, CAUSAL, G, head_stride)
        b_key_score = _score_of(key_maxima, b_e, in_i, chunk_start, UNDER, CAUSAL, 1, head_stride)
        b_query = _key_of(b_score)
        b_key = _key_of(b_key_score)
        if COVER_PREFIX and DOCUMENTS:
            b_is_first = _is_first(b_e, in_i, first_token, LEVEL, L, P)
            b_query = tl.where(b_is_first, _FIRST, b_query)
            b_key = tl.where(b_is_first, _FIRST, b_key)
        elif COVER_PREFIX:
            b_query = tl.where(b_e == chunk_first, _FIRST, b_query)
        b_query = tl.where(in_i, b_query, _EXCLUDED)
        b_key = tl.where(in_i, b_key, _EXCLUDED)
        if not HELD:
            tl.store(queries + i, b_query, mask=in_i)
            tl.store(keys + i, b_key, mask=in_i)
    # No row, until it turns out otherwise. Nothing waits for these stores.
    for start in range(0, num_below, BLOCK):
        i = start + tl.arange(0, BLOCK)
        tl.store(slots_below + i, -1, mask=i < num_below)
    if not HELD:
        tl.debug_barrier()
    t, equals = _threshold(b_query, queries, count, M // 2, BITS, HELD)
    seen = tl.full((), 0, tl.int32)
    for start in range(0, span, BLOCK):
        i = start + tl.arange(0, BLOCK)
        b_query = _held_or_stored(b_query, queries, i, count, HELD)
        b_key = _held_or_stored(b_key, keys, i, count, HELD)
        by_query, seen = _taken(b_query, t, equals, seen)
        b_key = tl.where(by_query, _EXCLUDED, b_key)
        if not HELD:
            tl.store(keys + i, b_key, mask=i < count)
    if not HELD:
        tl.debug_barrier()
    t, equals = _threshold(b_key, keys, count, M // 2, BITS, HELD)
    seen = tl.full((), 0, tl.int32)
    total = tl.full((), 0, tl.int32)
    for start in range(0, span, BLOCK):
        i = start + tl.arange(0, BLOCK)
        in_i = i < count
        b_e, b_before = _entries(i, in_i, refined, first, LEVEL, L, P, M)
        b_key = _held_or_stored(b_key, keys, i, count, HELD)
        by_key, seen = _taken(b_key, t, equals, seen)
        taken = by_key | (in_i & (b_key == _EXCLUDED))
        b_count = total + tl.cumsum(taken.to(tl.int32))
        total += tl.sum(taken.to(tl.int32))
        tl.store(counts + LEVEL * capacity + i, b_count, mask=in_i)
        p_refined = refined + LEVEL * 2 * M + b_count - 1
        tl.store(p_refined, b_e, mask=taken)
        tl.store(p_refined + M, b_before + i, mask=taken)
    tl.debug_barrier()


@triton.jit
def _place(
    index,
    slot,
    counts,
    refined,
    capacity,
    level_start,
    stratum_start,
    first,
    count,
    LEVEL: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_MAX: tl.constexpr,
):
    """Write the rows of the level's candidates.

    An entry comes after all candidates before it in its level, after all that is below it or them,
    and after every coarser candidate before its own ancestors. In the example of docs/method.md:

        level 2   candidates   0  1  2  3     refined 2 and 3: counts 0 0 1 2
        level 1   candidates   4  5  6  7     refined 4 and 7: counts 1 1 1 2
        level 0   candidates   8  9 14 15

        entry 5 of level 1 is candidate 1: behind 1 candidate of its level, behind the 2 children of
        the 1 refined one up to it, behind the 2 coarser ones before its parent 2: row 1 + 2 + 2 = 5
    """
    HELD: tl.constexpr = TILE <= BLOCK_MAX
    BLOCK: tl.constexpr = TILE if HELD else BLOCK_MAX
    for start in range(0, BLOCK if HELD else count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        in_i = i < count
        b_e, b_before = _entries(i, in_i, refined, first, LEVEL, L, P, M)
        b_row = stratum_start + i + b_before
        b_under = i + 1  # candidates of the level up to and including this one
        for step in tl.static_range(LEVEL):
            p_count = counts + (LEVEL - step) * capacity + b_under - 1
            b_under = P * tl.load(p_count, mask=in_i & (b_under > 0), other=0)
            b_row += b_under
        b_flat = level_start + b_e
        tl.store(index + b_row, b_flat.to(tl.int32), mask=in_i)
        tl.store(slot + b_flat, b_row.to(tl.int32), mask=in_i)


@triton.jit
def _select_kernel(
    query_maxima,
    key_maxima,
    first_token,
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
    DOCUMENTS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    CAUSAL: tl.constexpr,
    COARSEST_WIDTH: tl.constexpr,
    COARSEST_TILE: tl.constexpr,  # a power of two that holds the candidates of level L-1 ..
    FINER_TILE: tl.constexpr,  # .. and of any other level
    BLOCK_MAX: tl.constexpr,
    BITS: tl.constexpr,
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
    first_token += i_bk // KV_HEADS * (seq_len // COARSEST_WIDTH)
    index += i_bk * num_rows
    slot += i_bk * num_entries
    # Scratch of the program:
    #   counts   (L - 1) x capacity  levels 1 .. L-1: refined candidates up to and including each
    #   refined  (L - 1) x 2 x M     each level's refined candidates: position in the level, and
    #                                rows of this level and coarser ones before the first child
    #   keys     2 x capacity        of the level at hand, if registers don't hold them
    # What one thread writes others read, after a barrier.
    scratch += tl.program_id(0).to(tl.int64) * ((L + 1) * capacity + (L - 1) * 2 * M)
    counts = scratch - capacity  # so that level l's are at l * capacity
    refined = scratch + (L - 1) * capacity - 2 * M  # likewise at l * 2 * M
    keys = scratch + (L - 1) * (capacity + 2 * M)

    # The cascade, from the coarsest level down.
    for LEVEL in tl.static_range(L - 1, 0, -1):
        width_below = P ** (L - LEVEL)
        _refine(
            query_maxima,
            key_maxima,
            first_token,
            level1,
            slot + _level_start(LEVEL - 1, P, seq_len) + first.to(tl.int64) * width_below,
            (last - first) * width_below,
            keys,
            counts,
            refined,
            capacity,
            first,
            (last - first) if LEVEL == L - 1 else M * P,
            chunk_start,
            chunk * per_chunk * P ** (L - 1 - LEVEL),
            LEVEL,
            L,
            P,
            M,
            G,
            COVER_PREFIX,
            DOCUMENTS,
            CAUSAL,
            COARSEST_TILE if LEVEL == L - 1 else FINER_TILE,
            BLOCK_MAX,
            BITS,
        )

    stratum_start = first.to(tl.int64) + i_t.to(tl.int64) * (L - 1) * M * P
    for LEVEL in tl.static_range(L):
        _place(
            index,
            slot,
            counts,
            refined,
            capacity,
            _level_start(LEVEL, P, seq_len),
            stratum_start,
            first,
            (last - first) if LEVEL == L - 1 else M * P,
            LEVEL,
            L,
            P,
            M,
            COARSEST_TILE if LEVEL == L - 1 else FINER_TILE,
            BLOCK_MAX,
        )


def _empty_outputs(
    query_maxima: Tensor, key_maxima: Tensor, _: Any, geometry: list[int]
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


@operator(_empty_outputs)
def _select(
    query_maxima: Tensor, key_maxima: Tensor, first_token: Tensor | None, geometry: list[int]
) -> tuple[Tensor, Tensor]:
    g = Geometry(*geometry)
    batch, kv_heads, level1 = key_maxima.shape
    seq_len = level1 * g.pooling_factor
    index, slot = _empty_outputs(query_maxima, key_maxima, first_token, geometry)
    strata = g.topk // g.stratum // g.num_chunks
    longest = ceil_div(seq_len // g.coarsest_width // g.num_chunks, strata)
    capacity = max(longest, g.stratum * g.pooling_factor)
    programs = batch * kv_heads * strata * g.num_chunks
    of_levels = (g.num_levels + 1) * capacity + (g.num_levels - 1) * 2 * g.stratum
    scratch = index.new_empty(programs * of_levels)
    tiles = [power_of_two(n) for n in (longest, g.stratum * g.pooling_factor)]
    _select_kernel[(programs,)](
        query_maxima.contiguous(),
        key_maxima.contiguous(),
        index if first_token is None else first_token.contiguous(),
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
        DOCUMENTS=first_token is not None,
        KV_HEADS=kv_heads,
        CAUSAL=bool(g.causal),
        COARSEST_WIDTH=g.coarsest_width,
        COARSEST_TILE=tiles[0],
        FINER_TILE=tiles[1],
        BLOCK_MAX=_BLOCK,
        BITS=_BITS if capacity < 2**20 else 1,  # so that two counts fit beside a third
        num_warps=_num_warps(min(max(tiles), _BLOCK)),
    )
    return index, slot


def select(
    query_maxima_BHE: Tensor,
    key_maxima_BKE: Tensor,
    config: LighthouseConfig,
    first_token_BC: Tensor | None = None,
) -> Selection:
    """As in the reference."""
    index, slot = _select(query_maxima_BHE, key_maxima_BKE, first_token_BC, geometry_of(config))
    return Selection(index, slot, first_token_BC)
