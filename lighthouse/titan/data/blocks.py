"""A source cut into blocks, which ranks and workers share, and the order of anything."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from lighthouse.titan.data.file_checks import check_file
from lighthouse.titan.data.rows import Block
from lighthouse.titan.data.text_files import compression_of, kind_of

PIECE_BYTES = 16 << 20
_LEAST_BYTES = 256
_BLOCKS_A_SHARE = 4


class Blocks(Sequence[Block]):
    """The blocks of files, in their order.

    A block is a row group of parquet, a piece of a file of lines, or a whole file that is
    compressed or one document. Pieces have `PIECE_BYTES`, or less where there would be few for
    each share. Where there are fewer blocks than shares, several have other rows of the same.

    Args:
        column: of parquet, that holds the text.
        shares: that the blocks are for.
    """

    def __init__(self, files: Sequence[Path], column: str, shares: int) -> None:
        self._files = files
        self._sizes = [file.stat().st_size if _is_cut(file) else 0 for file in files]
        piece = sum(self._sizes) // (_BLOCKS_A_SHARE * shares)
        self._piece = max(_LEAST_BYTES, min(PIECE_BYTES, piece))
        counts = [
            -(-size // self._piece) if _is_cut(file) else check_file(file, column)
            for file, size in zip(files, self._sizes, strict=True)
        ]
        self._ends = list(accumulate(counts))
        self._parts = max(1, -(-shares // max(1, self._ends[-1])))

    def __len__(self) -> int:
        return self._ends[-1] * self._parts

    def __getitem__(self, index: int) -> Block:  # type: ignore[override]
        number, part = divmod(index, self._parts)
        at = bisect_right(self._ends, number)
        first = number - (self._ends[at - 1] if at else 0)
        end = first + 1
        if self._sizes[at]:
            first, end = first * self._piece, min(end * self._piece, self._sizes[at])
        return Block(self._files[at], first, end, part, self._parts)


def _is_cut(file: Path) -> bool:
    return kind_of(file) in (".jsonl", ".json") and compression_of(file) is None


def permutation(count: int, *seed: int) -> np.ndarray:
    """The numbers below `count` in an order that depends on the seed alone.

    Not NumPy's: its generators may give others in another release.
    """
    key = hashlib.sha256(repr(seed).encode()).digest()
    numbers = np.arange(count, dtype=np.uint64) + np.frombuffer(key[:8], dtype="<u8")
    # splitmix64, which is one-to-one: no two are equal.
    numbers *= np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(numbers ^ (numbers >> np.uint64(31)))
