"""Which runs of queries see which runs of keys in a window: geometry, for `lighthouse.window`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Attention of ``blocks`` runs of queries to as many of keys, each ``step`` behind the last.

    Attributes:
        kind: ``"causal"``, as many queries as keys; ``"backwards"``, causal when both are reversed;
            ``"all"``: every query sees every key.
    """

    kind: Literal["causal", "backwards", "all"]
    query: int
    queries: int
    key: int
    keys: int
    blocks: int = 1
    step: int = 0

    @property
    def causal(self) -> bool:
        return self.kind != "all"

    @property
    def backwards(self) -> bool:
        return self.kind == "backwards"

    def rows(self, x: Tensor) -> Tensor:
        """Its queries' places in (B, H, N, ..), as a view (B, C, H, R, ..)."""
        return _blocks(x, self.query, self.queries, self.blocks, self.step)

    def columns(self, x: Tensor) -> Tensor:
        return _blocks(x, self.key, self.keys, self.blocks, self.step)


def _blocks(x: Tensor, first: int, length: int, blocks: int, step: int) -> Tensor:
    of_blocks = x.narrow(2, first, (blocks - 1) * step + length).unfold(2, length, max(step, 1))
    # (B, H, C, .., R): the rows come last
    return of_blocks.movedim(-1, 3).transpose(1, 2)


def pieces(num_queries: int, num_keys: int, window: int) -> list[Piece]:
    """What together has each pair of a query and a key in its window once.

    The first pieces have each query's own key.
    """
    if not num_queries:
        return []
    front = num_keys - num_queries
    window = min(window, num_keys)
    blocks, rest = divmod(num_queries, window)
    found = []
    if blocks:
        found.append(Piece("causal", 0, window, front, window, blocks, window))
    if rest:
        start = blocks * window
        found.append(Piece("causal", start, rest, front + start, rest))
    complete = front == window - 1  # the first block has a whole one before it
    if window > 1 and blocks > 1 - complete:
        # The first key of a block is in no later one's window, and there is none in front of all.
        query, key = (0, 0) if complete else (window, front + 1)
        size = window - 1
        count = blocks - 1 + complete
        found.append(Piece("backwards", query, size, key, size, count, window))
    if front and not (complete and blocks):
        found += _part_of_a_block(0, min(window, num_queries), 0, front, window)
    if rest and blocks and window > 1:
        start = blocks * window
        found += _part_of_a_block(start, rest, front + start - window + 1, window - 1, window)
    return found


def _part_of_a_block(query: int, queries: int, key: int, keys: int, window: int) -> Iterator[Piece]:
    """The first queries of a block, and the last keys before it.

    All keys are in the window of the first query, and of as many more as there are keys missing.
    """
    to_all = queries if queries <= window - keys else window - keys - 1
    if to_all:
        yield Piece("all", query, to_all, key, keys)
    size = min(queries - to_all, keys)
    if size:
        yield Piece("backwards", query + to_all, size, key, size)
        if keys > size:
            yield Piece("all", query + to_all, size, key + size, keys - size)
