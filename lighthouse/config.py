"""The parameters of Lighthouse Attention and every constraint on them."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

Scorer = Literal["norm", "dilated", "gla", "random"]
SCORERS: tuple[str, ...] = get_args(Scorer)
INTERLEAVED_SCORERS = ("dilated", "gla")
"""Scorers that attend inside ``dilation`` interleaved subsequences."""
SelectionKind = Literal["causal", "published"]
SELECTIONS: tuple[str, ...] = get_args(SelectionKind)
_CHOICES = {"scorer": SCORERS, "selection": SELECTIONS}


def nearest_multiple(value: int, divisor: int) -> int:
    """The positive multiple of ``divisor`` nearest to ``value``, the smaller of two as near."""
    below = max(value // divisor * divisor, 0)
    above = below + divisor
    return below if below > 0 and value - below <= above - value else above


@dataclass(frozen=True)
class WindowConfig:
    """Parameters of one layer that attends in a window, at full resolution.

    Attributes:
        window: tokens that a token sees, its own among them; at least 1.

    Raises:
        ValueError: on construction, naming the value and what would do.
    """

    window: int

    def __post_init__(self) -> None:
        if type(self.window) is not int or self.window < 1:
            raise ValueError(
                f"window = {self.window!r}: must be the number of tokens that a token sees, its "
                "own among them; use an int of at least 1, such as 4096"
            )


@dataclass(frozen=True)
class LighthouseConfig:
    """Parameters of one Lighthouse Attention layer.

    Attributes:
        num_levels: L, levels of the pyramid. Level 0 holds the tokens, level L-1 is the coarsest.
        pooling_factor: p, children per parent; any integer >= 2.
        topk: k, entries refined per level, batch row and key/value head, over all chunks.
        stratum: m, entries refined per stratum; even. A chunk has ``topk / num_chunks / m`` strata.
        scorer: how tokens are scored: ``"norm"``, ``"dilated"``, ``"gla"``, or ``"random"``, the
            control by which to tell what the other three are worth.
        selection: which tokens decide whether an entry is refined. ``"published"``: those under it,
            so that a token's output tells of tokens that come after it. ``"causal"``: as many that
            end with the entry's first token.
        dilation: interleaved subsequences of the ``dilated`` and ``gla`` scorers.
        cover_prefix: always refine entry 0 of each level of each chunk, so that every token has at
            least one contributor. Without it tokens 0 .. p**(L-1) - 2 of a chunk may get no output.
        num_chunks: equal pieces of the sequence inside which everything but attention stays.

    Raises:
        ValueError: on construction for a value that is wrong whatever the sequence length, and in
            :meth:`validate` for one that does not fit the given length. The message names the key,
            the value it got and the nearest value that would do.
    """

    num_levels: int = 3
    pooling_factor: int = 4
    topk: int = 1536
    stratum: int = 128
    scorer: Scorer = "norm"
    selection: SelectionKind = "causal"
    dilation: int = 4
    cover_prefix: bool = True
    num_chunks: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _CHOICES:
                choices = _CHOICES[field.name]
                if value not in choices:
                    raise ValueError(
                        f"{field.name} = {value!r}: must be one of {', '.join(choices)}"
                    )
            elif type(value) is not field.type:
                raise ValueError(
                    f"{field.name} = {value!r}: must be of type {field.type.__name__}, "  # type: ignore[union-attr]
                    f"got {type(value).__name__}"
                )
        for name, least in (
            ("num_levels", 2),
            ("pooling_factor", 2),
            ("stratum", 2),
            ("dilation", 1),
            ("num_chunks", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} = {getattr(self, name)}: must be at least {least}; use {least}"
                )
        # Not by the power itself, which may have more digits than fit into memory.
        if (self.num_levels - 1) * (self.pooling_factor.bit_length() - 1) >= 63:
            raise ValueError(
                f"num_levels = {self.num_levels}: with pooling_factor = {self.pooling_factor} a "
                "coarsest entry holds pooling_factor ** (num_levels - 1) tokens, more than any "
                "sequence has; use fewer levels or a smaller factor"
            )
        if self.stratum % 2:
            raise ValueError(
                f"stratum = {self.stratum}: must be even, since half of a stratum's places go to "
                f"query scores and half to key scores; nearest is {self.stratum + 1}"
            )
        per_stratum_of_each_chunk = self.num_chunks * self.stratum
        if self.topk < 1 or self.topk % per_stratum_of_each_chunk:
            raise ValueError(
                f"topk = {self.topk}: must be a positive multiple of num_chunks * stratum = "
                f"{self.num_chunks} * {self.stratum} = {per_stratum_of_each_chunk}; nearest is "
                f"{nearest_multiple(self.topk, per_stratum_of_each_chunk)}"
            )

    @property
    def coarsest_width(self) -> int:
        """w_{L-1} = p**(L-1), tokens under one coarsest entry."""
        return self.pooling_factor ** (self.num_levels - 1)

    @property
    def num_strata(self) -> int:
        """Strata of the whole sequence: k / m."""
        return self.topk // self.stratum

    def local(self, ranks: int) -> "LighthouseConfig":
        """The parameters of one of ``ranks`` context-parallel ranks, which owns whole chunks.

        Everything but attention stays inside a chunk, so with these a rank computes its share of
        the sub-sequence from its share of the tokens (docs/method.md, section 8).

        Raises:
            ValueError: if ``ranks`` is not positive or does not divide ``num_chunks``.
        """
        if ranks < 1 or self.num_chunks % ranks:
            raise ValueError(
                f"num_chunks = {self.num_chunks}: must be divisible by the number of ranks, "
                f"at least 1, got {ranks}"
            )
        return replace(self, topk=self.topk // ranks, num_chunks=self.num_chunks // ranks)

    def validate(self, seq_len: int) -> None:
        """Check that a sequence of ``seq_len`` tokens can be processed.

        Raises:
            ValueError: naming the key, the value it got and the nearest value that would do.
        """
        if type(seq_len) is not int or seq_len < 1:
            raise ValueError(f"seq_len = {seq_len!r}: must be a positive int")
        chunks, width = self.num_chunks, self.coarsest_width
        if seq_len % (chunks * width):
            raise ValueError(
                f"seq_len = {seq_len}: must be divisible by num_chunks * pooling_factor ** "
                f"(num_levels - 1) = {chunks} * {width} = {chunks * width}; nearest is "
                f"{self._nearest_seq_len(seq_len)}"
            )
        if self.scorer in INTERLEAVED_SCORERS and seq_len // chunks % self.dilation:
            raise ValueError(
                f"dilation = {self.dilation}: must divide seq_len / num_chunks = "
                f"{seq_len // chunks} for the {self.scorer} scorer; nearest is "
                f"{self._nearest_dilation(seq_len)}"
            )
        coarsest = seq_len // width
        if self.topk > coarsest:
            step = chunks * self.stratum
            if step <= coarsest:
                way_out = f"nearest is {coarsest // step * step}"
            else:
                way_out = (
                    f"no topk does with stratum = {self.stratum}: use seq_len >= "
                    f"{self._nearest_seq_len(seq_len)}"
                )
                stratum = coarsest // chunks // 2 * 2
                if stratum:
                    way_out += f", or topk = {chunks * stratum} with stratum = {stratum}"
            raise ValueError(
                f"topk = {self.topk}: every stratum needs at least stratum = {self.stratum} "
                f"coarsest entries, so topk can be at most seq_len / pooling_factor ** "
                f"(num_levels - 1) = {coarsest}; {way_out}"
            )

    def next_len(self, seq_len: int) -> int:
        """The shortest length that fits and is no less than ``seq_len``.

        Tokens that are added at the end change nothing before them under the causal selection; give
        them no loss, or cut them off again.

        Raises:
            ValueError: ``seq_len`` is not positive.
        """
        if type(seq_len) is not int or seq_len < 1:
            raise ValueError(f"seq_len = {seq_len!r}: must be a positive int")
        divisor, least = self._seq_len_divisor, self.topk * self.coarsest_width
        return -(-max(seq_len, least) // divisor) * divisor

    @property
    def _seq_len_divisor(self) -> int:
        divisor = self.num_chunks * self.coarsest_width
        if self.scorer in INTERLEAVED_SCORERS:
            divisor = math.lcm(divisor, self.num_chunks * self.dilation)
        return divisor

    def _nearest_seq_len(self, seq_len: int) -> int:
        divisor = self._seq_len_divisor
        least = -(-self.topk * self.coarsest_width // divisor) * divisor
        return max(least, nearest_multiple(seq_len, divisor))

    def _nearest_dilation(self, seq_len: int) -> int:
        chunk_len = seq_len // self.num_chunks
        divisors = (d for d in range(1, chunk_len + 1) if chunk_len % d == 0)
        return min(divisors, key=lambda d: abs(d - self.dilation))

    def gathered_len(self, seq_len: int) -> int:
        """S = n_{L-1} + (L-1) * p * k, rows of the gathered sub-sequence.

        Raises:
            ValueError: if :meth:`validate` refuses ``seq_len``.
        """
        self.validate(seq_len)
        refined_children = (self.num_levels - 1) * self.pooling_factor * self.topk
        return seq_len // self.coarsest_width + refined_children
