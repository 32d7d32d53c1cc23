"""Pyramid geometry: partition, containment, and exact integers up to 2**40 tokens."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighthouse.pyramid import Pyramid

LONGEST = 2**40


@st.composite
def pyramids(draw: st.DrawFn, longest: int) -> Pyramid:
    num_levels = draw(st.integers(2, 6))
    most_children = max(p for p in range(2, 65) if p ** (num_levels - 1) <= longest)
    pooling_factor = draw(st.integers(2, most_children))
    width = pooling_factor ** (num_levels - 1)
    return Pyramid(draw(st.integers(1, longest // width)) * width, num_levels, pooling_factor)


@given(pyramids(LONGEST), st.data())
def test_exact_integers(pyramid: Pyramid, data: st.DataObject) -> None:
    p, N = pyramid.pooling_factor, pyramid.seq_len
    sizes, widths, offsets = pyramid.level_sizes, pyramid.widths, pyramid.offsets
    assert len(sizes) == len(widths) == len(offsets) == pyramid.num_levels
    assert sizes[0] == N and widths[0] == 1 and offsets[0] == 0
    for level in range(1, pyramid.num_levels):
        assert sizes[level] * p == sizes[level - 1]
        assert widths[level] == p * widths[level - 1]
        assert offsets[level] == offsets[level - 1] + sizes[level - 1]
    for level in range(pyramid.num_levels):
        assert sizes[level] * widths[level] == N
    assert pyramid.num_entries == sum(sizes) == offsets[-1] + sizes[-1]
    assert all(type(x) is int for x in (*sizes, *widths, *offsets, pyramid.num_entries))

    level = data.draw(st.integers(0, pyramid.num_levels - 1))
    i = data.draw(st.integers(0, sizes[level] - 1))
    first, last = pyramid.span(level, i)
    assert type(first) is int and type(last) is int
    assert first == i * p**level
    assert last - first + 1 == p**level
    assert 0 <= first <= last < N
    assert pyramid.span(level, sizes[level] - 1)[1] == N - 1


@given(pyramids(LONGEST), st.data())
def test_parent_holds_exactly_its_children(pyramid: Pyramid, data: st.DataObject) -> None:
    p = pyramid.pooling_factor
    level = data.draw(st.integers(1, pyramid.num_levels - 1))
    i = data.draw(st.integers(0, pyramid.level_sizes[level] - 1))
    children = [pyramid.span(level - 1, i * p + child) for child in range(p)]
    assert pyramid.span(level, i) == (children[0][0], children[-1][1])
    for left, right in pairwise(children):
        assert left[1] + 1 == right[0]


@given(pyramids(2000))
def test_each_level_partitions_the_tokens(pyramid: Pyramid) -> None:
    for level, size in enumerate(pyramid.level_sizes):
        covered: list[int] = []
        for i in range(size):
            first, last = pyramid.span(level, i)
            covered += range(first, last + 1)
        assert covered == list(range(pyramid.seq_len))


def test_by_hand() -> None:
    pyramid = Pyramid(seq_len=18, num_levels=3, pooling_factor=3)
    assert pyramid.level_sizes == (18, 6, 2)
    assert pyramid.widths == (1, 3, 9)
    assert pyramid.offsets == (0, 18, 24)
    assert pyramid.num_entries == 26
    assert pyramid.span(0, 17) == (17, 17)
    assert pyramid.span(1, 2) == (6, 8)
    assert pyramid.span(2, 1) == (9, 17)


@pytest.mark.parametrize("pooling_factor, num_levels", [(5, 10), (7, 9)])
def test_powers_that_logarithms_get_wrong(pooling_factor: int, num_levels: int) -> None:
    """exp(log(p) * l) truncated to an integer is off by one here; integer powers are not."""
    width = pooling_factor ** (num_levels - 1)
    pyramid = Pyramid(3 * width, num_levels, pooling_factor)
    assert pyramid.level_sizes[-1] == 3
    assert pyramid.widths[-1] == width
    assert pyramid.span(num_levels - 1, 2) == (2 * width, 3 * width - 1)
