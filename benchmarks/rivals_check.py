"""One attention layer with a naive form, and whether its kernels do what that does in float32."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ROUNDING = 2**-8  # the largest relative error of a rounding to bf16
ROUNDINGS = 4

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Layer:
    """For given inputs.

    Attributes:
        call: of q, k, v and the gates.
        naive: makes the same of plain products. What was selected for the inputs is selected
            whatever it is then called with.
        gates: further inputs with gradients.
    """

    call: Call
    naive: Callable[[], Call]
    gates: tuple[Tensor, ...] = ()


def drawn(q: Tensor, *shape: int) -> Tensor:
    """Normal numbers (B, N, ..), float32, the same in each process."""
    generator = torch.Generator(q.device).manual_seed(1)
    size = (q.shape[0], q.shape[2], *shape)
    return torch.randn(size, device=q.device, generator=generator)


def masked(mask: Tensor) -> Call:
    """Softmax attention of (B, H, N, D) where the mask, (.., N, N), says so; 0 if nowhere."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
            )

    return call


def causal(n: int, device: Any) -> Tensor:
    """(N, N), true where a query may see a key."""
    return torch.ones(n, n, dtype=torch.bool, device=device).tril()


def near(n: int, window: int, device: Any) -> Tensor:
    """The ``window`` last keys of each query, (N, N)."""
    return causal(n, device).triu(1 - window)


def run(call: Call, inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    own = [x.detach().requires_grad_() for x in inputs]
    out = call(*own)
    return [out.detach(), *torch.autograd.grad(out, own, grad.to(out.dtype))]


def check(layer: Layer, inputs: tuple[Tensor, ...]) -> float:
    """Largest error of output and gradients, over what is allowed.

    A kernel rounds to bf16 on its way. Rounding what it computes from does about as much to a
    result as rounding its inputs, which is measured here, and rounding a result is known. Four of
    either are allowed.

    Raises:
        AssertionError: if the error is larger.
    """
    inputs = (*inputs, *layer.gates)
    grad = torch.randn_like(inputs[0])
    found = run(layer.call, inputs, grad)
    naive = layer.naive()
    wide = tuple(x.detach().float() for x in inputs)
    moved = tuple(x * (1 + ROUNDING * (2 * torch.rand_like(x) - 1)) for x in wide)
    exact, near_by = (run(naive, x, grad.float()) for x in (wide, moved))
    worst = 0.0
    for number, (f, e, m) in enumerate(zip(found, exact, near_by, strict=True)):
        size = e.norm()
        error = ((f.float() - e).norm() / size).item()
        allowed = ROUNDINGS * (((m - e).norm() / size).item() + ROUNDING)
        if not error <= allowed:  # also where it is not a number
            what = f"gradient {number}" if number else "output"
            raise AssertionError(f"{what} is off by {error:.2e}, allowed {allowed:.2e}")
        worst = max(worst, error / allowed)
    return worst
