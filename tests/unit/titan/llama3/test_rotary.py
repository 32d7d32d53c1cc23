"""Rotary embedding, compiled or not, against a product of complex numbers in float64."""

import pytest
import torch
from torch import Tensor

from lighthouse.titan.llama3.rotary import rotate
from tests.support.operators import assert_keeps_its_inputs_alone, inductor_without_code


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 9, 3, 6), (1, 1025, 4, 128)])
def test_compiled_for_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, freqs_cis = (tensor.cuda() for tensor in inputs(*shape))
    x = x.detach().to(dtype).requires_grad_()
    upstream = torch.randn_like(x).transpose(1, 2).contiguous().transpose(1, 2)
    outputs = [turn(x, freqs_cis) for turn in (torch.compile(rotate), complex_product)]
    grads = [torch.autograd.grad(out, x, upstream.to(out.dtype))[0] for out in outputs]
    for found, expected in (outputs, grads):
        assert found.dtype == dtype
        # Three roundings in fp32, contracted or not, and one to the dtype.
        assert (found - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def inputs(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).bfloat16()
    angles = 100 * torch.randn(shape[1], shape[3] // 2, generator=generator)
    return x.requires_grad_(), torch.polar(torch.ones_like(angles), angles)[None, :, None]


@pytest.mark.parametrize("grad_of", ["rows", "heads", "one number"])
def test_compiled_it_is_the_same_to_the_last_bit(grad_of: str) -> None:
    """With gradients as attention gives them, heads first, or of a sum."""
    x, freqs_cis = inputs(2, 9, 3, 8)
    # CPUs have no contraction of multiply and add there.
    found, wanted = (
        turn(x, freqs_cis) for turn in (torch.compile(rotate, backend="aot_eager"), rotate)
    )
    assert torch.equal(found, wanted)
    grad = {
        "rows": torch.randn_like(wanted),
        "heads": torch.randn_like(wanted.transpose(1, 2).contiguous()).transpose(1, 2),
        "one number": wanted.new_ones(()).expand_as(wanted),
    }[grad_of]
    of_both = [torch.autograd.grad(out, x, grad)[0] for out in (found, wanted)]
    assert torch.equal(*of_both)


def test_a_checkpoint_keeps_nothing_of_it() -> None:
    x, freqs_cis = inputs(2, 9, 3, 8)

    def squares(x: Tensor, freqs: Tensor) -> Tensor:
        return rotate(x, torch.view_as_complex(freqs)).square()

    assert_keeps_its_inputs_alone(squares, x, torch.view_as_real(freqs_cis))


def test_angles_are_kept_once() -> None:
    """Not the sines again in each layer, without a checkpoint."""
    x, freqs_cis = inputs(2, 9, 3, 8)
    kept: list[Tensor] = []
    compiled = torch.compile(rotate, backend=inductor_without_code)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        compiled(x, freqs_cis)
    assert kept
    own = freqs_cis.untyped_storage().data_ptr()
    assert all(tensor.untyped_storage().data_ptr() == own for tensor in kept)
