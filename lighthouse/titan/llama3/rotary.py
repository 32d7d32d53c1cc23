"""Rotary embedding, in real arithmetic where torch.compile can fuse that into one pass."""

import math
from typing import Any

import torch
from torch import Tensor


def rotate(x_BNHD: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels by its angle.

    Args:
        x_BNHD: (B, N, H, D) of any floating dtype.
        freqs_cis: complex64, broadcastable to (B, N, H, D/2): the angles as complex numbers. They
            get no gradient.

    Returns:
        (B, N, H, D) in the dtype of ``x_BNHD``, computed in fp32: the product of complex numbers,
        to the last bit but where a compiler contracts multiply and add.
    """
    # The compiler does not fuse complex products; without it they take a sixth of the time.
    if not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(x_BNHD.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * freqs_cis).flatten(-2).type_as(x_BNHD)
    real_imaginary = torch.view_as_real(freqs_cis)
    if x_BNHD.dtype is torch.bfloat16:
        of_words: Tensor = _Words.apply(x_BNHD, real_imaginary)
        return of_words
    real, imaginary = x_BNHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = _turn(real, imaginary, real_imaginary)
    return torch.stack(turned, dim=-1).flatten(-2).type_as(x_BNHD)


def _turn(
    real: Tensor, imaginary: Tensor, freqs: Tensor, back: bool = False
) -> tuple[Tensor, Tensor]:
    """Both in fp32, by angles (..., 2) or by their opposites."""
    cos, sin = freqs.unbind(-1)
    # With -sin made first, the compiler would keep it for backward, in each layer.
    if back:
        return real * cos + imaginary * sin, imaginary * cos - real * sin
    return real * cos - imaginary * sin, real * sin + imaginary * cos


@torch.compiler.allow_in_graph  # in torch 2.11 checkpoints would keep its output otherwise
class _Words(torch.autograd.Function):
    """Of bfloat16, both channels of a pair as one word of 32 bits: read and written once.

    As a compiler derives it, backward puts pairs together out of halves, and takes as long again as
    its bytes need (benchmarks/rotary.py).
    """

    @staticmethod
    def forward(ctx: Any, x_BNHD: Tensor, freqs: Tensor) -> Tensor:
        ctx.save_for_backward(freqs)
        return _turn_words(x_BNHD, freqs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (freqs,) = ctx.saved_tensors
        return _turn_words(grads[0], freqs, back=True), None


def _turn_words(x: Tensor, freqs: Tensor, back: bool = False) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    words = x.view(torch.int32)  # the first of a pair is the lower half
    real, imaginary = (half.view(torch.float32) for half in (words << 16, words & ~0xFFFF))
    low, high = (
        half.bfloat16().view(torch.int16).int() for half in _turn(real, imaginary, freqs, back)
    )
    return (low & 0xFFFF | high << 16).view(torch.bfloat16)


def frequencies(head_dim: int, theta: float, scaling: Any) -> Tensor:
    """Radians per position of each pair of channels, fp32 (head_dim / 2,), on the default device.

    Args:
        head_dim: channels of a head.
        theta: base of the wavelengths.
        scaling: torchtitan's ``RoPEScalingArgs``, of type none, linear or yarn; upstream's code has
            llama3.
    """
    plain = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    if scaling.rope_type == "none":
        return plain
    stretched = plain / scaling.scaling_factor
    if scaling.rope_type == "linear":
        return stretched
    # YaRN: pairs that turn more than beta_fast times in the original length stay as they are, those
    # that turn less than beta_slow times are stretched, and in between it goes in a line.
    length = scaling.original_max_position_embeddings

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(length / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    # As transformers has it: the upper bound is of channels, not of pairs.
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 0.001
    stretch = ((torch.arange(head_dim // 2).float() - first) / width).clamp(0, 1)
    return stretched * stretch + plain * (1 - stretch)
