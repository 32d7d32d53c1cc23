"""A brute-force oracle of Lighthouse Attention: Python loops over entries, float64 NumPy.

It is written from the definition alone and shares no code with the library (of LighthouseConfig it
reads the fields only), so that agreement means something. It is slow: keep the sizes tiny.

Shape suffixes: B batch, H key/value heads, Q query heads (G = Q / H share one key/value head),
N tokens, D head dimension, S entries in the sub-sequence. An entry is a pair (level, i) that covers
tokens i * p**level .. (i + 1) * p**level - 1 of the whole sequence.

Where the definition leaves room, the oracle assumes:
- query head h belongs to key/value head h // G, as in `scaled_dot_product_attention`;
- the scorers `dilated` and `gla` use the scale 1/sqrt(D);
- in their first pass each of the G query heads of a group gives one score per token, and so it
  does in the second (k in the place of q, that head's q in the place of k, the same v); the group's
  score is the largest of the G;
- `gla` runs in the same `dilation` interleaved subsequences as `dilated`.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from lighthouse import LighthouseConfig

Entry = tuple[int, int]
Starts = Sequence[int]
"""With which tokens the documents of a sequence begin."""


# ---- geometry


def num_entries(config: LighthouseConfig, seq_len: int) -> int:
    """Entries of the whole pyramid: the flat indices are 0 .. num_entries - 1."""
    return sum(seq_len // config.pooling_factor**level for level in range(config.num_levels))


def flat_of(config: LighthouseConfig, seq_len: int, entry: Entry) -> int:
    level, i = entry
    return sum(seq_len // config.pooling_factor**finer for finer in range(level)) + i


def entry_of(config: LighthouseConfig, seq_len: int, flat: int) -> Entry:
    for level in range(config.num_levels):
        size = seq_len // config.pooling_factor**level
        if flat < size:
            return level, flat
        flat -= size
    raise IndexError(flat)


def window(config: LighthouseConfig, entry: Entry) -> range:
    level, i = entry
    width = config.pooling_factor**level
    return range(i * width, (i + 1) * width)


def document_of(starts: Starts, seq_len: int, token: int) -> range:
    """Tokens of the document that a token is part of."""
    bounds = [*starts, seq_len]
    return next(range(a, b) for a, b in itertools.pairwise(bounds) if a <= token < b)


def spoken_to(config: LighthouseConfig, seq_len: int, entry: Entry, starts: Starts = (0,)) -> range:
    """Tokens that entry's output row is added to: from its last token on, inside its chunk and
    its document."""
    level, i = entry
    width = config.pooling_factor**level
    chunk_len = seq_len // config.num_chunks
    chunk_end = ((i * width) // chunk_len + 1) * chunk_len
    end = min(chunk_end, document_of(starts, seq_len, i * width).stop)
    return range(i * width + width - 1, min(i * width + 2 * width - 1, end))


def contributors(config: LighthouseConfig, seq_len: int, entries: list[Entry]) -> list[int]:
    """For every token, how many rows of the sub-sequence are added to it."""
    counts = [0] * seq_len
    for entry in entries:
        for token in spoken_to(config, seq_len, entry):
            counts[token] += 1
    return counts


# ---- 1. pool


def pool(config: LighthouseConfig, x_ND: np.ndarray, entries: list[Entry]) -> np.ndarray:
    rows = []
    for entry in entries:
        tokens = window(config, entry)
        total = np.zeros(x_ND.shape[1])
        for token in tokens:
            total = total + x_ND[token]
        rows.append(total / len(tokens))
    return np.stack(rows)


# ---- 2. score


def softmax_attention(q_ND: np.ndarray, k_ND: np.ndarray, v_ND: np.ndarray) -> np.ndarray:
    """Causal softmax attention with scale 1/sqrt(D), one query at a time."""
    out_ND = np.zeros((len(q_ND), v_ND.shape[1]))
    for row in range(len(q_ND)):
        logits = k_ND[: row + 1] @ q_ND[row] / math.sqrt(q_ND.shape[1])
        weights = np.exp(logits - logits.max())
        out_ND[row] = (weights / weights.sum()) @ v_ND[: row + 1]
    return out_ND


def gated_linear_attention(q_ND: np.ndarray, k_ND: np.ndarray, v_ND: np.ndarray) -> np.ndarray:
    """Simple gated linear attention with the constant log-decay -ln(2)/16, by its recurrence."""
    decay = math.exp(-math.log(2) / 16)
    state_DD = np.zeros((k_ND.shape[1], v_ND.shape[1]))
    out_ND = np.zeros((len(q_ND), v_ND.shape[1]))
    for row in range(len(q_ND)):
        state_DD = decay * state_DD + np.outer(k_ND[row], v_ND[row])
        out_ND[row] = q_ND[row] @ state_DD / math.sqrt(q_ND.shape[1])
    return out_ND


def norms(x_ND: np.ndarray) -> np.ndarray:
    return np.array([math.sqrt(sum(float(x) ** 2 for x in row)) for row in x_ND])


def _dilated_subsequences(config: LighthouseConfig, seq_len: int) -> list[list[int]]:
    chunk_len = seq_len // config.num_chunks
    return [
        [chunk * chunk_len + t for t in range(chunk_len) if t % config.dilation == remainder]
        for chunk in range(config.num_chunks)
        for remainder in range(config.dilation)
    ]


def level0_scores(
    config: LighthouseConfig, q_BQND: np.ndarray, k_BHND: np.ndarray, v_BHND: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Level-0 query and key scores, each float64 (B, H, N)."""
    B, Q, N, _ = q_BQND.shape
    H = k_BHND.shape[1]
    query_scores_BHN = np.zeros((B, H, N))
    key_scores_BHN = np.zeros((B, H, N))
    for b in range(B):
        for head in range(Q):
            h = head // (Q // H)
            q_ND, k_ND, v_ND = q_BQND[b, head], k_BHND[b, h], v_BHND[b, h]
            if config.scorer == "norm":
                query_score_N, key_score_N = norms(q_ND), norms(k_ND)
            else:
                mix = {"dilated": softmax_attention, "gla": gated_linear_attention}[config.scorer]
                query_score_N, key_score_N = np.zeros(N), np.zeros(N)
                for tokens in _dilated_subsequences(config, N):
                    query_score_N[tokens] = norms(mix(q_ND[tokens], k_ND[tokens], v_ND[tokens]))
                    key_score_N[tokens] = norms(mix(k_ND[tokens], q_ND[tokens], v_ND[tokens]))
            query_scores_BHN[b, h] = np.maximum(query_scores_BHN[b, h], query_score_N)
            key_scores_BHN[b, h] = np.maximum(key_scores_BHN[b, h], key_score_N)
    return query_scores_BHN, key_scores_BHN


