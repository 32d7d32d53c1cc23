"""Integer geometry of the pyramid: levels, widths, flat indices, spans; and selected entries."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pyramid:
    """The pyramid over ``seq_len`` tokens, ``seq_len`` divisible by ``p ** (num_levels - 1)``.

    Entry (l, i) of level l covers the tokens ``i * p**l .. (i + 1) * p**l - 1``. Its flat index is
    ``offsets[l] + i``: finer levels come first.
    """

    seq_len: int
    num_levels: int
    pooling_factor: int

    def __post_init__(self) -> None:
        coarsest = self.pooling_factor ** (self.num_levels - 1)
        if self.seq_len % coarsest:
            raise ValueError(f"seq_len = {self.seq_len}: must be divisible by {coarsest}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Tokens under one entry of each level."""
        return tuple(self.pooling_factor**level for level in range(self.num_levels))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Entries in each level."""
        return tuple(self.seq_len // width for width in self.widths)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Flat index of entry 0 of each level."""
        return tuple(sum(self.level_sizes[:level]) for level in range(self.num_levels))

    @property
    def num_entries(self) -> int:
        """Entries of all levels together."""
        return sum(self.level_sizes)

    def span(self, level: int, i: int) -> tuple[int, int]:
        """First and last token (inclusive) under entry (level, i)."""
        if not (0 <= level < self.num_levels and 0 <= i < self.level_sizes[level]):
            raise IndexError(f"no entry {i} at level {level}; level sizes are {self.level_sizes}")
        width = self.widths[level]
        return i * width, (i + 1) * width - 1


@dataclass(frozen=True)
class Selection:
    """The selected entries of every batch row and key/value head, in both directions.

    Attributes:
        index: int32 (B, Hkv, S), flat pyramid index of each row of the sub-sequence, in causal
            order: by window end, at equal ends the finer entry first.
        slot: int32 (B, Hkv, E), E entries in the pyramid: the row of each entry, or -1.
        first_token: with documents int32 (B, n_{L-1}), where the document of each coarsest entry
            begins, or its chunk if that is later; without them None.
    """

    index: Tensor
    slot: Tensor
    first_token: Tensor | None = None
