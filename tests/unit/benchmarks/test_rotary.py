"""Every form of the rotary embedding is the trainer's, to the last bit, and so are gradients."""

import pytest
import torch

from benchmarks.rotary import FORMS, layer
from lighthouse.titan.llama3.rotary import rotate


@pytest.mark.parametrize("name", FORMS)
def test_forms_agree(name: str) -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, 5, 3, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    angles = torch.rand(1, 5, 1, 4) * 6
    freqs_cis = torch.polar(torch.ones_like(angles), angles)
    wanted, found = (layer(form, freqs_cis, q, k) for form in (rotate, FORMS[name]))
    assert torch.equal(wanted, found)
    grad = torch.randn_like(wanted)
    of_both = [torch.autograd.grad(out, (q, k), grad) for out in (wanted, found)]
    for a, b in zip(*of_both, strict=True):
        assert torch.equal(a, b)
