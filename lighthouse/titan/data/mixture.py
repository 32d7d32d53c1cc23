"""Several sources as one stream, in shares of tokens that hold at every moment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torchtitan.tools.logging import logger

from lighthouse.refusal import Refusal
from lighthouse.titan.data.moved import Moved
from lighthouse.titan.data.token_streams import TokenStream


@dataclass(frozen=True)
class WeightedStream:
    """A source of a mixture; `name` is for messages."""

    name: str
    tokens: TokenStream
    weight: float


class Mixture:
    """The next document is always of the source that is furthest behind its share.

    Nothing is drawn: after any number of tokens a source has its share of them, up to a document.
    Each source has epochs of its own, so the mixture has a single one, without an end.

    Args:
        sources: with weights above 0, in any unit.
        share: which part of the text this is, for messages.
    """

    def __init__(self, sources: Sequence[WeightedStream], share: str) -> None:
        self._sources = sources
        self._share = share
        total = sum(source.weight for source in sources)
        self._weights = [source.weight / total for source in sources]

    def read(self, epoch: int, place: tuple | None) -> Iterator[tuple[list[np.ndarray], tuple]]:
        """A place has each source's epoch, its place in that, and its tokens so far.

        Raises:
            Refusal: a source has no text for this share.
        """
        progress = list(place or [(0, None, 0)] * len(self._sources))
        streams = [
            source.tokens.read(epoch, at)
            for source, (epoch, at, _) in zip(self._sources, progress, strict=True)
        ]
        given = sum(count for _, _, count in progress)
        while True:
            i = _next(self._weights, progress, given)
            of_source, at, count = progress[i]
            begun = at is not None or count > 0
            while (found := next(streams[i], None)) is None:
                name = self._sources[i].name
                if of_source == 0 and not begun:
                    raise Refusal(
                        f"training.sources: no text in {name} for {self._share}; leave it out, or "
                        "use fewer ranks and training.dataloader.num_workers"
                    )
                of_source += 1
                streams[i] = self._sources[i].tokens.read(of_source, None)
                if of_source & (of_source - 1) == 0:  # rarer and rarer
                    logger.info(f"{name} starts over for {self._share}: epoch {of_source}")
            texts, at = found
            tokens = sum(map(len, texts))
            progress[i] = (of_source, at, count + tokens)
            given += tokens
            yield texts, tuple(progress)

    def moved(
        self, epoch: int, place: tuple | None, sources: Sequence[Sequence[Moved]]
    ) -> tuple[int, tuple | None, bool]:
        """Each source where it was; one that is new at its start. Shares are counted from here."""
        if place is None:
            return epoch, None, False
        total, given = sum(moved.weight for moved in sources[0]), sum(count for *_, count in place)
        current = _next([moved.weight / total for moved in sources[0]], place, given)
        same_document = False
        progress = []
        for source, moves in zip(self._sources, sources, strict=True):
            number = next((n for n, m in enumerate(moves) if _same_source(m)), None)
            of_source, at, count = 0, None, 0
            if number is not None:
                of_source, at, _ = place[number]
                of_source, at, same = source.tokens.moved(of_source, at, [[moves[number]]])
                if number == current and same:
                    # A token behind all others, so that it is the next one here too.
                    count, same_document = -1, True
            progress.append((of_source, at, count))
        return epoch, tuple(progress), same_document


def _next(weights: Sequence[float], progress: Sequence[tuple], given: int) -> int:
    """The source that is furthest behind its share of the tokens given."""
    behind = [
        weight * given - count for weight, (_, _, count) in zip(weights, progress, strict=True)
    ]
    return behind.index(max(behind))


def _same_source(moved: Moved) -> bool:
    return moved.was.name == moved.now.name or moved.was.same(moved.now)
