"""Rotary embedding in real arithmetic, which torch.compile fuses into one pass."""

import torch
from torch import Tensor


def rotate(x_BNHD: Tensor, freqs_cis: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels by its angle.

    Args:
        x_BNHD: (B, N, H, D) of any floating dtype.
        freqs_cis: complex64, broadcastable to (B, N, H, D/2): the angles as complex numbers.

    Returns:
        (B, N, H, D) in the dtype of ``x_BNHD``, computed in fp32: the product of
        complex numbers, to the last bit but where a compiler contracts multiply and add.
    """
    real, imaginary = x_BNHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = torch.view_as_real(freqs_cis).unbind(-1)
    pairs = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return pairs.flatten(-2).type_as(x_BNHD)
