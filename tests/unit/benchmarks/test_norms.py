"""Every form of the norm that is timed has the gradients of the plain one."""

import pytest
import torch

from benchmarks.norms import SETTINGS, forms, sum_and_norm
from tests.support.tiers import tiers


@pytest.mark.parametrize("name", tiers(SETTINGS, "apart"))
def test_forms_agree(name: str) -> None:
    torch.manual_seed(0)
    x, added, *grads = (torch.randn(6, 16, dtype=torch.float64) for _ in range(4))
    leaves = [leaf.requires_grad_() for leaf in (x, added, torch.rand(16, dtype=torch.float64))]
    outs = [norm(*leaves) for norm in (sum_and_norm, forms()[name])]
    wanted, found = (torch.autograd.grad(out, leaves, grads) for out in outs)
    torch.testing.assert_close(found, wanted)
