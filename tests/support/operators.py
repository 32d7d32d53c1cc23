"""What a call does, operator by operator, and what checkpointing keeps of it."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor.compile_fx import compile_fx
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)


class Calls(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func] += 1
        return func(*args, **(kwargs or {}))


def saving(operator: Any) -> Callable[..., Any]:
    """What makes `checkpoint` selective: it keeps the results of one operator."""

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op is operator:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, policy)


def inductor_without_code(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
    """A backend of torch.compile: inductor's passes, and what they end with is run as it is."""

    def run(graph: torch.fx.GraphModule, *_: Any, **__: Any) -> Callable[[list[Any]], Any]:
        return make_boxed_func(graph.forward)

    return compile_fx(graph, examples, inner_compile=run)


def assert_keeps_its_inputs_alone(
    function: Callable[..., Tensor], *inputs: Tensor, compiler: Any = "aot_eager"
) -> None:
    """Compiled, under full checkpointing: not what torch 2.11 keeps of functions of autograd.

    It does so of those that Dynamo looks into. Later releases don't, so that with them what Dynamo
    makes is looked at, too.
    """
    called, kept = set(), []

    def backend(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
        for part in graph.modules():
            if isinstance(part, torch.fx.GraphModule):
                called.update(node.target for node in part.graph.nodes)
        return lookup_backend(compiler)(graph, examples)

    @torch.compile(backend=backend, fullgraph=True)
    def compiled(*inputs: Tensor) -> Tensor:
        return checkpoint(function, *inputs, use_reentrant=False)

    with saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        compiled(*inputs)
    # Beside them attention may keep the state of a random generator.
    assert {x.data_ptr() for x in kept if x.is_floating_point()} == {x.data_ptr() for x in inputs}
    assert torch.ops.higher_order.autograd_function_apply not in called
