"""The specification of docs/method.md in eager PyTorch: any device and floating dtype, autograd.

Every other implementation is tested against this file; none imports it. Nothing here is fast.

Shape suffixes: B batch, H heads (query or key/value), K key/value heads, N tokens, D head
dimension, T strata of the whole sequence, M candidates of a stratum, S rows of the sub-sequence,
E entries: of the whole pyramid in a slot, of level 1 in maxima, C coarsest entries.
"""

import torch
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.inputs import QKV
from lighthouse.pyramid import Pyramid, Selection
from lighthouse.scorers import level1_maxima, window_maxima

# A candidate's rank comes before its score.
_FIRST, _ELIGIBLE, _EXCLUDED = 0, 1, 2


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def summarize(
    qkv: QKV, config: LighthouseConfig, *, scored: bool
) -> tuple[QKV, tuple[Tensor, Tensor] | None]:
    """Coarsest means of each, (B, H, n_{L-1}, D), and scores, if ``scored`` (sections 1 to 3).

    Those of the level-1 entries by norm, of queries and of keys, fp32 (B, H, n_1) without gradient.
    """
    q, k, v = qkv
    width = config.coarsest_width
    coarsest = _means(q, width), _means(k, width), _means(v, width)
    if not scored:
        return coarsest, None
    return coarsest, (_scores_by_norm(q, config), _scores_by_norm(k, config))


def _means(x_BHND: Tensor, width: int) -> Tensor:
    x = x_BHND.to(_accumulation_dtype(x_BHND))
    return x.unflatten(2, (-1, width)).mean(dim=3).to(x_BHND.dtype)


def _scores_by_norm(x_BHND: Tensor, config: LighthouseConfig) -> Tensor:
    x = x_BHND.detach().to(_accumulation_dtype(x_BHND))
    return level1_maxima(x.norm(dim=-1), config).float()


