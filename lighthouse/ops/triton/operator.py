"""Registering a function as an operator, which costs a call nothing where nobody watches.

At short lengths a layer waits for the host, not for kernels. ``torch.library.custom_op`` puts one
wrapper around the function and another at the autograd key; without them a call still spends a
fifth to a half of its time between Python and the function. A compiler, a mode and a tensor of
another class have to see an operator. Plain tensors need no more than the function itself.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def operator(
    fake: Callable[..., Any], *, backward: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the decorated function the operator ``lighthouse::NAME``, its name without underscores.

    Nobody differentiates through its arguments: they are detached, or those of a
    ``torch.autograd.Function``. The first is a tensor or a list of them, of the others' class.

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
        through_torch = getattr(torch.ops.lighthouse, short).default

        @wraps(function)
        def call(first: Any, *rest: Any) -> Any:
            if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
                return through_torch(first, *rest)
            if type(first[0] if isinstance(first, list) else first) is not Tensor:
                return through_torch(first, *rest)
            if backward and torch.is_grad_enabled():  # for gradients of its own
                return through_torch(first, *rest)
            return function(first, *rest)

        return call

    return register


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("Lighthouse Attention has gradients of first order only")
