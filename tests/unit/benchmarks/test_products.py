"""One wide product has the outputs and gradients of several."""

import torch

from benchmarks.products import FORMS


def test_forms_agree() -> None:
    torch.manual_seed(0)
    x, *weights = (torch.randn(n, 6, dtype=torch.float64) for n in (5, 4, 2, 2))
    leaves = [leaf.requires_grad_() for leaf in (x, *weights)]
    grads = [torch.randn(5, n, dtype=torch.float64) for n in (4, 2, 2)]
    wanted, found = (form(x, weights) for form in FORMS.values())
    torch.testing.assert_close(tuple(found), tuple(wanted))
    torch.testing.assert_close(
        *(torch.autograd.grad(outs, leaves, grads) for outs in (found, wanted))
    )
