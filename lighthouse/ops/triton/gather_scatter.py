"""Gather and scatter with gradients, out of two kernels, each the other's backward.

``token_major`` says whether tokens are laid out (B, N, H, D) in memory, as in the trainer, or
(B, H, N, D): outputs and gradients take the order that the inputs have, so that nothing is copied.

Dynamo takes both functions of autograd as they are, each as one node of its graph. If it looks into
one inside a checkpoint, torch 2.11 does not compute its results again for backward but keeps them:
rows and output, of each layer more than the input that full checkpointing keeps.
"""

from typing import Any

import torch
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.inputs import QKV
from lighthouse.ops.triton.geometry import Geometry, geometry_of
from lighthouse.ops.triton.operator import operator
from lighthouse.ops.triton.pull import empty_tokens, pull_rows
from lighthouse.ops.triton.windows import sum_windows
from lighthouse.pyramid import Selection


def _is_token_major(x_BHND: Tensor) -> bool:
    return x_BHND.stride(2) > x_BHND.stride(1)


def _empty_rows(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], index.shape[2], x.shape[3])


# ---- gather


def _fake_gather(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> QKV:
    index = rest[3]
    return _empty_rows(q, index), _empty_rows(k, index), _empty_rows(v, index)


@operator(_fake_gather)
def _gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_coarsest: Tensor,
    k_coarsest: Tensor,
    v_coarsest: Tensor,
    index: Tensor,
    geometry: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    coarsest = q_coarsest, k_coarsest, v_coarsest
    q, k, v = sum_windows([q, k, v], coarsest, index, Geometry(*geometry))
    return q, k, v


def _empty_tokens_of_each(
    grad_rows: list[Tensor], _: Any, seq_len: int, __: Any, token_major: list[bool]
) -> list[Tensor]:
    return [empty_tokens(x, seq_len, o) for x, o in zip(grad_rows, token_major, strict=True)]


@operator(_empty_tokens_of_each, backward=True)
def _gather_backward(
    grad_rows: list[Tensor],
    slot: Tensor,
    seq_len: int,
    geometry: list[int],
    token_major: list[bool],
) -> list[Tensor]:
    """Of as many of the three as are asked for, at least one."""
    tokens = _empty_tokens_of_each(grad_rows, slot, seq_len, geometry, token_major)
    pull_rows(grad_rows, slot, tokens, Geometry(*geometry), spoken=False)
    return tokens


@torch.compiler.allow_in_graph
class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_coarsest: Tensor,
        k_coarsest: Tensor,
        v_coarsest: Tensor,
        index: Tensor,
        slot: Tensor,
        geometry: list[int],
    ) -> QKV:
        ctx.seq_len, ctx.geometry = q.shape[2], geometry
        ctx.token_major = [_is_token_major(q), _is_token_major(k), _is_token_major(v)]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(slot)
        return _gather(q, k, v, q_coarsest, k_coarsest, v_coarsest, index, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # The coarsest means have none: what flows through them is in that of the tokens, since
        # their rows are in ``slot``.
        (slot,) = ctx.saved_tensors
        asked = [i for i in range(3) if grads[i] is not None and ctx.needs_input_grad[i]]
        results: list[Tensor | None] = [None] * 9
        if asked:
            of_rows = [grads[i] for i in asked]
            order = [ctx.token_major[i] for i in asked]
            of_tokens = _gather_backward(of_rows, slot, ctx.seq_len, ctx.geometry, order)
            for i, grad in zip(asked, of_tokens, strict=True):
                results[i] = grad
        return tuple(results)


def gather(qkv: QKV, coarsest: QKV, selection: Selection, config: LighthouseConfig) -> QKV:
    """As in the reference."""
    index, geometry = selection.index, geometry_of(config)
    if not torch.is_grad_enabled():  # a function of autograd costs as much again
        return _gather(*qkv, *coarsest, index, geometry)
    return _Gather.apply(*qkv, *coarsest, index, selection.slot, geometry)


# ---- scatter


def _fake_scatter(
    rows: Tensor, _s: Any, _f: Any, seq_len: int, _g: Any, token_major: bool
) -> Tensor:
    return empty_tokens(rows, seq_len, token_major)


@operator(_fake_scatter)
def _scatter(
    rows: Tensor,
    slot: Tensor,
    first_token: Tensor | None,
    seq_len: int,
    geometry: list[int],
    token_major: bool,
) -> Tensor:
    tokens = empty_tokens(rows, seq_len, token_major)
    of_geometry = Geometry(*geometry)
    pull_rows([rows], slot, [tokens], of_geometry, spoken=True, first_token=first_token)
    return tokens


def _fake_scatter_backward(grad_out: Tensor, index: Tensor, *_: Any) -> Tensor:
    return _empty_rows(grad_out, index)


@operator(_fake_scatter_backward, backward=True)
def _scatter_backward(
    grad_out: Tensor, index: Tensor, first_token: Tensor | None, geometry: list[int]
) -> Tensor:
    (rows,) = sum_windows([grad_out], None, index, Geometry(*geometry), first_token)
    return rows


@torch.compiler.allow_in_graph
class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        index: Tensor,
        slot: Tensor,
        first_token: Tensor | None,
        seq_len: int,
        geometry: list[int],
        token_major: bool,
    ) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(index, first_token)
        return _scatter(rows, slot, first_token, seq_len, geometry, token_major)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grad_rows = _scatter_backward(grad_out, *ctx.saved_tensors, ctx.geometry)
        return grad_rows, None, None, None, None, None, None


def scatter(
    rows_BHSD: Tensor, selection: Selection, like_BHND: Tensor, config: LighthouseConfig
) -> Tensor:
    """As in the reference."""
    how = like_BHND.shape[2], geometry_of(config), _is_token_major(like_BHND)
    of_selection = selection.slot, selection.first_token
    if not torch.is_grad_enabled():
        return _scatter(rows_BHSD, *of_selection, *how)
    return _Scatter.apply(rows_BHSD, selection.index, *of_selection, *how)
