"""Registering a function as an operator, so that a call costs the host as little as it can.

``torch.library.custom_op`` puts one wrapper around the function and another at the autograd key,
13 us a call on a host where this takes 5. At short lengths a layer waits for that, not for kernels.
"""

from collections.abc import Callable
from typing import Any

import torch


def operator(
    fake: Callable[..., Any], *, backward: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the decorated function the operator ``lighthouse::NAME``, its name without underscores.

    Nobody differentiates through its arguments: they are detached, or those of a
    ``torch.autograd.Function``.

    Args:
        fake: the function without values: it allocates the results.
        backward: for what computes gradients, whose own gradients are refused.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        short = function.__name__.strip("_")
        name = f"lighthouse::{short}"
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "default")(function)
        torch.library.register_fake(name)(fake)
        if backward:
            torch.library.register_autograd(name, _refuse)
        return getattr(torch.ops.lighthouse, short).default

    return register


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("Lighthouse Attention has gradients of first order only")
