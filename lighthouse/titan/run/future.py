"""What a loss owes to tokens that come after it: the same loss with another future.

A language model predicts a token from those before it, so its loss there stays when everything
behind is replaced by other text. What it changes by is what the model knew of the future.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lighthouse.runs.means import mean_of, standard_error


@dataclass(frozen=True)
class Leak:
    """Mean losses at the same positions, in nats.

    Attributes:
        draws: independent pairs of losses.
        true_future, other_future: with the text as it goes on, and with another text there.
        leak: the second less the first, what the future was worth.
        standard_error: of ``leak`` over the draws; None for a single one.
    """

    draws: int
    true_future: float
    other_future: float
    leak: float
    standard_error: float | None


def leak_of(true_future: Sequence[float], other_future: Sequence[float]) -> Leak:
    """Losses of the same draws, in the same order."""
    differences = [b - a for a, b in zip(true_future, other_future, strict=True)]
    draws = len(differences)
    return Leak(
        draws=draws,
        true_future=mean_of(true_future),
        other_future=mean_of(other_future),
        leak=mean_of(differences),
        standard_error=standard_error(differences) if draws > 1 else None,
    )


def draw_positions(count: int, seq_len: int, seed: int = 0) -> list[int]:
    """Positions that have a future in their sequence, drawn uniformly; the same for a seed."""
    generator = random.Random(seed)
    return [generator.randrange(seq_len - 1) for _ in range(count)]


def with_other_future(tokens_BN: Tensor, position_B: Tensor, other_BN: Tensor) -> Tensor:
    """Each row's tokens up to and including its position, then those of the other row."""
    later_BN = torch.arange(tokens_BN.shape[1], device=tokens_BN.device) > position_B[:, None]
    return torch.where(later_BN, other_BN, tokens_BN)
