"""Rotary embedding, compiled or not, against a product of complex numbers in float64."""

import pytest
import torch
from torch import Tensor

from lighthouse.titan.llama3.rotary import rotate


def complex_product(x: Tensor, freqs_cis: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * freqs_cis).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [2, 6, 128])
@pytest.mark.parametrize("compiling", [False, True])
def test_rotates_pairs(
    monkeypatch: pytest.MonkeyPatch, compiling: bool, dtype: torch.dtype, head_dim: int
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 3, head_dim, generator=generator).to(dtype).requires_grad_()
    angles = 100 * torch.randn(9, head_dim // 2, generator=generator)
    freqs_cis = torch.polar(torch.ones_like(angles), angles)[None, :, None]
    out = rotate(x, freqs_cis)
    expected = complex_product(x, freqs_cis)
    # Three roundings in fp32, and one to the dtype.
    bound = 2 * torch.finfo(dtype).eps
    scale = x.detach().abs().max()
    assert out.dtype == dtype
    assert (out - expected).abs().max() <= bound * scale * 2
    upstream = torch.randn(out.shape, generator=generator).to(dtype)
    (gradient,) = torch.autograd.grad(out, x, upstream)
    (truth,) = torch.autograd.grad(expected, x, upstream.double())
    assert (gradient - truth).abs().max() <= bound * upstream.abs().max() * 2
