"""Integers that launches need: a configuration as the operators take it, and rounding."""

from typing import NamedTuple

from lighthouse.config import LighthouseConfig


class Geometry(NamedTuple):
    """What the kernels need of a configuration, in the order of an operator's list."""

    num_levels: int
    pooling_factor: int
    topk: int
    stratum: int
    num_chunks: int
    cover_prefix: int
    causal: int

    @property
    def coarsest_width(self) -> int:
        return self.pooling_factor ** (self.num_levels - 1)


def geometry_of(config: LighthouseConfig) -> list[int]:
    """The list that an operator is called with."""
    return [
        config.num_levels,
        config.pooling_factor,
        config.topk,
        config.stratum,
        config.num_chunks,
        int(config.cover_prefix),
        int(config.selection == "causal"),
    ]


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up; Triton's own takes the host 2 us a call, and this nothing."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest that is no less than ``n``; likewise."""
    return 1 << (n - 1).bit_length()
