"""A layer's selection in a few numbers, as scalar tensors: nothing here waits for the device.

Suffixes: B batch, K key/value heads, N tokens, E level-1 entries (N / p).
"""

import torch
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.selection import Selection

QUANTILES = (0.1, 0.5, 0.9, 0.99)


def refined_entries(selection: Selection, config: LighthouseConfig, seq_len: int) -> Tensor:
    """Which level-1 entries are refined: those whose tokens are in the sub-sequence.

    Args:
        selection: of a sequence of ``seq_len`` tokens, under ``config``.

    Returns:
        bool (B, K, E).
    """
    # Siblings come into the sub-sequence together, so the first child speaks for all.
    return selection.slot[..., : seq_len : config.pooling_factor] >= 0


def full_resolution_share(refined_BKE: Tensor) -> Tensor:
    """Share of tokens that any key/value head sees at full resolution, mean over the batch.

    A single head sees k * p / N of them whatever the text. So this is k * p / N if all heads choose
    the same places, and up to the number of heads times that if they choose different ones.
    """
    return refined_BKE.any(dim=1).float().mean()


def selection_change(refined_BKE: Tensor, previous_BKE: Tensor) -> Tensor:
    """How different the refined places are from an earlier selection's, in units of chance.

    The share of refined level-1 entries that were not refined before, in the same batch row and
    head, divided by that share for two independent selections, 1 - k * p / N. The two selections
    are of different texts: 0 says that a layer picks the same places whatever the text, 1 that the
    earlier places say nothing about the later ones. 0 where all is refined.
    """
    by_chance = 1 - refined_BKE.float().mean()
    replaced = (refined_BKE & ~previous_BKE).sum() / refined_BKE.sum()
    return torch.where(by_chance > 0, replaced / by_chance, 0.0)


def score_quantiles(scores_BKN: Tensor) -> Tensor:
    """The ``QUANTILES`` of the tokens' scores in each batch row and head, mean over these.

    Args:
        scores_BKN: level-0 scores as :func:`lighthouse.scorers.level0_scores` gives them.

    Returns:
        float32 (len(QUANTILES),), linearly interpolated.
    """
    # Filled where they are needed: a copy from the host would wait for the device.
    wanted = torch.stack([scores_BKN.new_full((), quantile) for quantile in QUANTILES])
    return torch.quantile(scores_BKN, wanted, dim=-1).mean(dim=(1, 2))


def statistics(
    query_scores_BKN: Tensor,
    key_scores_BKN: Tensor,
    refined_BKE: Tensor,
    previous_BKE: Tensor | None,
) -> dict[str, Tensor]:
    """All of the above under the names that metrics have; scalar tensors.

    Args:
        previous_BKE: what was refined at the previous observation; without one there is no
            ``selection_change``.
    """
    values = {"full_resolution_share": full_resolution_share(refined_BKE)}
    if previous_BKE is not None:
        values["selection_change"] = selection_change(refined_BKE, previous_BKE)
    for kind, scores_BKN in (("query", query_scores_BKN), ("key", key_scores_BKN)):
        for quantile, value in zip(QUANTILES, score_quantiles(scores_BKN), strict=True):
            values[f"{kind}_score_p{round(100 * quantile)}"] = value
    return values
