"""The feed-forward in chunks against that of all tokens at once."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.models.llama3.model.model import FeedForward

from lighthouse.titan.llama3 import chunked_ffn
from lighthouse.titan.llama3.chunked_ffn import (
    ChunkedFeedForward,
    apply_in_chunks,
    gradients_in_chunks,
)
from tests.support.tiers import tiers

BATCH, TOKENS, DIM, WIDTH = 2, 37, 16, 48


class Block(nn.Module):
    """A feed-forward, its norm and the sum around it."""

    def __init__(
        self, chunk_tokens: int, backend: str | None = None, dim: int = DIM, width: int = WIDTH
    ) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.norm = nn.RMSNorm(dim)
        whole: nn.Module = FeedForward(dim, 0, 1, None, width)
        chunked = ChunkedFeedForward(whole, chunk_tokens, backend) if chunk_tokens else whole
        self.feed_forward = chunked

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feed_forward(self.norm(x))


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, grad = (torch.randn(BATCH, TOKENS, DIM, generator=generator) for _ in range(2))
    return x.to(dtype).requires_grad_(), grad.to(dtype)


def results(block: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """Output, and gradients of the input and all weights."""
    x, grad = inputs(dtype)
    out = block(x)
    return [out, *torch.autograd.grad(out, [x, *block.parameters()], grad)]


@pytest.mark.parametrize("chunk_tokens", [1, 7, TOKENS, BATCH * TOKENS, 1000])
def test_equals_the_whole(chunk_tokens: int) -> None:
    dtype = torch.float64
    whole, chunked = (results(Block(n).to(dtype), dtype) for n in (0, chunk_tokens))
    for ours, theirs in zip(chunked, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_worse_than_the_whole(dtype: torch.dtype) -> None:
    rounded = Block(0).to(dtype)
    exact = Block(0).double()
    exact.load_state_dict({k: v.double() for k, v in rounded.state_dict().items()})
    x, grad = (t.double() for t in inputs(dtype))
    out = exact(x)
    truth = [out, *torch.autograd.grad(out, [x, *exact.parameters()], grad)]
    whole, chunked = (results(Block(n).to(dtype), dtype) for n in (0, 16))
    for ours, theirs, right in zip(chunked, whole, truth, strict=True):
        # A sum over tokens has a rounding of each of five chunks' parts where the whole has one.
        roundings = 5 * right.abs().max() * torch.finfo(dtype).eps
        assert (ours - right).abs().max() <= (theirs - right).abs().max() + roundings


def test_names_and_weights_are_those_of_the_whole() -> None:
    whole, chunked = Block(0), Block(8)
    assert list(whole.state_dict()) == list(chunked.state_dict())
    for block in (whole, chunked):
        torch.manual_seed(11)
        with torch.no_grad():
            block.feed_forward.init_weights(0.1)
    for name, weight in whole.state_dict().items():
        assert torch.equal(chunked.state_dict()[name], weight)


@pytest.mark.parametrize(
    "backend", tiers(["aot_eager_decomp_partition", "inductor"], "aot_eager_decomp_partition")
)
def test_a_compiled_checkpointed_block(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, the same results, and forward does not run again: backward has its own way."""
    torch._dynamo.reset()
    hidden, hidden_and_gradients = chunked_ffn._elementwise(backend)
    calls = []

    def counted(*args: Tensor) -> Tensor:
        calls.append(len(args))
        return hidden(*args)

    monkeypatch.setattr(chunked_ffn, "_elementwise", lambda _: (counted, hidden_and_gradients))
    block = checkpoint_wrapper(Block(16, backend))
    ours = results(torch.compile(block, backend=backend, fullgraph=True), torch.float32)
    assert len(calls) == 5, "chunks of one forward"
    for got, expected in zip(ours, results(Block(0), torch.float32), strict=True):
        # Sums of 16 to 74 products in another order.
        rounding = 74 * torch.finfo(torch.float32).eps * expected.abs().max()
        assert (got - expected).abs().max() <= rounding


def test_autocast() -> None:
    x, _ = inputs(torch.float32)
    layer = Block(16).feed_forward
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.sum().backward()
    assert torch.equal(out, Block(16).feed_forward.bfloat16()(x.bfloat16()))
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None and tensor.grad.dtype == torch.float32


def test_memory_holds_one_chunk_of_the_hidden_layer() -> None:
    largest = 0
    of_chunks: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            if func is torch.ops.aten.mm.default and result.shape == (chunk, WIDTH):
                of_chunks.append(weakref.ref(result))
                alive.append(sum(ref() is not None for ref in of_chunks))
            return result

    chunk = BATCH
    x_TD, grad_TD = (t.detach().flatten(0, 1) for t in inputs(torch.float32))
    weights = [p.detach() for p in Block(0).feed_forward.parameters()]
    with Watch():
        apply_in_chunks(x_TD, *weights, chunk, None)
        gradients_in_chunks(grad_TD, x_TD, *weights, chunk, None)
    assert largest == max(BATCH * TOKENS * DIM, WIDTH * DIM) < BATCH * TOKENS * WIDTH
    # Products of one chunk after the other: the first finds none of the chunk before.
    assert alive == [1, 2] * TOKENS + [1, 2, 3] * TOKENS


@pytest.mark.gpu
def test_peak_on_a_gpu() -> None:
    """A compiled and fully checkpointed block has a chunk of the hidden layer, not all of it."""
    tokens, dim, width, chunk = 65536, 1024, 4096, 8192
    peaks = []
    for chunk_tokens in (0, chunk):
        torch._dynamo.reset()
        with torch.device("cuda"):
            block = Block(chunk_tokens, "inductor", dim, width).bfloat16()
            x = torch.randn(1, tokens, dim, dtype=torch.bfloat16)
        compiled = torch.compile(checkpoint_wrapper(block), backend="inductor", fullgraph=True)
        x.requires_grad_()
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            out = compiled(x)
            gradients = torch.autograd.grad(out.square().mean(), [x, *block.parameters()])
            peak = torch.cuda.max_memory_allocated() - before
            del out, gradients
        peaks.append(peak)
    # At least w1's and w3's outputs, less six of a chunk's, and the fp32 sums and their results.
    whole, of_chunk = 2 * 2 * tokens * width, 6 * 2 * chunk * width
    assert peaks[0] - peaks[1] >= whole - of_chunk - 6 * 3 * dim * width


def test_operators() -> None:
    x = inputs(torch.float32)[0].flatten(0, 1)
    shapes = (WIDTH, DIM), (DIM, WIDTH), (WIDTH, DIM)
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    torch.library.opcheck(torch.ops.lighthouse.ffn.default, (x, *weights, 16, None))
