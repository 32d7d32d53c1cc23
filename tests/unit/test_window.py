"""window_attention(): values, gradients, operators, compilation, errors."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import (
    checkpoint,
)

from lighthouse import LighthouseAttention, WindowConfig, window_attention
from lighthouse.ops import reference
from lighthouse.stock_kernels import kernel_for, plain
from lighthouse.window_pieces import pieces
from tests.support import oracle
from tests.support.inputs import QKV, in_projection_order, leaves, normal, qkv, to
from tests.support.operators import Calls, saving
from tests.support.tiers import tiers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# name: ((batch, queries, head dimension), (query heads, key/value heads), keys in front, window)
SHAPES = {
    "one token": ((1, 1, 4), (1, 1), 0, 3),
    "a window of one": ((2, 5, 3), (2, 1), 0, 1),
    "a window of two": ((1, 9, 5), (2, 2), 0, 2),
    "blocks": ((2, 12, 8), (4, 2), 0, 4),
    "a shorter last block": ((2, 14, 5), (3, 1), 0, 4),
    "the whole sequence": ((1, 7, 6), (2, 2), 0, 7),
    "more than the sequence": ((2, 7, 6), (4, 2), 0, 50),
    "a window in front": ((2, 12, 5), (4, 2), 3, 4),
    "a window in front, shorter last block": ((1, 13, 8), (2, 1), 4, 5),
    "less in front": ((2, 12, 5), (2, 2), 2, 5),
    "less in front, shorter last block": ((1, 11, 16), (6, 2), 1, 4),
    "more in front": ((1, 10, 5), (2, 1), 9, 4),
    "all in one window": ((2, 6, 5), (2, 1), 3, 64),
    "shorter than the window, which is in front": ((1, 3, 4), (2, 2), 7, 8),
    "shorter than the window, and less in front": ((1, 5, 4), (2, 2), 4, 7),
}
EACH_SHAPE = pytest.mark.parametrize("name", SHAPES)
IN_FRONT = "less in front, shorter last block"


def make(name: str) -> tuple[int, QKV]:
    """The window, and float64 inputs."""
    (batch, seq_len, head_dim), heads, front, window = SHAPES[name]
    q, k, v = qkv((batch, seq_len + front, head_dim), heads, seed=len(name))
    return window, (q[:, :, front:].contiguous(), k, v)


def with_gradients(output: Tensor, inputs: QKV) -> tuple[Tensor, ...]:
    grad = normal(tuple(output.shape), seed=17).to(output.device, output.dtype)
    return output, *torch.autograd.grad(output, inputs, grad)


def size(inputs: QKV) -> float:
    """What the terms of an output, and of a gradient's differences, may be as large as.

    A gradient of q is a sum with weights of differences of products of v and the output's gradient,
    times keys; of a key times queries.
    """
    q, k, v = (max(1.0, x.detach().double().norm(dim=-1).max().item()) for x in inputs)
    grad = normal((1, 1, 64, inputs[0].shape[-1]), seed=17).norm(dim=-1).max().item()
    return v * grad * max(q, k)


def assert_as_accurate(got: tuple[Tensor, ...], plain: QKV, exact: QKV, inputs: QKV) -> None:
    """At most twice the error of the reference in the same precision, and a few roundings: the two
    softmaxes and their sum, the two gradients and theirs."""
    eps = torch.finfo(inputs[0].dtype).eps
    for a, b, c in zip(got, plain, exact, strict=True):
        assert a.dtype == inputs[0].dtype
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + 2 * eps * size(inputs)


def test_each_pair_in_the_window_is_attended_to_once() -> None:
    for queries in range(12):
        for window in range(1, 13):
            for front in range(window):
                keys = queries + front
                times = torch.zeros(queries, keys, dtype=torch.int)
                for piece in pieces(queries, keys, window):
                    one = torch.ones(piece.queries, piece.keys, dtype=torch.int)
                    seen = {"all": one, "causal": one.tril(), "backwards": one.triu()}[piece.kind]
                    for block in range(piece.blocks):
                        query, key = (x + block * piece.step for x in (piece.query, piece.key))
                        times[query:, key:][: piece.queries, : piece.keys] += seen
                behind = torch.arange(queries)[:, None] + front - torch.arange(keys)
                want = (behind >= 0) & (behind < window)
                assert torch.equal(times, want.int()), (queries, keys, window)


@EACH_SHAPE
def test_the_reference_equals_the_oracle(name: str) -> None:
    window, inputs = make(name)
    want = torch.from_numpy(oracle.window_attention(window, *(x.numpy() for x in inputs)))
    atol = 64 * torch.finfo(torch.float64).eps * size(inputs)
    found = reference.window_attention(*inputs, window)
    torch.testing.assert_close(found, want, rtol=0, atol=atol)


def check(window: int, inputs64: QKV, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], ...]:
    """Returns what was found, that of the reference in the dtype, and its in float64."""
    inputs = leaves(to(inputs64, dtype))
    exact_inputs = leaves(to(inputs, torch.float64))
    plain = with_gradients(reference.window_attention(*inputs, window), inputs)
    exact = with_gradients(reference.window_attention(*exact_inputs, window), exact_inputs)
    got = with_gradients(window_attention(*inputs, window=window), inputs)
    assert_as_accurate(got, plain, exact, inputs)
    return got, plain, exact


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@EACH_SHAPE
def test_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    window, inputs = make(name)
    check(window, tuple(x.to(DEVICE) for x in inputs), dtype)
    check(window, in_projection_order(tuple(x.to(DEVICE) for x in inputs)), dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("seq_len, front, window", [(1024, 0, 256), (1000, 255, 256), (700, 9, 96)])
def test_equals_the_reference_on_a_gpu(
    seq_len: int, front: int, window: int, head_dim: int, kv_heads: int
) -> None:
    """By cuDNN's kernel, or flash attention's."""
    q, k, v = (x.cuda() for x in qkv((2, seq_len + front, head_dim), (4, kv_heads), seed=9))
    given = (q[:, :, front:], k, v)
    for dtype in (torch.bfloat16, torch.float16):
        for inputs in (given, in_projection_order(given)):
            for a, b, c in zip(*check(window, inputs, dtype), strict=True):
                # At these sizes no element's largest possible error says much.
                assert (a - c).norm() <= 2 * (b - c).norm() + torch.finfo(dtype).eps * c.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
def test_a_gradient_in_any_order_in_memory(batch: int) -> None:
    """Of some heads of a projection, or by heads where the output is by tokens."""
    q, k, v = in_projection_order(
        tuple(x.cuda().bfloat16() for x in qkv((batch, 1024, 128), (4, 4), seed=3))
    )
    inputs = leaves((q, k, v))
    output = window_attention(*inputs, window=256)
    wide = normal((batch, 1024, 8, 128), seed=4).cuda().bfloat16()
    grads = [wide.transpose(1, 2)[:, ::2], wide.transpose(1, 2)[:, ::2].contiguous()]
    by_tokens = grads[0].transpose(1, 2).contiguous().transpose(1, 2)
    want = torch.autograd.grad(output, inputs, by_tokens, retain_graph=True)
    for grad in grads:
        found = torch.autograd.grad(output, inputs, grad, retain_graph=True)
        for a, b in zip(found, want, strict=True):
            assert (a - b).float().norm() <= 0.01 * b.float().norm()


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(0, 45), st.integers(1, 2), st.integers(1, 3)
)
def test_equals_the_reference_on_any_lengths(
    seq_len: int, window: int, front: int, kv_heads: int, group: int
) -> None:
    q, k, v = qkv((2, seq_len + front, 3), (group * kv_heads, kv_heads), seed=window)
    check(window, (q[:, :, front:], k, v), torch.float64)


@pytest.mark.parametrize("causal", [True, False])
def test_plain_products_are_as_the_stock_kernel(causal: bool) -> None:
    """They stand in for it where there is none."""
    q, k, v = qkv((3, 7, 5), (4, 2), seed=1)
    grad = normal(tuple(q.shape), seed=2)
    stock, products = kernel_for(q, k, v, causal=causal), plain(causal, 1)
    out, lse = stock.forward(q, k, v)
    found = [*products.forward(q, k, v), *products.backward(grad, q, k, v, out, lse)]
    want = [out, lse, *stock.backward(grad, q, k, v, out, lse)]
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_blocks_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's grids can't have any number of them."""
    monkeypatch.setattr("lighthouse.stock_kernels._MOST_BLOCKS", 2)
    window, inputs = make("blocks")
    monkeypatch.setattr("lighthouse.stock_kernels._on_cpu", lambda causal: plain(causal, 2))
    check(window, inputs, torch.float64)


