"""Local text in a shuffled order, in flat memory, and resumed by reading one window again."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import get_worker_info

from lighthouse.refusal import refusals
from lighthouse.titan.data.blocks import Blocks, permutation
from lighthouse.titan.data.file_checks import reading
from lighthouse.titan.data.moved import Moved
from lighthouse.titan.data.sources import TextReader

WINDOW = 32 << 20
LANES = 16
_OF_A_TEXT = 64  # characters that a text counts more than it has, since none is free


@dataclass(frozen=True)
class Place:
    """Between two documents of an epoch.

    Attributes:
        window: which one, from 0.
        lanes: the blocks that were being read when it began, in turn: which of the share's, and
            the place in it.
        opened: blocks of the share that had been begun by then.
        given: documents of the window that have been given out.
    """

    window: int = 0
    lanes: tuple[tuple[int, int], ...] = ()
    opened: int = 0
    given: int = 0

    def state(self) -> tuple:
        """Of plain numbers, to be pickled."""
        return self.window, self.lanes, self.opened, self.given


class ShuffledDocuments:
    """Documents of files, in another order in each epoch and for each seed.

    The blocks of all files are put in an order, and dealt to ranks and workers. A worker reads
    several at the same time, in turn, until it has a window of text. It gives that out in an order
    of its own, and then reads the next. So documents meet that are far apart, and all that is read
    again for a resume is a window.

    Args:
        files: of the source.
        reader: of their rows.
        seed: of the order; a place belongs to it.
        dp_rank, dp_world_size: which share to read; shares do not overlap.
        window: characters of text.
        lanes: blocks that are read at the same time.
    """

    def __init__(
        self,
        files: Sequence[Path],
        reader: TextReader,
        seed: int,
        dp_rank: int,
        dp_world_size: int,
        window: int = WINDOW,
        lanes: int = LANES,
    ) -> None:
        self._files = files
        self._reader = reader
        self._seed = seed
        self._dp_rank, self._dp_world_size = dp_rank, dp_world_size
        self._window = window
        self._lanes = lanes

    def read(self, epoch: int, place: tuple | None) -> Iterator[tuple[str, tuple]]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        share, shares = self._dp_rank * workers + number, self._dp_world_size * workers
        with refusals(), reading():
            blocks = Blocks(self._files, self._reader.column, shares)
        order = permutation(len(blocks), self._seed, epoch)[share::shares]
        at = Place() if place is None else Place(*place)
        lanes = deque(_Lane(self._reader, blocks, order, *lane) for lane in at.lanes)
        opened = at.opened
        while True:
            texts: list[str] = []
            room = self._window
            while room > 0:
                while len(lanes) < self._lanes and opened < len(order):
                    lanes.append(_Lane(self._reader, blocks, order, opened))
                    opened += 1
                if not lanes:
                    break
                lane = lanes.popleft()
                room -= lane.take(min(room, self._window // self._lanes + 1), texts)
                if not lane.ended:
                    lanes.append(lane)
            if not texts:
                return
            mixed = permutation(len(texts), self._seed, epoch, share, at.window).tolist()
            for given in range(at.given, len(texts)):
                behind = Place(at.window, at.lanes, at.opened, given + 1)
                yield texts[mixed[given]], behind.state()
            at = Place(at.window + 1, tuple((lane.block, lane.place) for lane in lanes), opened)

    def moved(
        self, epoch: int, place: tuple | None, sources: Sequence[Sequence[Moved]]
    ) -> tuple[int, tuple | None, bool]:
        """Of other text the order is another one in every epoch: the next one begins."""
        return (epoch + 1, None, False) if sources[0][0].elsewhere else (epoch, place, True)


class _Lane:
    """One of the blocks that are being read."""

    def __init__(
        self, reader: TextReader, blocks: Blocks, order: np.ndarray, block: int, place: int = 0
    ) -> None:
        self.block, self.place, self.ended = block, place, False
        self._texts = reader.texts(blocks[int(order[block])], place)

    def take(self, room: int, texts: list[str]) -> int:
        """Append what is next until the room is filled; returns how much it was."""
        taken = 0
        while taken < room:
            found = next(self._texts, None)
            if found is None:
                self.ended = True
                break
            text, self.place = found
            texts.append(text)
            taken += len(text) + _OF_A_TEXT
        return taken
