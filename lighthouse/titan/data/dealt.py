"""One list of sequences, dealt to the ranks, which all take as many steps."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from lighthouse.titan.llama3.chunked_loss import IGNORE_INDEX

Sample = tuple[dict[str, torch.Tensor], torch.Tensor]


class Dealt(IterableDataset):
    """A rank's rows of a list of sequences that every rank reads.

    A step takes the next ``ranks * rows`` sequences. Where the list ends inside a step, what lacks
    is filled with sequences whose labels are ignored: they run, so that ranks stay together, and
    have no weight.

    Args:
        sequences: the list; iterating it again gives the same.
        rank, ranks: of those that read data of their own.
        rows: of a rank's batch.
    """

    def __init__(self, sequences: Iterable[Sample], rank: int, ranks: int, rows: int) -> None:
        self._sequences = sequences
        self._rank, self._ranks, self._rows = rank, ranks, rows

    def __iter__(self) -> Iterator[Sample]:
        sequences = iter(self._sequences)
        own = range(self._rank * self._rows, (self._rank + 1) * self._rows)
        while True:
            first, taken = None, []
            for number, sample in enumerate(islice(sequences, self._ranks * self._rows)):
                first = sample if first is None else first
                if number in own:
                    taken.append(sample)
            if first is None:
                return
            yield from [*taken, *[_ignored(first)] * (self._rows - len(taken))]


def _ignored(sample: Sample) -> Sample:
    inputs, labels = sample
    return dict(inputs), torch.full_like(labels, IGNORE_INDEX)


def to_one_worker(dataloader: dict[str, Any]) -> dict[str, Any]:
    """The loader's settings with one worker at most: several would cut the list among them."""
    return dataloader | {"num_workers": min(1, dataloader["num_workers"])}
