"""Gather and scatter as operators: what the two kernels of this package do, each other's backward.

``token_major`` says whether tokens are laid out (B, N, H, D) in memory, as in the trainer, or
(B, H, N, D): outputs and gradients take the order that the inputs have, so that nothing is copied.
An operator's arguments that its forward has no use for are there for its backward.
"""

from typing import Any

import torch
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.ops.triton.pull import empty_tokens, pull_rows
from lighthouse.ops.triton.windows import sum_windows


def _is_token_major(x_BHND: Tensor) -> bool:
    return x_BHND.stride(2) > x_BHND.stride(1)


@torch.library.custom_op("lighthouse::gather", mutates_args=())
def _gather(
    x: Tensor,
    coarsest: Tensor,
    index: Tensor,
    slot: Tensor,
    num_levels: int,
    pooling_factor: int,
    token_major: bool,
) -> Tensor:
    return sum_windows(x, coarsest, index, num_levels, pooling_factor)


@_gather.register_fake
def _(
    x: Tensor,
    coarsest: Tensor,
    index: Tensor,
    slot: Tensor,
    num_levels: int,
    pooling_factor: int,
    token_major: bool,
) -> Tensor:
    return x.new_empty(*x.shape[:2], index.shape[2], x.shape[3])


@torch.library.custom_op("lighthouse::gather_backward", mutates_args=())
def _gather_backward(
    grad_rows: Tensor,
    slot: Tensor,
    seq_len: int,
    num_levels: int,
    pooling_factor: int,
    token_major: bool,
) -> Tensor:
    return pull_rows(
        grad_rows,
        slot,
        seq_len,
        num_levels,
        pooling_factor,
        1,
        spoken=False,
        token_major=token_major,
    )


@_gather_backward.register_fake
def _(
    grad_rows: Tensor,
    slot: Tensor,
    seq_len: int,
    num_levels: int,
    pooling_factor: int,
    token_major: bool,
) -> Tensor:
    return empty_tokens(grad_rows, seq_len, token_major)


def _gather_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, _, slot, ctx.num_levels, ctx.pooling_factor, ctx.token_major = inputs
    ctx.seq_len = x.shape[2]
    ctx.save_for_backward(slot)


def _gather_gradients(ctx: Any, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
    (slot,) = ctx.saved_tensors
    grad_x = _gather_backward(
        grad_rows, slot, ctx.seq_len, ctx.num_levels, ctx.pooling_factor, ctx.token_major
    )
    # None for ``coarsest`` too: grad_x has what flows through it, since its rows are in ``slot``.
    return grad_x, None, None, None, None, None, None


_gather.register_autograd(_gather_gradients, setup_context=_gather_setup)


@torch.library.custom_op("lighthouse::scatter", mutates_args=())
def _scatter(
    rows: Tensor,
    index: Tensor,
    slot: Tensor,
    seq_len: int,
    num_levels: int,
    pooling_factor: int,
    num_chunks: int,
    token_major: bool,
) -> Tensor:
    return pull_rows(
        rows,
        slot,
        seq_len,
        num_levels,
        pooling_factor,
        num_chunks,
        spoken=True,
        token_major=token_major,
    )


@_scatter.register_fake
def _(
    rows: Tensor,
    index: Tensor,
    slot: Tensor,
    seq_len: int,
    num_levels: int,
    pooling_factor: int,
    num_chunks: int,
    token_major: bool,
) -> Tensor:
    return empty_tokens(rows, seq_len, token_major)


@torch.library.custom_op("lighthouse::scatter_backward", mutates_args=())
def _scatter_backward(
    grad_out: Tensor, index: Tensor, num_levels: int, pooling_factor: int, num_chunks: int
) -> Tensor:
    return sum_windows(grad_out, None, index, num_levels, pooling_factor, num_chunks)


@_scatter_backward.register_fake
def _(
    grad_out: Tensor, index: Tensor, num_levels: int, pooling_factor: int, num_chunks: int
) -> Tensor:
    return grad_out.new_empty(*grad_out.shape[:2], index.shape[2], grad_out.shape[3])


def _scatter_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, _, _, ctx.num_levels, ctx.pooling_factor, ctx.num_chunks, _ = inputs
    ctx.save_for_backward(index)


def _scatter_gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    (index,) = ctx.saved_tensors
    grad_rows = _scatter_backward(
        grad_out, index, ctx.num_levels, ctx.pooling_factor, ctx.num_chunks
    )
    return grad_rows, None, None, None, None, None, None, None


_scatter.register_autograd(_scatter_gradients, setup_context=_scatter_setup)


def gather(
    x_BHND: Tensor,
    coarsest_BHCD: Tensor,
    index_BKS: Tensor,
    slot_BKE: Tensor,
    config: LighthouseConfig,
) -> Tensor:
    """As in the reference."""
    return _gather(
        x_BHND,
        coarsest_BHCD,
        index_BKS,
        slot_BKE,
        config.num_levels,
        config.pooling_factor,
        _is_token_major(x_BHND),
    )


def scatter(
    rows_BHSD: Tensor,
    index_BKS: Tensor,
    slot_BKE: Tensor,
    like_BHND: Tensor,
    config: LighthouseConfig,
) -> Tensor:
    """As in the reference."""
    return _scatter(
        rows_BHSD,
        index_BKS,
        slot_BKE,
        like_BHND.shape[2],
        config.num_levels,
        config.pooling_factor,
        config.num_chunks,
        _is_token_major(like_BHND),
    )
