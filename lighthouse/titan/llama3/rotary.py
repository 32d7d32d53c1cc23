"""Rotary embedding, in real arithmetic where torch.compile can fuse that into one pass."""

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
