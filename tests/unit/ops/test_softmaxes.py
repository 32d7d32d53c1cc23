"""Kernels that join attention over different keys, against sums of exponentials in float64."""

import pytest
import torch
from torch import Tensor

from lighthouse.ops.triton.softmaxes import add, merge, reverse
from tests.support.inputs import normal

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.bfloat16, torch.float32]
# (B, C, H, R, D); a program has 4096 elements
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 2, 9, 5), (1, 2, 1, 70, 80)]
EACH = [
    pytest.mark.parametrize("dtype", DTYPES),
    pytest.mark.parametrize("backwards", [False, True]),
    pytest.mark.parametrize("shape", SHAPES),
]


def each(test):
    for mark in EACH:
        test = mark(test)
    return test


def strided(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Blocks with a row between them, heads next to each other in memory."""
    batch, blocks, heads, rows, *rest = shape
    x = normal((batch, blocks * (rows + 1), heads, *rest), seed).to(DEVICE, dtype)
    return x.unflatten(1, (blocks, rows + 1))[:, :, :rows].transpose(2, 3)


@each
def test_merge(shape: tuple[int, ...], backwards: bool, dtype: torch.dtype) -> None:
    out, part = strided(shape, 1, dtype), strided(shape, 2, dtype)
    lse = 30 * strided(shape[:4], 3, torch.float32)
    part_lse = 30 * strided(shape[:4], 4, torch.float32)
    a, b = lse.double(), part_lse.double()
    x, y = out.double(), part.double()
    if backwards:
        y, b = y.flip(3), b.flip(3)
    want_lse = torch.logaddexp(a, b)
    want = (a - want_lse).exp()[..., None] * x + (b - want_lse).exp()[..., None] * y
    merge(out, lse, part, part_lse, backwards=backwards)
    # An error of the exponent, of up to 100 in fp32, is one of the same size of the weight.
    weight = 200 * torch.finfo(torch.float32).eps
    scale = max(x.abs().max().item(), y.abs().max().item())
    assert (out - want).abs().max() <= (torch.finfo(dtype).eps + 2 * weight) * scale
    assert (lse - want_lse).abs().max() <= weight


@each
def test_add(shape: tuple[int, ...], backwards: bool, dtype: torch.dtype) -> None:
    total, part = strided(shape, 5, dtype), strided(shape, 6, dtype)
    want = total + (part.flip(3) if backwards else part)
    add(total, part, backwards=backwards)
    # To nearest on a GPU; the interpreter rounds towards zero.
    assert ((total - want).abs() <= torch.finfo(dtype).eps * want.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_reverse(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = strided(shape, 7, dtype)
    found = reverse(x)
    assert torch.equal(found, x.flip(3))
    assert found.stride() == x.flip(3).stride()


def test_rows_between_the_blocks_stay() -> None:
    sequence = torch.zeros(1, 8, 1, 4, device=DEVICE)
    blocks = sequence.unflatten(1, (2, 4))[:, :, :3].transpose(2, 3)
    add(blocks, torch.ones(blocks.shape, device=DEVICE), backwards=True)
    assert sequence[0, :, 0, 0].tolist() == [1, 1, 1, 0, 1, 1, 1, 0]
