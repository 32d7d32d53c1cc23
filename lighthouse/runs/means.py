"""Means of numbers that may not be finite, for which Python's have errors of several kinds."""

import statistics
from collections.abc import Sequence


def mean_of(values: Sequence[float]) -> float:
    """Of numbers that may be infinite, or be so in sum."""
    try:
        return statistics.fmean(values)
    except (ValueError, OverflowError):
        return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of at least two numbers; infinite or NaN where one of them is."""
    variance: float = statistics.variance(values)  # `stdev` knows no NaN
    return float((variance / len(values)) ** 0.5)
