"""Which pyramid entries enter the sub-sequence, and in which order."""

import torch
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.documents import check_document_starts, first_tokens
from lighthouse.ops import implementation
from lighthouse.pyramid import Selection
from lighthouse.scorers import level1_maxima

__all__ = ["Selection", "select"]


@torch.no_grad()
def select(
    query_scores_BHN: Tensor,
    key_scores_BHN: Tensor,
    *,
    config: LighthouseConfig,
    impl: str = "auto",
    document_starts: Tensor | None = None,
) -> Selection:
    """Top-k cascade over the pyramid (docs/method.md, sections 3, 4), without gradient.

    All entries of a stratum compete for its places, so which are refined depends on later tokens
    too; ``config.selection`` says whether an entry's own score does.

    Args:
        query_scores_BHN: level-0 query scores per key/value head, fp32 (B, Hkv, N), finite.
        key_scores_BHN: level-0 key scores, likewise.
        config: N must satisfy ``config.validate``.
        impl: ``"auto"`` or the name of an implementation.
        document_starts: as in :func:`lighthouse.attention.lighthouse_attention`.

    Returns:
        The :class:`Selection`. Deterministic: ties go to the entry with the smaller index.

    Raises:
        ValueError: for scores of the wrong shape, dtype or device, or a length that doesn't fit.
    """
    for name, scores in (
        ("query_scores_BHN", query_scores_BHN),
        ("key_scores_BHN", key_scores_BHN),
    ):
        if scores.ndim != 3 or scores.dtype != torch.float32:
            raise ValueError(
                f"{name}: must be float32 of shape (B, Hkv, N), got {scores.dtype} "
                f"of shape {tuple(scores.shape)}"
            )
    if (query_scores_BHN.shape, query_scores_BHN.device) != (
        key_scores_BHN.shape,
        key_scores_BHN.device,
    ):
        raise ValueError(
            "query_scores_BHN and key_scores_BHN must agree in shape and device, got "
            f"{tuple(query_scores_BHN.shape)} on {query_scores_BHN.device} and "
            f"{tuple(key_scores_BHN.shape)} on {key_scores_BHN.device}"
        )
    batch, _, seq_len = query_scores_BHN.shape
    config.validate(seq_len)
    first_token_BC = None
    if document_starts is not None:
        check_document_starts(document_starts, batch, seq_len, config.coarsest_width)
        first_token_BC = first_tokens(document_starts, seq_len, config)
    ops = implementation(impl, query_scores_BHN.device, query_scores_BHN.dtype)
    query_maxima, key_maxima = (
        level1_maxima(x, config) for x in (query_scores_BHN, key_scores_BHN)
    )
    return ops.select(query_maxima, key_maxima, config, first_token_BC)
