"""Launches that serve several tensors: one for queries, keys and values costs a third of three.

The tensors agree in all but their heads and strides. A kernel gets a tuple of each thing that they
don't share, HEADS among them; heads are neighbours in the grid, since in the trainer those of a
tensor are neighbours in memory. A program has one head of one tensor, and finds out whose by a few
scalar comparisons. With one tensor there are none.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def of_tensor(i_any, of_each, HEADS: tl.constexpr):
    """Of a tuple, by tensor, what the tensor with the ``i_any``-th of all heads has.

    A tuple of one is for all of them.
    """
    chosen = of_each[0]
    before = HEADS[0]
    for i in tl.static_range(1, len(of_each)):
        chosen = tl.where(i_any >= before, of_each[i], chosen)
        before += HEADS[i]
    return chosen


@triton.jit
def head_of(i_any, HEADS: tl.constexpr):
    """Which head of its tensor the ``i_any``-th of all is."""
    i_h = i_any
    before = HEADS[0]
    for i in tl.static_range(1, len(HEADS)):
        i_h = tl.where(i_any >= before, i_any - before, i_h)
        before += HEADS[i]
    return i_h


def rows_contiguous(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The same with elements of a row side by side."""
    return tuple([x if x.stride(3) == 1 else x.contiguous() for x in tensors])


def strides_of(tensors: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    """Of batch, heads and tokens: by tensor, or one for all, which takes a kernel no registers."""
    by_tensor = [x.stride() for x in tensors]
    return [s[:1] if s.count(s[0]) == len(s) else s for s in list(zip(*by_tensor, strict=True))[:3]]