def test_a_window_of_the_whole_sequence_is_causal_attention() -> None:
    inputs = leaves(to(qkv((2, 33, 8), (4, 2), seed=3), torch.float32))
    dense = with_gradients(Dense()(*inputs, enable_gqa=True), inputs)
    for window in (33, 1000):
        found = with_gradients(window_attention(*inputs, window=window), inputs)
        for a, b in zip(found, dense, strict=True):
            torch.testing.assert_close(a, b)


def test_the_past_ends_with_the_window() -> None:
    """A token is heard by itself and the window - 1 tokens behind it, to the bit."""
    window, inputs = 5, qkv((1, 23, 4), (2, 1), seed=4)
    before = window_attention(*inputs, window=window)
    for token in (0, 4, 5, 11, 22):
        q, k, v = (x.clone() for x in inputs)
        k[:, :, token] += 1
        v[:, :, token] += 1
        after = window_attention(q, k, v, window=window)
        same = (after == before).all(dim=(0, 1, 3))
        assert same.logical_not().nonzero().flatten().tolist() == [
            *range(token, min(token + window, 23))
        ]


@pytest.mark.thorough
def test_gradcheck() -> None:
    window, (q, k, v) = make("less in front, shorter last block")
    call = partial(window_attention, window=window)
    # Of two columns: it runs twice for each number, and again for each of the output.
    assert torch.autograd.gradcheck(call, leaves((q[..., :2], k[..., :2], v[..., :2])))


