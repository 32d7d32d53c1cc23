"""The feed-forward a chunk of tokens at a time, so that its hidden layer exists for these alone.

Of 262,144 tokens of Llama-3-8B the hidden layer is 21 GiB in bf16. Here backward computes it again,
chunk by chunk, and forms the gradients along with it: nothing of it is kept in between. A compiled
block under full checkpointing computes no more than without, since w1 and w3 run again either way.

It is one operator to the compiler, which may order what it sees so that all chunks live at once.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

# T tokens, D dim, F width of the hidden layer, C tokens of a chunk.


def _hidden(gate_CF: Tensor, up_CF: Tensor) -> Tensor:
    return F.silu(gate_CF) * up_CF


def _hidden_and_gradients(
    gate_CF: Tensor, up_CF: Tensor, grad_CF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden layer again, and from its gradient those of the gate and of what it gates."""
    wide = torch.promote_types(gate_CF.dtype, torch.float32)
    gate, up, grad = (x.to(wide) for x in (gate_CF, up_CF, grad_CF))
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    by_gate = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    hidden, by_up = _hidden(gate_CF, up_CF), grad * silu
    return hidden, by_gate.to(gate_CF.dtype), by_up.to(gate_CF.dtype)


@cache
def _elementwise(backend: str | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two, compiled once for chunks of any size, or as they are."""
    if backend is None:
        return _hidden, _hidden_and_gradients
    forward = torch.compile(_hidden, backend=backend, dynamic=True)
    return forward, torch.compile(_hidden_and_gradients, backend=backend, dynamic=True)


def apply_in_chunks(
    x_TD: Tensor,
    w1_FD: Tensor,
    w2_DF: Tensor,
    w3_FD: Tensor,
    chunk_tokens: int,
    backend: str | None,
) -> Tensor:
    """Of x (T, D), rows of ``chunk_tokens`` at a time."""
    hidden, _ = _elementwise(backend)
    out_TD = x_TD.new_empty(x_TD.shape)
    for x_CD, out_CD in zip(x_TD.split(chunk_tokens), out_TD.split(chunk_tokens), strict=True):
        torch.mm(hidden(x_CD @ w1_FD.T, x_CD @ w3_FD.T), w2_DF.T, out=out_CD)
    return out_TD


_ffn = torch.library.custom_op("lighthouse::ffn", apply_in_chunks, mutates_args=())


@_ffn.register_fake
def _(x_TD: Tensor, *_: Any) -> Tensor:
    return x_TD.new_empty(x_TD.shape)


def gradients_in_chunks(
    grad_TD: Tensor,
    x_TD: Tensor,
    w1_FD: Tensor,
    w2_DF: Tensor,
    w3_FD: Tensor,
    chunk_tokens: int,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and the weights; those of weights are summed over chunks in fp32."""
    _, hidden_and_gradients = _elementwise(backend)
    wide = torch.promote_types(x_TD.dtype, torch.float32)
    grad_x_TD = x_TD.new_empty(x_TD.shape)
    totals = [torch.zeros_like(w, dtype=wide) for w in (w1_FD, w2_DF, w3_FD)]

    def add(x_CD: Tensor, grad_CD: Tensor, grad_x_CD: Tensor) -> None:
        """A chunk's part. A function, so that nothing of it is left when the next one begins."""
        hidden_CF, by_gate_CF, by_up_CF = hidden_and_gradients(
            x_CD @ w1_FD.T, x_CD @ w3_FD.T, grad_CD @ w2_DF
        )
        torch.mm(by_gate_CF, w1_FD, out=grad_x_CD)
        grad_x_CD.addmm_(by_up_CF, w3_FD)
        products = ((by_gate_CF, x_CD), (grad_CD, hidden_CF), (by_up_CF, x_CD))
        for total, (left, right) in zip(totals, products, strict=True):
            total += left.T @ right

    chunks = (x.split(chunk_tokens) for x in (x_TD, grad_TD, grad_x_TD))
    for of_chunk in zip(*chunks, strict=True):
        add(*of_chunk)
    grad_w1_FD, grad_w2_DF, grad_w3_FD = (total.to(w1_FD.dtype) for total in totals)
    return grad_x_TD, grad_w1_FD, grad_w2_DF, grad_w3_FD


_ffn_backward = torch.library.custom_op(
    "lighthouse::ffn_backward", gradients_in_chunks, mutates_args=()
)


@_ffn_backward.register_fake
def _(
    _grad: Tensor, x_TD: Tensor, w1_FD: Tensor, w2_DF: Tensor, w3_FD: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_x, of_w1, of_w2, of_w3 = (x.new_empty(x.shape) for x in (x_TD, w1_FD, w2_DF, w3_FD))
    return of_x, of_w1, of_w2, of_w3


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    *tensors, ctx.chunk_tokens, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
    return *_ffn_backward(grad_TD, *ctx.saved_tensors, ctx.chunk_tokens, ctx.backend), None, None


_ffn.register_autograd(_gradients, setup_context=_setup)


class ChunkedFeedForward(nn.Module):
    """A feed-forward's layers under their names, applied in chunks.

    Attributes:
        chunk_tokens: tokens whose hidden layer exists at a time.
        compile_backend: of what is done element by element; None for eager code.
    """

    def __init__(self, inner: Any, chunk_tokens: int, compile_backend: str | None) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = inner.w1, inner.w2, inner.w3
        self.chunk_tokens, self.compile_backend = chunk_tokens, compile_backend
        self._init_weights = type(inner).init_weights

    def init_weights(self, init_std: float) -> None:
        """As the feed-forward would."""
        self._init_weights(self, init_std)

    def forward(self, x: Tensor) -> Tensor:
        """``w2(silu(w1(x)) * w3(x))`` of (..., D), in the dtype that autocast or else x has.

        The same for each token, and the same gradients, up to rounding. Deterministic.
        """
        x_TD, weights = x.flatten(0, -2), [self.w1.weight, self.w2.weight, self.w3.weight]
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x_TD, weights = x_TD.to(dtype), [weight.to(dtype) for weight in weights]
        out_TD: Tensor = _ffn(x_TD, *weights, self.chunk_tokens, self.compile_backend)
        return out_TD.view(x.shape)


def apply_chunked_ffn(model: Any, job_config: "JobConfig") -> None:
    """Let a just built (meta device) Transformer's blocks do so, if the job asks for it."""
    chunk_tokens, section = job_config.training.ffn_chunk_tokens, job_config.compile
    if chunk_tokens:
        backend = section.backend if section.enable and "model" in section.components else None
        for block in model.layers.values():
            block.feed_forward = ChunkedFeedForward(block.feed_forward, chunk_tokens, backend)