def select(
    query_maxima_BHE: Tensor,
    key_maxima_BKE: Tensor,
    config: LighthouseConfig,
    first_token_BC: Tensor | None = None,
) -> Selection:
    """Cascade and order, sections 3 and 4 of docs/method.md.

    Args:
        query_maxima_BHE: the level-1 entries' query scores, fp32 (B, H, n_1), for query heads or
            for key/value heads already; see :func:`lighthouse.scorers.level1_maxima`.
        key_maxima_BKE: likewise for keys, (B, K, n_1).
        first_token_BC: with documents, see :class:`lighthouse.pyramid.Selection`.
    """
    kv_heads, level1 = key_maxima_BKE.shape[1:]
    query_maxima_BKE = query_maxima_BHE.unflatten(1, (kv_heads, -1)).amax(dim=2)
    pyramid = Pyramid(level1 * config.pooling_factor, config.num_levels, config.pooling_factor)
    device = key_maxima_BKE.device
    coarsest = pyramid.num_levels - 1
    children = torch.arange(config.pooling_factor, device=device)

    candidates_TM, real_TM = _coarsest_candidates(pyramid, config, device)
    candidates = candidates_TM.expand(*key_maxima_BKE.shape[:2], -1, -1)
    real = real_TM.expand_as(candidates)
    entries = [torch.arange(pyramid.level_sizes[coarsest], device=device) + pyramid.offsets[-1]]
    entries[0] = entries[0].expand(*key_maxima_BKE.shape[:2], -1)
    begins_BC = _begins(first_token_BC, pyramid, config, device)
    for level in range(coarsest, 0, -1):
        query_score, key_score = (
            window_maxima(maxima, pyramid.widths[level - 1], config)
            .unsqueeze(2)
            .take_along_dim(candidates, 3)
            for maxima in (query_maxima_BKE, key_maxima_BKE)
        )
        rank = torch.where(real, _ELIGIBLE, _EXCLUDED)
        if config.cover_prefix:
            first = _is_first(candidates, begins_BC, pyramid, level) & real
            rank = rank.masked_fill(first, _FIRST)
            query_score, key_score = (x.masked_fill(first, 0) for x in (query_score, key_score))
        by_query = _top(query_score, rank, config.stratum // 2)
        rank = rank.scatter(-1, by_query, _EXCLUDED)
        by_key = _top(key_score, rank, config.stratum // 2)
        refined = candidates.take_along_dim(torch.cat((by_query, by_key), -1), -1).sort(-1).values
        candidates = (refined[..., None] * config.pooling_factor + children).flatten(-2)
        real = torch.ones_like(candidates, dtype=torch.bool)
        entries.append(candidates.flatten(-2) + pyramid.offsets[level - 1])
    index_BKS = _causal_order(torch.cat(entries, dim=-1), pyramid)
    return Selection(index_BKS, _slots(index_BKS, pyramid), first_token_BC)


def _begins(
    first_token_BC: Tensor | None, pyramid: Pyramid, config: LighthouseConfig, device: torch.device
) -> Tensor:
    """With which coarsest entries a document or a chunk begins, (B or 1, C)."""
    token_C = torch.arange(0, pyramid.seq_len, pyramid.widths[-1], device=device)
    if first_token_BC is None:
        return (token_C % (pyramid.seq_len // config.num_chunks) == 0)[None]
    return first_token_BC == token_C


def _is_first(candidates_BKTM: Tensor, begins_BC: Tensor, pyramid: Pyramid, level: int) -> Tensor:
    """Of each candidate of a level whether a document or a chunk begins with it."""
    under_coarsest = pyramid.level_sizes[level] // pyramid.level_sizes[-1]
    coarsest_BKTM = candidates_BKTM // under_coarsest
    begins_BKTC = begins_BC[:, None, None].expand(*candidates_BKTM.shape[:3], -1)
    return (candidates_BKTM % under_coarsest == 0) & begins_BKTC.gather(-1, coarsest_BKTM)


def _coarsest_candidates(
    pyramid: Pyramid, config: LighthouseConfig, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Coarsest entries of each stratum, padded to the longest, and which of them are real.

    Strata tile each chunk evenly; where they don't divide it, some own one entry more.
    """
    per_chunk = pyramid.level_sizes[-1] // config.num_chunks
    strata = config.num_strata // config.num_chunks
    bound = torch.arange(strata + 1, device=device) * per_chunk // strata
    chunk_start = torch.arange(config.num_chunks, device=device)[:, None] * per_chunk
    start_T = (chunk_start + bound[:-1]).flatten()
    end_T = (chunk_start + bound[1:]).flatten()
    longest = -(-per_chunk // strata)
    candidates_TM = start_T[:, None] + torch.arange(longest, device=device)
    real_TM = candidates_TM < end_T[:, None]
    return candidates_TM.minimum(end_T[:, None] - 1), real_TM


def _top(scores: Tensor, rank: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` largest scores within rank order; ties go to the smaller one."""
    by_score = scores.sort(dim=-1, descending=True, stable=True).indices
    by_rank = rank.take_along_dim(by_score, -1).sort(dim=-1, stable=True).indices
    return by_score.take_along_dim(by_rank, -1)[..., :count]


def _level_and_position(flat: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
    offsets = torch.tensor(pyramid.offsets, device=flat.device)
    level = torch.bucketize(flat, offsets, right=True) - 1
    return level, flat - offsets[level]


def _causal_order(flat_BKS: Tensor, pyramid: Pyramid) -> Tensor:
    """Sort by window end, at equal ends the finer first."""
    level, position = _level_and_position(flat_BKS, pyramid)
    end = (position + 1) * torch.tensor(pyramid.widths, device=flat_BKS.device)[level]
    order = (end * pyramid.num_levels + level).argsort(dim=-1)
    return flat_BKS.take_along_dim(order, -1).int()


def _slots(index_BKS: Tensor, pyramid: Pyramid) -> Tensor:
    slot_BKE = index_BKS.new_full((*index_BKS.shape[:2], pyramid.num_entries), -1)
    row = torch.arange(index_BKS.shape[-1], device=index_BKS.device, dtype=torch.int32)
    return slot_BKE.scatter(-1, index_BKS.long(), row.expand_as(index_BKS))


def gather(qkv: QKV, coarsest: QKV, selection: Selection, config: LighthouseConfig) -> QKV:
    """Of each the means of the selected entries' windows, (B, H, S, D) in its dtype (section 1).

    The coarsest means are those of ``summarize``, and their gradient reaches the tokens too. The
    heads of a group all use their key/value head's selection. Sums are in fp32 or wider.
    """
    q, k, v = (_rows(x, c, selection, config) for x, c in zip(qkv, coarsest, strict=True))
    return q, k, v


def _rows(
    x_BHND: Tensor, coarsest_BHCD: Tensor, selection: Selection, config: LighthouseConfig
) -> Tensor:
    pyramid = Pyramid(x_BHND.shape[2], config.num_levels, config.pooling_factor)
    finer = [_means(x_BHND, width) for width in pyramid.widths[:-1]]
    pooled_BHED = torch.cat([*finer, coarsest_BHCD], dim=2)
    group = x_BHND.shape[1] // selection.index.shape[1]
    index_BHS = selection.index.repeat_interleave(group, dim=1).long()
    return pooled_BHED.gather(2, index_BHS[..., None].expand(-1, -1, -1, x_BHND.shape[-1]))


def scatter(
    rows_BHSD: Tensor, selection: Selection, like_BHND: Tensor, config: LighthouseConfig
) -> Tensor:
    """Each token's sum of the rows that speak for it, shaped as ``like`` (section 6).

    Entry (l, i) speaks for tokens i*w + w - 1 .. i*w + 2w - 2, as far as its chunk and its document
    go. So token t hears, at each level, the one entry (t + 1) // w - 1, if that is in both and in
    the sub-sequence.
    """
    seq_len = like_BHND.shape[2]
    pyramid = Pyramid(seq_len, config.num_levels, config.pooling_factor)
    rows = rows_BHSD.to(_accumulation_dtype(rows_BHSD))
    group = rows.shape[1] // selection.slot.shape[1]
    token_N = torch.arange(seq_len, device=rows.device)
    # An entry's last tokens may lie in the next chunk, or in the next document.
    first_token_BN = (token_N // (seq_len // config.num_chunks) * (seq_len // config.num_chunks))[
        None
    ]
    if selection.first_token is not None:
        first_token_BN = selection.first_token.repeat_interleave(pyramid.widths[-1], dim=1)
    out_BHND = rows.new_zeros(*rows.shape[:2], seq_len, rows.shape[3])
    for width, offset in zip(pyramid.widths, pyramid.offsets, strict=True):
        position_N = (token_N + 1) // width - 1
        exists_BN = position_N * width >= first_token_BN
        slot_BKN = selection.slot[..., offset + position_N.clamp(min=0)]
        slot_BHN = slot_BKN.repeat_interleave(group, dim=1).long()
        heard = (slot_BHN >= 0) & exists_BN[:, None]
        row_BHND = rows.gather(2, slot_BHN.clamp(min=0)[..., None].expand_as(out_BHND))
        out_BHND = out_BHND + torch.where(heard[..., None], row_BHND, 0)
    return out_BHND.to(rows_BHSD.dtype)


def window_attention(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, window: int) -> Tensor:
    """Causal softmax attention to the last ``window`` tokens, (B, H, N, D) (section 9).

    The last N of the M keys are those of the queries' tokens.
    """
    num_queries, num_keys = q_BHND.shape[2], k_BHMD.shape[2]
    group = q_BHND.shape[1] // k_BHMD.shape[1]
    dtype = _accumulation_dtype(q_BHND)
    k, v = (x.to(dtype).repeat_interleave(group, dim=1) for x in (k_BHMD, v_BHMD))
    token_N1 = torch.arange(num_queries, device=k.device)[:, None] + num_keys - num_queries
    behind_NM = token_N1 - torch.arange(num_keys, device=k.device)
    seen_NM = (behind_NM >= 0) & (behind_NM < window)
    logits_BHNM = q_BHND.to(dtype) @ k.mT * q_BHND.shape[-1] ** -0.5
    weights_BHNM = logits_BHNM.masked_fill(~seen_NM, -torch.inf).softmax(dim=-1)
    return (weights_BHNM @ v).to(q_BHND.dtype)
