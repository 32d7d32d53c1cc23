"""Who sees an operator, and who calls the function that it is made of."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from lighthouse.ops.triton.operator import operator
from tests.support.operators import Calls

RAN: list[Tensor] = []


@operator(torch.empty_like)
def _doubled(x: Tensor) -> Tensor:
    RAN.append(x)
    return 2 * x


@operator(lambda xs: [torch.empty_like(x) for x in xs], backward=True)
def _doubled_backward(xs: list[Tensor]) -> list[Tensor]:
    return [2 * x for x in xs]


def seen_by_torch(call: object, *given: object) -> bool:
    with torch.autograd.profiler.profile() as profiled:
        call(*given)  # type: ignore[operator]
    return any(event.name.startswith("lighthouse::doubled") for event in profiled.function_events)


def test_plain_tensors_go_to_the_function_itself() -> None:
    x = torch.ones(3)
    assert not seen_by_torch(_doubled, x) and torch.equal(_doubled(x), 2 * x)
    with torch.no_grad():
        assert not seen_by_torch(_doubled_backward, [x, x])


def test_whoever_looks_on_sees_an_operator() -> None:
    x = torch.ones(3)
    with Calls() as calls:
        _doubled(x)
    assert calls.of[torch.ops.lighthouse.doubled.default] == 1
    assert seen_by_torch(_doubled, nn.Parameter(x))  # as any class but Tensor's own
    RAN.clear()
    with FakeTensorMode() as mode:
        assert type(_doubled(mode.from_tensor(x))) is FakeTensor
    fake = mode.from_tensor(x)
    assert type(_doubled(fake)) is FakeTensor and RAN == []


def test_gradients_of_gradients_are_not_lost() -> None:
    x = torch.ones(3, requires_grad=True)
    (found,) = _doubled_backward([x])
    with pytest.raises(RuntimeError, match="first order only"):
        found.sum().backward()


def test_a_compiler_sees_an_operator() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    x = torch.ones(3)
    compiled = torch.compile(lambda x: _doubled(x) + 1, backend=keep, fullgraph=True)
    assert torch.equal(compiled(x), 2 * x + 1)
    (graph,) = graphs
    assert torch.ops.lighthouse.doubled.default in {node.target for node in graph.graph.nodes}
