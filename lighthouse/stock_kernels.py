"""PyTorch's attention kernels with their log-sum-exp, and their backward for any log-sum-exp.

So the softmaxes of several calls over different keys become one, and backward gives each call the
whole output and its log-sum-exp.

Shape suffixes: C batch, H heads (query or key/value), R rows, D head dimension.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention

_aten = torch.ops.aten

_MOST_BLOCKS = 2**15
"""Batch entries of a call: CUDA's grids have at most 65,535 in their lesser dimensions."""

_MOST_LOGITS = 2**28
"""At a time, where no stock kernel does: on GPUs in fp32 and float64."""


@dataclass(frozen=True)
class Kernel:
    """A call for (C, H, R, D), its backward for the gradient, the same, output and log-sum-exp."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    most: int = _MOST_BLOCKS


def kernel_for(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Kernel:
    """The stock kernel for these inputs. All take grouped heads as they are."""
    if q.device.type == "cpu":
        return _on_cpu(causal)
    if q.is_cuda:
        params = SDPAParams(q, k, v, None, 0.0, causal, q.shape[1] != k.shape[1])
        if can_use_cudnn_attention(params):
            return _cudnn(causal)
        if q.shape[-1] % 8 == 0 and can_use_flash_attention(params):
            return _flash(causal)
    logits = q.shape[1] * q.shape[2] * k.shape[2]
    return plain(causal, max(1, _MOST_LOGITS // logits))


def in_turn(
    call: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], most: int
) -> tuple[Tensor, ...]:
    """Call with ``most`` batch entries at a time."""
    if inputs[0].shape[0] <= most:
        return call(*inputs)
    turns = zip(*(x.split(most) for x in inputs), strict=True)
    return tuple(map(torch.cat, zip(*(call(*turn) for turn in turns), strict=True)))


def lse_dtype(x: Tensor) -> torch.dtype:
    """In which a log-sum-exp of such queries is kept."""
    return torch.promote_types(x.dtype, torch.float32)


def _on_cpu(causal: bool) -> Kernel:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        return out, lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal
        )
        return dq, dk, dv

    return Kernel(forward, backward)


def _cudnn(causal: bool) -> Kernel:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, causal, False
        )
        return out, lse.view(out.shape[:3])

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Without dropout nothing is drawn, and the state of the generator is not read.
        state = q.new_zeros((), dtype=torch.int64)
        dq, dk, dv = _aten._scaled_dot_product_cudnn_attention_backward(
            *(grad, q, k, v, out, lse[..., None], state, state, None, None, None),
            *(q.shape[2], k.shape[2], 0.0, causal),
        )
        return dq, dk, dv

    return Kernel(forward, backward)


def _flash(causal: bool) -> Kernel:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
        return out, lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = q.new_zeros(2, dtype=torch.uint64)
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
            *(grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal),
            *(state, state),
        )
        return dq, dk, dv

    return Kernel(forward, backward)


def plain(causal: bool, most: int) -> Kernel:
    """Products of matrices, for what has no stock kernel that returns its log-sum-exp."""

    def logits(q: Tensor, k: Tensor) -> Tensor:
        scaled = q.to(lse_dtype(q)) @ k.to(lse_dtype(k)).mT / math.sqrt(q.shape[-1])
        if not causal:
            return scaled
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        return scaled.masked_fill(future, -math.inf)

    def of_queries(x: Tensor, heads: int) -> Tensor:
        return x.repeat_interleave(heads // x.shape[1], 1)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = of_queries(k, q.shape[1]), of_queries(v, q.shape[1])
        scores = logits(q, k)
        lse = scores.logsumexp(-1)
        out = (scores - lse[..., None]).exp() @ v.to(lse.dtype)
        return out.to(q.dtype), lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kv_heads = k.shape[1]
        wide = lse.dtype
        k, v = of_queries(k, q.shape[1]).to(wide), of_queries(v, q.shape[1]).to(wide)
        weights = (logits(q, k) - lse[..., None]).exp()
        grad = grad.to(wide)
        dot = (grad * out.to(wide)).sum(-1, keepdim=True)
        d_logits = weights * (grad @ v.mT - dot) / math.sqrt(q.shape[-1])
        of_heads = d_logits.mT @ q.to(wide), weights.mT @ grad
        dk, dv = (x.unflatten(1, (kv_heads, -1)).sum(2).to(q.dtype) for x in of_heads)
        return (d_logits @ k).to(q.dtype), dk, dv

    return Kernel(forward, backward, most)
