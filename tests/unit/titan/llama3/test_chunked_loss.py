"""The loss in chunks against cross-entropy of all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lighthouse.titan.llama3.chunked_loss import IGNORE_INDEX, ChunkedLoss, OutputLoss

TOKENS, DIM, WORDS = 2 * 37, 16, 50


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2, TOKENS // 2, DIM, generator=generator).to(dtype)
    weight = torch.randn(WORDS, DIM, generator=generator).to(dtype)
    labels = torch.randint(WORDS, (2, TOKENS // 2), generator=generator)
    labels[0, 3:7] = IGNORE_INDEX
    return hidden, weight, labels


def output_layer(weight: Tensor, chunk_tokens: int) -> OutputLoss:
    linear = nn.Linear(DIM, WORDS, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone())
    return OutputLoss(linear, ChunkedLoss(chunk_tokens, compile_backend=None))


def chunked(dtype: torch.dtype, chunk_tokens: int) -> list[Tensor]:
    """Loss and its gradients by hidden states and weight, scaled as the trainer does."""
    hidden, weight, labels = inputs(dtype)
    layer = output_layer(weight, chunk_tokens)
    hidden.requires_grad_()
    loss = layer(hidden, labels) / TOKENS
    return [loss, *torch.autograd.grad(loss, [hidden, layer.weight])]


def plain(dtype: torch.dtype) -> list[Tensor]:
    hidden, weight, labels = inputs(dtype)
    hidden.requires_grad_()
    weight.requires_grad_()
    logits = F.linear(hidden, weight).flatten(0, 1)
    logits = logits if dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(logits, labels.flatten(), reduction="sum") / TOKENS
    return [loss, *torch.autograd.grad(loss, [hidden, weight])]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 37, 64, TOKENS, 1000])
def test_equals_plain_cross_entropy(chunk_tokens: int) -> None:
    for ours, theirs in zip(
        chunked(torch.float64, chunk_tokens), plain(torch.float64), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_exact_as_plain_cross_entropy(dtype: torch.dtype) -> None:
    hidden, weight, labels = (x.double() if x.is_floating_point() else x for x in inputs(dtype))
    hidden.requires_grad_()
    weight.requires_grad_()
    exact_loss = F.cross_entropy((hidden @ weight.T).flatten(0, 1), labels.flatten())
    exact_loss = exact_loss * (labels != IGNORE_INDEX).sum() / TOKENS
    exact = [exact_loss, *torch.autograd.grad(exact_loss, [hidden, weight])]
    for ours, theirs, truth in zip(chunked(dtype, 16), plain(dtype), exact, strict=True):
        theirs_error = (theirs - truth).abs().max()
        # One rounding more than plain, the product with the scale, is allowed for.
        rounding = truth.abs().max() * torch.finfo(dtype).eps
        assert (ours - truth).abs().max() <= theirs_error + rounding


def test_no_gradients_without_autograd() -> None:
    hidden, weight, labels = inputs(torch.float32)
    with torch.no_grad():
        loss = output_layer(weight, 16)(hidden, labels)
    torch.testing.assert_close(loss / TOKENS, plain(torch.float32)[0].detach())


@pytest.mark.parametrize("with_gradients, products", [(False, 1), (True, 3)])
def test_gradients_are_formed_only_where_asked(with_gradients: bool, products: int) -> None:
    hidden, weight, labels = inputs(torch.float32)
    layer = output_layer(weight, 37)
    with torch.set_grad_enabled(with_gradients), FlopCounterMode(display=False) as counter:
        layer(hidden, labels)
    assert counter.get_total_flops() == products * 2 * TOKENS * DIM * WORDS


def test_logits_without_labels() -> None:
    hidden, weight, _ = inputs(torch.float32)
    assert torch.equal(output_layer(weight, 16)(hidden), F.linear(hidden, weight))


def test_autocast() -> None:
    hidden, weight, labels = inputs(torch.float32)
    layer = output_layer(weight, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(hidden, labels)
    loss.backward()
    rounded = layer.weight.detach().bfloat16()
    expected = output_layer(rounded, 16)(hidden.bfloat16(), labels)
    assert torch.equal(loss, expected)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_memory_holds_one_chunk_of_logits() -> None:
    """No tensor of the forward or backward pass has all tokens' logits."""
    hidden, weight, labels = inputs(torch.float32)
    hidden.requires_grad_()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return result

    layer = output_layer(weight, 8)
    with Watch():
        layer(hidden, labels).backward()
    assert largest == max(TOKENS * DIM, WORDS * DIM) < TOKENS * WORDS
