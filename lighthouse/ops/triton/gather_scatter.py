"""Gather and scatter as operators: what the two kernels of this package do, each other's backward.

``token_major`` says whether tokens are laid out (B, N, H, D) in memory, as in the trainer, or
(B, H, N, D): outputs and gradients take the order that the inputs have, so that nothing is copied.
An operator's arguments that its forward has no use for are there for its backward.
"""

from typing import Any

import torch
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.ops.triton.geometry import Geometry, geometry_of
from lighthouse.ops.triton.pull import empty_tokens, pull_rows
from lighthouse.ops.triton.windows import sum_windows
from lighthouse.pyramid import Selection


def _is_token_major(x_BHND: Tensor) -> bool:
    return x_BHND.stride(2) > x_BHND.stride(1)


def _empty_rows(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], index.shape[2], x.shape[3])


@torch.library.custom_op("lighthouse::gather", mutates_args=())
def _gather(
    x: Tensor, coarsest: Tensor, index: Tensor, slot: Tensor, geometry: list[int], token_major: bool
) -> Tensor:
    return sum_windows(x, coarsest, index, Geometry(*geometry))


@_gather.register_fake
def _(x: Tensor, coarsest: Tensor, index: Tensor, *_: Any) -> Tensor:
    return _empty_rows(x, index)


@torch.library.custom_op("lighthouse::gather_backward", mutates_args=())
def _gather_backward(
    grad_rows: Tensor, slot: Tensor, seq_len: int, geometry: list[int], token_major: bool
) -> Tensor:
    x = empty_tokens(grad_rows, seq_len, token_major)
    return pull_rows(grad_rows, slot, x, Geometry(*geometry), spoken=False)


@_gather_backward.register_fake
def _(grad_rows: Tensor, slot: Tensor, seq_len: int, _: Any, token_major: bool) -> Tensor:
    return empty_tokens(grad_rows, seq_len, token_major)


def _gather_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, _, slot, ctx.geometry, ctx.token_major = inputs
    ctx.seq_len = x.shape[2]
    ctx.save_for_backward(slot)


def _gather_gradients(ctx: Any, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
    (slot,) = ctx.saved_tensors
    grad_x = _gather_backward(grad_rows, slot, ctx.seq_len, ctx.geometry, ctx.token_major)
    # None for ``coarsest`` too: grad_x has what flows through it, since its rows are in ``slot``.
    return grad_x, None, None, None, None, None


_gather.register_autograd(_gather_gradients, setup_context=_gather_setup)


@torch.library.custom_op("lighthouse::scatter", mutates_args=())
def _scatter(
    rows: Tensor,
    index: Tensor,
    slot: Tensor,
    first_token: Tensor | None,
    seq_len: int,
    geometry: list[int],
    token_major: bool,
) -> Tensor:
    x = empty_tokens(rows, seq_len, token_major)
    return pull_rows(rows, slot, x, Geometry(*geometry), spoken=True, first_token=first_token)


@_scatter.register_fake
def _(rows: Tensor, _i: Any, _s: Any, _f: Any, seq_len: int, _g: Any, token_major: bool) -> Tensor:
    return empty_tokens(rows, seq_len, token_major)


@torch.library.custom_op("lighthouse::scatter_backward", mutates_args=())
def _scatter_backward(
    grad_out: Tensor, index: Tensor, first_token: Tensor | None, geometry: list[int]
) -> Tensor:
    return sum_windows(grad_out, None, index, Geometry(*geometry), first_token)


@_scatter_backward.register_fake
def _(grad_out: Tensor, index: Tensor, *_: Any) -> Tensor:
    return _empty_rows(grad_out, index)


def _scatter_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, _, first_token, _, ctx.geometry, _ = inputs
    ctx.save_for_backward(index, first_token)


def _scatter_gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grad_rows = _scatter_backward(grad_out, *ctx.saved_tensors, ctx.geometry)
    return grad_rows, None, None, None, None, None, None


_scatter.register_autograd(_scatter_gradients, setup_context=_scatter_setup)


def gather(
    x_BHND: Tensor, coarsest_BHCD: Tensor, selection: Selection, config: LighthouseConfig
) -> Tensor:
    """As in the reference."""
    index, slot = selection.index, selection.slot
    in_order = _is_token_major(x_BHND)
    return _gather(x_BHND, coarsest_BHCD, index, slot, geometry_of(config), in_order)


def scatter(
    rows_BHSD: Tensor, selection: Selection, like_BHND: Tensor, config: LighthouseConfig
) -> Tensor:
    """As in the reference."""
    seq_len, in_order = like_BHND.shape[2], _is_token_major(like_BHND)
    of_selection = selection.index, selection.slot, selection.first_token
    return _scatter(rows_BHSD, *of_selection, seq_len, geometry_of(config), in_order)
