"""MoBA where a run has windows: ``experimental.custom_import = "benchmarks.study.moba"``.

A token of a window of n * 512 tokens then attends to its own block of 512 and, of those before it,
to the n - 1 whose mean keys fit it best. The library's call cannot be compiled. So it is an
operator here that keeps the call's own graph until its backward: for runs without checkpointing,
where backward comes to the layers in reversed order. On CPUs a mask stands in for the library.
"""

from typing import Any

import torch
from torch import Tensor

import lighthouse.attention
from benchmarks import flash_attn_shim
from benchmarks.rivals_blocks import moba_mask
from benchmarks.rivals_check import masked
from lighthouse.titan.hooks import RunHooks

BLOCK = 512

_kept: list[tuple[list[Tensor], Tensor]] = []
_begin_step = RunHooks.begin_step

# Inside of an operator nothing is recorded, unless the thread is told to be as it is here.
_as_outside = (
    torch._C._dispatch_tls_local_include_set(),
    torch._C._dispatch_tls_local_exclude_set(),
)


def moba(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, *, window: int) -> Tensor:
    """In place of :func:`lighthouse.window_attention`."""
    if window % BLOCK:
        raise ValueError(f"window = {window}: must be a multiple of {BLOCK} for MoBA")
    out: Tensor = _moba(q_BHND, k_BHND, v_BHND, window // BLOCK)
    return out


def attend(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, count: int) -> Tensor:
    """(B, H, N, D): causal attention to ``count`` blocks, a token's own among them."""
    share = q_BHND.shape[1] // k_BHND.shape[1]
    k_BHND, v_BHND = (x.repeat_interleave(share, 1) for x in (k_BHND, v_BHND))
    batch, _, seq_len, _ = q_BHND.shape
    if q_BHND.device.type == "cpu":
        mask = moba_mask(q_BHND, k_BHND, block=min(BLOCK, seq_len // 4), count=count)
        return masked(mask)(q_BHND, k_BHND, v_BHND)
    flash_attn_shim.install()
    from fla.ops.moba import parallel_moba

    ends = torch.arange(batch + 1, dtype=torch.int32, device=q_BHND.device) * seq_len
    packed = (x.transpose(1, 2).flatten(0, 1)[None] for x in (q_BHND, k_BHND, v_BHND))
    out: Tensor = parallel_moba(*packed, ends, seq_len, BLOCK, count)
    return out[0].unflatten(0, (batch, seq_len)).transpose(1, 2)


@torch.library.custom_op("benchmarks::moba", mutates_args=())
def _moba(q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
    with torch._C._ForceDispatchKeyGuard(*_as_outside), torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, count)
    _kept.append((inputs, out))
    return _tokens_first(out.detach())


@_moba.register_fake
def _(q: Tensor, _k: Any, _v: Any, _c: int) -> Tensor:
    return _tokens_first(torch.empty_like(q))


@torch.library.custom_op("benchmarks::moba_backward", mutates_args=())
def _moba_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    inputs, out = _kept.pop()
    with torch._C._ForceDispatchKeyGuard(*_as_outside), torch.enable_grad():
        return [x.contiguous() for x in torch.autograd.grad(out, inputs, grad)]


@_moba_backward.register_fake
def _(_g: Any, *inputs: Tensor) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _tokens_first(x_BHND: Tensor) -> Tensor:
    return x_BHND.transpose(1, 2).contiguous().transpose(1, 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_moba_backward(grad, *ctx.saved_tensors), None


_moba.register_autograd(_backward, setup_context=_setup)


def begin_step(self: RunHooks, *args: Any) -> None:
    _kept.clear()  # of validation, which has no backward
    _begin_step(self, *args)


RunHooks.begin_step = begin_step  # type: ignore[method-assign]
lighthouse.attention.window_attention = moba  # type: ignore[assignment]
