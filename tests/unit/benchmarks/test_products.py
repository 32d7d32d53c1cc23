"""Every form of a layer's products that is timed has the outputs and gradients of the plain one."""

import pytest
import torch

from benchmarks.products import PLAIN, feed_forward, random_tensors


@pytest.mark.parametrize("of_feed_forward", [False, True])
def test_forms_agree(of_feed_forward: bool) -> None:
    outs = (4, 4) if of_feed_forward else (4, 2, 2)
    leaves, grads = random_tensors(5, 6, outs, of_feed_forward, "cpu", torch.float64)
    forms = [feed_forward(form) if of_feed_forward else form for form in PLAIN.values()]
    wanted, found = (tuple(form(*leaves)) for form in forms)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(outs, leaves, grads) for outs in (found, wanted))
    )
