"""The four functions of flash-attn 2 that flash-linear-attention calls, out of PyTorch's own copy.

flash-attn has to be built from source. PyTorch carries its kernels, so ``install`` lets NSA and
MoBA find them under the name that they import. Two things differ: gradients are copied to where
flash-attn would have written them, and ``deterministic`` is PyTorch's own setting, not an argument.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.windows import flash


def _flash_attn_varlen_forward(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor, None, None]:
    """Output (tokens, H, D) and log-sum-exp (H, tokens); what follows has to do with dropout."""
    ends = (cu_seqlens_q.int(), cu_seqlens_k.int(), max_seqlen_q, max_seqlen_k)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *ends, dropout_p, causal, False, scale=softmax_scale
    )
    return out, lse, None, None


def _flash_attn_varlen_backward(
    *,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    dropout_p: float = 0.0,
    **_: Any,
) -> None:
    """Writes dq, dk and dv."""
    ends = (cu_seqlens_q.int(), cu_seqlens_k.int(), max_seqlen_q, max_seqlen_k)
    state = q.new_zeros(2, dtype=torch.uint64)  # of a dropout that there is not
    found = torch.ops.aten._flash_attention_backward(
        *(dout, q, k, v, out, softmax_lse, *ends, dropout_p, causal, state, q.new_empty(0)),
        scale=softmax_scale,
    )
    for place, gradient in zip((dq, dk, dv), found, strict=True):
        place.copy_(gradient)


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, settings: dict[str, Any]) -> Tensor:
        out, lse, *_ = _flash_attn_varlen_forward(q=q, k=k, v=v, **settings)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        found = {"dq": torch.empty_like(q), "dk": torch.empty_like(k), "dv": torch.empty_like(v)}
        _flash_attn_varlen_backward(
            dout=dout, q=q, k=k, v=v, out=out, softmax_lse=lse, **found, **ctx.settings
        )
        return *found.values(), None


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
) -> Tensor:
    settings = {
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
        "max_seqlen_q": max_seqlen_q,
        "max_seqlen_k": max_seqlen_k,
        "softmax_scale": q.shape[-1] ** -0.5,
        "causal": causal,
    }
    return _Varlen.apply(q, k, v, settings)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int]
) -> Tensor:
    """In a causal window, (B, N, H, D): all that NSA asks for."""
    left, right = window_size
    if not causal or left < 0 or right != 0:
        raise NotImplementedError(f"causal={causal}, window_size={window_size}")
    return flash(*(x.transpose(1, 2) for x in (q, k, v)), window=left + 1).transpose(1, 2)


def install() -> None:
    """Before fla is imported."""
    names = {"flash_attn": [flash_attn_func, flash_attn_varlen_func]}
    names["flash_attn.flash_attn_interface"] = [
        _flash_attn_varlen_forward,
        _flash_attn_varlen_backward,
    ]
    for name, functions in names.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for function in functions:
            setattr(module, function.__name__, function)
        sys.modules[name] = module
