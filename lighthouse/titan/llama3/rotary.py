"""Rotary embedding, in real arithmetic where torch.compile can fuse that into one pass."""

import math
from typing import Any

import torch
from torch import Tensor


def rotate(x_BNHD: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels by its angle.

    Args:
        x_BNHD: (B, N, H, D) of any floating dtype.
        freqs_cis: complex64, broadcastable to (B, N, H, D/2): the angles as complex numbers.

    Returns:
        (B, N, H, D) in the dtype of ``x_BNHD``, computed in fp32: the product of complex numbers,
        to the last bit but where a compiler contracts multiply and add.
    """
    # The compiler does not fuse complex products; without it they take a sixth of the time.
    in_pairs = rotate_real if torch.compiler.is_compiling() else rotate_complex
    return in_pairs(x_BNHD.float().unflatten(-1, (-1, 2)), freqs_cis).flatten(-2).type_as(x_BNHD)


def rotate_real(pairs: Tensor, freqs_cis: Tensor) -> Tensor:
    """The pairs (..., 2) turned, as a compiler likes it."""
    real, imaginary = pairs.unbind(-1)
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)


def rotate_complex(pairs: Tensor, freqs_cis: Tensor) -> Tensor:
    """The pairs (..., 2) turned, in one product."""
    return torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * freqs_cis)


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