def test_a_repeated_run_is_bitwise_the_same() -> None:
    window, inputs = make("a shorter last block")
    inputs = leaves(to(inputs, torch.bfloat16))
    runs = [with_gradients(window_attention(*inputs, window=window), inputs) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_outputs_and_gradients_are_ordered_in_memory_as_queries_are() -> None:
    for inputs in (make("blocks")[1], in_projection_order(make("blocks")[1])):
        inputs = leaves(inputs)
        found = with_gradients(window_attention(*inputs, window=4), inputs)
        assert all((x.stride(1) < x.stride(2)) == (inputs[0].stride(1) < 48) for x in found)


# ---- operators, compilation, checkpoints


@pytest.mark.parametrize("name", tiers(["blocks", IN_FRONT], IN_FRONT))
@pytest.mark.parametrize("token_major", tiers([False, True], True))
def test_operators(name: str, token_major: bool) -> None:
    window, inputs = make(name)
    ops = torch.ops.lighthouse
    torch.library.opcheck(ops.window.default, (*leaves(inputs), window, token_major))
    out, lse = ops.window(*inputs, window, token_major)
    arguments = (out, *inputs, out, lse, window, token_major)
    torch.library.opcheck(ops.window_backward.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    inputs = leaves(qkv((1, 64, 5), (4, 2), seed=20))

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=dynamic)
    def compiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        call = partial(window_attention, window=24)
        return checkpoint(call, q, k, v, use_reentrant=False)

    got = with_gradients(compiled(*inputs), inputs)
    want = with_gradients(window_attention(*inputs, window=24), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("saved", [False, True])
def test_activation_checkpointing(saved: bool) -> None:
    window, inputs = make("blocks")
    inputs = leaves(inputs)
    policy = saving(torch.ops.lighthouse.window.default)
    context: dict[str, Any] = {"context_fn": policy} if saved else {}
    call = partial(window_attention, window=window)
    with Calls() as calls:
        output = checkpoint(call, *inputs, use_reentrant=False, **context)
        got = with_gradients(output, inputs)
    assert calls.of[torch.ops.lighthouse.window.default] == (1 if saved else 2)
    want = with_gradients(call(*inputs), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# ---- errors


@pytest.mark.parametrize("window", [0, -4, 2.0, True, None])
def test_a_window_that_is_none(window: Any) -> None:
    with pytest.raises(ValueError, match=f"window = {window!r}: .* such as 4096"):
        window_attention(*make("blocks")[1], window=window)


def test_fewer_keys_than_queries() -> None:
    q, k, v = make("blocks")[1]
    with pytest.raises(ValueError, match=r"k must have as many tokens as q.*\(2, 2, 9, 8\)"):
        window_attention(q, k[:, :, 3:], v[:, :, 3:], window=4)


# ---- the module


class Dense(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool = False) -> Tensor:
        return nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=enable_gqa
        )


def test_a_window_layer() -> None:
    inputs = qkv((1, 12, 8), (4, 2), seed=1)
    module = LighthouseAttention(WindowConfig(4), Dense())
    found = module(*inputs, enable_gqa=True)
    assert torch.equal(found, window_attention(*inputs, window=4))
    module.dense = True
    assert torch.equal(module(*inputs, enable_gqa=True), Dense()(*inputs, enable_gqa=True))


def test_another_attention_in_the_window() -> None:
    """As context parallelism needs one."""
    inputs = qkv((1, 16, 4), (4, 2), seed=1)
    module = LighthouseAttention(WindowConfig(4), Dense())
    own = module(*inputs, enable_gqa=True)
    calls = []

    def windowed(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
        calls.append((q.shape[1], k.shape[1], window))
        return window_attention(q, k, v, window=window)

    module.windowed = windowed
    assert torch.equal(module(*inputs, enable_gqa=True), own)
    assert calls == [(4, 2, 4)]