# ---- 3. select, 4. order


def scored_tokens(config: LighthouseConfig, seq_len: int, entry: Entry) -> list[int]:
    """Tokens whose scores decide whether an entry is refined.

    Published: those that it covers. Causal: level by level, the p windows of the level below that
    end with that of its first child, as far as the chunk has them.
    """
    level, i = entry
    if config.selection == "published":
        return list(window(config, entry))
    if level == 0:
        return [i]
    p = config.pooling_factor
    of_chunk = seq_len // config.num_chunks // p ** (level - 1)
    first = max(i * p - p + 1, i * p // of_chunk * of_chunk)
    windows = [scored_tokens(config, seq_len, (level - 1, j)) for j in range(first, i * p + 1)]
    return sorted({token for tokens in windows for token in tokens})


def _largest(candidates: list[int], count: int, score: dict[int, float]) -> list[int]:
    """The count candidates with the largest score; ties go to the smaller index."""
    return sorted(candidates, key=lambda i: (-score[i], i))[:count]


def _refine(
    config: LighthouseConfig,
    level: int,
    candidates: list[int],
    firsts: set[int],
    query_scores_N: np.ndarray,
    key_scores_N: np.ndarray,
) -> list[int]:
    tokens = {i: scored_tokens(config, len(query_scores_N), (level, i)) for i in candidates}
    query_score = {i: max(query_scores_N[t] for t in tokens[i]) for i in candidates}
    key_score = {i: max(key_scores_N[t] for t in tokens[i]) for i in candidates}
    half = config.stratum // 2

    refined: list[int] = []
    for score in (query_score, key_score):
        rest = [i for i in candidates if i not in refined]
        first = sorted(firsts & set(rest))[:half] if config.cover_prefix else []
        others = [i for i in rest if i not in firsts or not config.cover_prefix]
        refined += first + _largest(others, half - len(first), score)
    return refined


def select(
    config: LighthouseConfig,
    query_scores_N: np.ndarray,
    key_scores_N: np.ndarray,
    starts: Starts = (0,),
) -> list[Entry]:
    """The sub-sequence of one batch row and key/value head, in causal order."""
    seq_len = len(query_scores_N)
    p, top = config.pooling_factor, config.num_levels - 1
    chunk_coarse = seq_len // config.num_chunks // p**top
    num_strata = config.topk // config.num_chunks // config.stratum
    entries: list[Entry] = []
    for chunk in range(config.num_chunks):
        for t in range(num_strata):
            start = chunk * chunk_coarse + t * chunk_coarse // num_strata
            end = chunk * chunk_coarse + (t + 1) * chunk_coarse // num_strata
            candidates = list(range(start, end))
            entries += [(top, i) for i in candidates]
            for level in range(top, 0, -1):
                begins = {*starts, chunk * chunk_coarse * p**top}
                firsts = {token // p**level for token in begins}
                refined = _refine(config, level, candidates, firsts, query_scores_N, key_scores_N)
                candidates = [i * p + child for i in refined for child in range(p)]
                entries += [(level - 1, i) for i in candidates]
    # The last token of the window, then the level: children before their parent.
    return sorted(entries, key=lambda entry: (window(config, entry)[-1], entry[0]))


def select_flat(
    config: LighthouseConfig,
    query_scores_BHN: np.ndarray,
    key_scores_BHN: np.ndarray,
    starts: Sequence[Starts] | None = None,
) -> np.ndarray:
    """`select` for every batch row and key/value head, as flat indices (B, H, S)."""
    B, H, N = query_scores_BHN.shape
    starts = starts or [(0,)] * B
    rows = [
        [
            [
                flat_of(config, N, entry)
                for entry in select(config, query_scores_BHN[b, h], key_scores_BHN[b, h], starts[b])
            ]
            for h in range(H)
        ]
        for b in range(B)
    ]
    return np.array(rows)


# ---- 5. attend, 6. scatter back


def attend_and_scatter(
    config: LighthouseConfig,
    q_BQND: np.ndarray,
    k_BHND: np.ndarray,
    v_BHND: np.ndarray,
    index_BHS: np.ndarray,
    starts: Sequence[Starts] | None = None,
) -> np.ndarray:
    """Output (B, Q, N, D) for a given selection: pool, attend, scatter, document by document."""
    B, Q, N, _ = q_BQND.shape
    starts = starts or [(0,)] * B
    H = k_BHND.shape[1]
    out_BQND = np.zeros((B, Q, N, v_BHND.shape[3]))
    for b in range(B):
        for head in range(Q):
            h = head // (Q // H)
            selected = [entry_of(config, N, int(flat)) for flat in index_BHS[b, h]]
            for start in starts[b]:
                document = document_of(starts[b], N, start)
                entries = [entry for entry in selected if window(config, entry)[0] in document]
                rows_SD = softmax_attention(
                    pool(config, q_BQND[b, head], entries),
                    pool(config, k_BHND[b, h], entries),
                    pool(config, v_BHND[b, h], entries),
                )
                for entry, row_D in zip(entries, rows_SD, strict=True):
                    for token in spoken_to(config, N, entry, starts[b]):
                        out_BQND[b, head, token] += row_D
    return out_BQND


def lighthouse_attention(
    config: LighthouseConfig,
    q_BQND: np.ndarray,
    k_BHND: np.ndarray,
    v_BHND: np.ndarray,
    starts: Sequence[Starts] | None = None,
) -> np.ndarray:
    """The whole method; a head is as if it were alone."""
    scores = level0_scores(config, q_BQND, k_BHND, v_BHND)
    index_BHS = select_flat(config, *scores, starts)
    return attend_and_scatter(config, q_BQND, k_BHND, v_BHND, index_BHS, starts)


# ---- 9. windows


def window_attention(
    window: int | None,
    q_BQND: np.ndarray,
    k_BHMD: np.ndarray,
    v_BHMD: np.ndarray,
    starts: Sequence[Starts] | None = None,
) -> np.ndarray:
    """Output (B, Q, N, D); the last N of the M keys are those of the queries' tokens."""
    assert window is not None
    B, Q, N, D = q_BQND.shape
    H, M = k_BHMD.shape[1:3]
    starts = starts or [(0,)] * B
    out_BQND = np.zeros((B, Q, N, D))
    for b in range(B):
        for head in range(Q):
            h = head // (Q // H)
            for row in range(N):
                token = row + M - N
                begin = document_of(starts[b], M, token).start
                seen = slice(max(begin, token - window + 1), token + 1)
                logits = k_BHMD[b, h, seen] @ q_BQND[b, head, row] / math.sqrt(D)
                weights = np.exp(logits - logits.max())
                out_BQND[b, head, row] = (weights / weights.sum()) @ v_BHMD[b, h, seen]
    return out_BQND
