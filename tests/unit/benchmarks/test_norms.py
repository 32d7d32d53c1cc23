"""The backward of a norm that is timed is that of a sum and a norm behind it."""

import torch
import torch.nn.functional as F

from benchmarks.norms import EPSILON, gradients, random_inputs, rstd_of


def test_gradients_are_those_of_a_sum_and_its_norm() -> None:
    inputs = random_inputs(6, 16, 3, "cpu", torch.float64)
    total, weight = inputs.total.requires_grad_(), inputs.weight.requires_grad_()
    norm = F.rms_norm(total, weight.shape, weight, EPSILON)
    outs, grads = (norm,) * 3 + (total,), (*inputs.of_norm, inputs.of_total)
    wanted = torch.autograd.grad(outs, (total, weight), grads)
    with torch.no_grad():
        found = gradients(total, weight, rstd_of(total), inputs.of_total, *inputs.of_norm)
    torch.testing.assert_close(found, wanted)
