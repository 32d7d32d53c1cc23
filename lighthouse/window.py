"""Causal attention in a window, at full resolution, out of calls of stock kernels.

Stock kernels that know a window take twice the time that its pairs should take. Causal ones don't
(benchmarks/results/windows_h100.json). So queries are cut into blocks of ``window`` tokens. A block
sees two triangles: one of its own keys, the ordinary causal one, and one of the keys of the block
before, which is the ordinary causal one too if both are read backwards. For a window of 4:

    keys of the block before   own keys
    key     0 1 2 3            4 5 6 7
    query 4   x x x            x
    query 5     x x            x x
    query 6       x            x x x
    query 7                    x x x x

Key 0 and query 7 have no part in the left one. The two softmaxes become one by their log-sum-exp.
Backward calls the stock backward of either triangle with the whole output and its log-sum-exp,
which gives the gradients of the whole. Where a block is cut short, at the sequence's ends, what is
left of its triangle is a smaller triangle and a rectangle.

Shape suffixes: B batch, H heads (query or key/value), N queries, M keys, D head dimension, C
blocks, R rows of a block.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention

from lighthouse.config import WindowConfig
from lighthouse.inputs import check_inputs

_aten = torch.ops.aten

_MOST_BLOCKS = 2**15
"""Batch entries of a call: CUDA's grids have at most 65,535 in their lesser dimensions."""

_MOST_LOGITS = 2**28
"""At a time, where no stock kernel does: on GPUs in fp32 and float64."""


def window_attention(q_BHND: Tensor, k_BHMD: Tensor, v_BHMD: Tensor, *, window: int) -> Tensor:
    """Causal attention to the ``window`` last tokens, a token's own among them.

    As ``sliding_window`` in Hugging Face. The scale is 1/sqrt(D).

    Args:
        q_BHND: queries (B, Hq, N, D); any strides.
        k_BHMD: keys (B, Hkv, M, D); Hq is a multiple of Hkv. The last N are those of the queries'
            tokens; M - N more are those of the tokens before. Where these are fewer than
            ``window - 1``, the sequence begins with them.
        v_BHMD: values (B, Hkv, M, D). The three agree in floating dtype and device.
        window: tokens, at least 1; from M on this is plain causal attention.

    Returns:
        (B, Hq, N, D) in the dtype of the inputs, and in memory ordered (B, N, H, D) if q is. With
        gradients of first order in reverse mode. As deterministic as the stock kernels: cuDNN's on
        GPUs, else flash attention's; in fp32 and float64 on GPUs plain products take their place.

    Raises:
        ValueError: for inputs that don't fit each other, or a window below 1.
    """
    check_inputs(q_BHND, k_BHMD, v_BHMD, keys_in_front=True)
    WindowConfig(window)
    unseen = k_BHMD.shape[2] - q_BHND.shape[2] - (window - 1)
    if unseen > 0:
        k_BHMD, v_BHMD = k_BHMD[:, :, unseen:], v_BHMD[:, :, unseen:]
    token_major = q_BHND.stride(2) > q_BHND.stride(1)
    out: Tensor = _window(q_BHND, k_BHMD, v_BHMD, window, token_major)[0]
    return out


# What is attended to ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """Attention of ``blocks`` runs of queries to as many of keys, each ``step`` behind the last.

    Attributes:
        kind: ``"causal"``, as many queries as keys; ``"backwards"``, causal when both are reversed;
            ``"all"``: every query sees every key.
    """

    kind: Literal["causal", "backwards", "all"]
    query: int
    queries: int
    key: int
    keys: int
    blocks: int = 1
    step: int = 0

    @property
    def causal(self) -> bool:
        return self.kind != "all"

    @property
    def backwards(self) -> bool:
        return self.kind == "backwards"

    def rows(self, x: Tensor) -> Tensor:
        """Its queries' places in (B, H, N, ..), as a view (B, C, H, R, ..)."""
        return _blocks(x, self.query, self.queries, self.blocks, self.step)

    def columns(self, x: Tensor) -> Tensor:
        return _blocks(x, self.key, self.keys, self.blocks, self.step)


def _blocks(x: Tensor, first: int, length: int, blocks: int, step: int) -> Tensor:
    of_blocks = x.narrow(2, first, (blocks - 1) * step + length).unfold(2, length, max(step, 1))
    # (B, H, C, .., R): the rows come last
    return of_blocks.movedim(-1, 3).transpose(1, 2)


def _pieces(num_queries: int, num_keys: int, window: int) -> list[_Piece]:
    """What together has each pair of a query and a key in its window once.

    The first pieces have each query's own key.
    """
    if not num_queries:
        return []
    front = num_keys - num_queries
    window = min(window, num_keys)
    blocks, rest = divmod(num_queries, window)
    pieces = []
    if blocks:
        pieces.append(_Piece("causal", 0, window, front, window, blocks, window))
    if rest:
        start = blocks * window
        pieces.append(_Piece("causal", start, rest, front + start, rest))
    complete = front == window - 1  # the first block has a whole one before it
    if window > 1 and blocks > 1 - complete:
        # The first key of a block is in no later one's window, and there is none in front of all.
        query, key = (0, 0) if complete else (window, front + 1)
        size = window - 1
        count = blocks - 1 + complete
        pieces.append(_Piece("backwards", query, size, key, size, count, window))
    if front and not (complete and blocks):
        pieces += _part_of_a_block(0, min(window, num_queries), 0, front, window)
    if rest and blocks and window > 1:
        start = blocks * window
        pieces += _part_of_a_block(start, rest, front + start - window + 1, window - 1, window)
    return pieces


def _part_of_a_block(
    query: int, queries: int, key: int, keys: int, window: int
) -> Iterator[_Piece]:
    """The first queries of a block, and the last keys before it.

    All keys are in the window of the first query, and of as many more as there are keys missing.
    """
    to_all = queries if queries <= window - keys else window - keys - 1
    if to_all:
        yield _Piece("all", query, to_all, key, keys)
    size = min(queries - to_all, keys)
    if size:
        yield _Piece("backwards", query + to_all, size, key, size)
        if keys > size:
            yield _Piece("all", query + to_all, size, key + size, keys - size)


# Operators ----------------------------------------------------------------------------------------


def _empty_like(x: Tensor, token_major: bool) -> Tensor:
    """In (B, N, H, D)-ordered memory if ``token_major``, else in (B, H, N, D)-ordered one."""
    batch, heads, seq_len, head_dim = x.shape
    if token_major:
        return x.new_empty(batch, seq_len, heads, head_dim).transpose(1, 2)
    return x.new_empty(x.shape)


def _lse_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@torch.library.custom_op("lighthouse::window", mutates_args=())
def _window(
    q: Tensor, k: Tensor, v: Tensor, window: int, token_major: bool
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp (B, H, N)."""
    q, k, v = map(_rows_contiguous, (q, k, v))
    lse = q.new_empty(q.shape[:3], dtype=_lse_dtype(q))
    out: Tensor | None = None
    for piece in _pieces(q.shape[2], k.shape[2], window):
        part, part_lse = _attend(piece, piece.rows(q), piece.columns(k), piece.columns(v))
        if piece.kind != "causal":
            assert out is not None
            _merge(piece.rows(out), piece.rows(lse), part, part_lse, backwards=piece.backwards)
            continue
        piece.rows(lse).copy_(part_lse)
        if piece.blocks * piece.queries == q.shape[2]:
            out = _in_order(_sequence(part), token_major)
        else:
            out = _empty_like(q, token_major) if out is None else out
            piece.rows(out).copy_(part)
    out = _empty_like(q, token_major) if out is None else out  # no queries
    return out, lse


@_window.register_fake
def _(q: Tensor, _k: Any, _v: Any, _w: int, token_major: bool) -> tuple[Tensor, Tensor]:
    return _empty_like(q, token_major), q.new_empty(q.shape[:3], dtype=_lse_dtype(q))


@torch.library.custom_op("lighthouse::window_backward", mutates_args=())
def _window_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    token_major: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, out = map(_rows_contiguous, (q, k, v, out))
    # As the output is: cuDNN's backward reads a gradient in another order in memory wrongly.
    grad_out = _in_order(grad_out, token_major)
    totals: tuple[Tensor, ...] = ()
    for piece in _pieces(q.shape[2], k.shape[2], window):
        of_queries = (piece.rows(x) for x in (grad_out, q, out, lse))
        of_keys = (piece.columns(x) for x in (k, v))
        parts = _gradients(piece, *of_queries, *of_keys)
        if not totals and piece.blocks * piece.queries == q.shape[2] == k.shape[2]:
            totals = tuple(_in_order(_sequence(x), token_major) for x in parts)
            continue
        totals = totals or tuple(_empty_like(x, token_major).zero_() for x in (q, k, v))
        places = (piece.rows(totals[0]), piece.columns(totals[1]), piece.columns(totals[2]))
        for place, part in zip(places, parts, strict=True):
            _add(place, part, backwards=piece.backwards)
    dq, dk, dv = totals or (_empty_like(x, token_major).zero_() for x in (q, k, v))
    return dq, dk, dv


@_window_backward.register_fake
def _(
    _g: Any, q: Tensor, k: Tensor, v: Tensor, _o: Any, _l: Any, _w: int, token_major: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (_empty_like(x, token_major) for x in (q, k, v))
    return dq, dk, dv


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.window, ctx.token_major = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse)


def _backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    gradients = _window_backward(grad_out, *ctx.saved_tensors, ctx.window, ctx.token_major)
    return *gradients, None, None


_window.register_autograd(_backward, setup_context=_setup)


# What is done in which order ----------------------------------------------------------------------


@torch.library.custom_op("lighthouse::after", mutates_args=())
def after(x: Tensor, other: Tensor) -> Tensor:
    """A copy of ``x`` made when ``other`` is there; backward it is the other way round.

    Where either has to do with transfers, a compiler that may do them in any order can find another
    one on each rank, which then wait for each other without end. In eager code it orders nothing
    that is not in this order anyway.
    """
    return x.clone()


@after.register_fake
def _(x: Tensor, _: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("lighthouse::zeros_after", mutates_args=())
def _zeros_after(like: Tensor, other: Tensor) -> Tensor:
    return torch.zeros_like(like)


@_zeros_after.register_fake
def _(like: Tensor, _: Any) -> Tensor:
    return torch.empty_like(like)


def _save_other(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _other_after(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    (other,) = ctx.saved_tensors
    return grad, _zeros_after(other, grad)


after.register_autograd(_other_after, setup_context=_save_other)


def _rows_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _sequence(x_BCHRD: Tensor) -> Tensor:
    """(B, H, N, D) of blocks one behind another; a view where memory allows it."""
    return x_BCHRD.transpose(1, 2).flatten(2, 3)


def _in_order(x_BHND: Tensor, token_major: bool) -> Tensor:
    """The same in the order in memory that an operator promises."""
    if token_major:
        return x_BHND.transpose(1, 2).contiguous().transpose(1, 2)
    return x_BHND.contiguous()


# A piece ------------------------------------------------------------------------------------------


def _as_batch(piece: _Piece, x_BCHRD: Tensor) -> Tensor:
    x = x_BCHRD.flip(3) if piece.backwards else x_BCHRD
    return x.flatten(0, 1)


def _attend(
    piece: _Piece, q_BCHRD: Tensor, k_BCHRD: Tensor, v_BCHRD: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, in the order of the piece."""
    inputs = [_as_batch(piece, x) for x in (q_BCHRD, k_BCHRD, v_BCHRD)]
    kernel = _kernel(*inputs, causal=piece.causal)
    out, lse = _in_turn(kernel.forward, inputs, kernel.most)
    blocks = q_BCHRD.shape[:2]
    return out.unflatten(0, blocks), lse.unflatten(0, blocks)


def _gradients(
    piece: _Piece,
    grad_BCHRD: Tensor,
    q_BCHRD: Tensor,
    out_BCHRD: Tensor,
    lse_BCHR: Tensor,
    k_BCHRD: Tensor,
    v_BCHRD: Tensor,
) -> tuple[Tensor, ...]:
    """Of queries, keys and values, in the order of the piece."""
    given = (grad_BCHRD, q_BCHRD, k_BCHRD, v_BCHRD, out_BCHRD, lse_BCHR)
    grad, q, k, v, out, lse = (_as_batch(piece, x) for x in given)
    kernel = _kernel(q, k, v, causal=piece.causal)
    gradients = _in_turn(kernel.backward, [grad, q, k, v, out, lse.contiguous()], kernel.most)
    return tuple(x.unflatten(0, q_BCHRD.shape[:2]) for x in gradients)


def _in_turn(
    call: Callable[..., tuple[Tensor, ...]], inputs: list[Tensor], most: int
) -> tuple[Tensor, ...]:
    """As many batch entries at a time."""
    if inputs[0].shape[0] <= most:
        return call(*inputs)
    turns = zip(*(x.split(most) for x in inputs), strict=True)
    return tuple(map(torch.cat, zip(*(call(*turn) for turn in turns), strict=True)))


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor, *, backwards: bool) -> None:
    """Two softmaxes over different keys as one, in place of the first."""
    if _has_kernels(out):
        from lighthouse.ops.triton import softmaxes

        softmaxes.merge(out, lse, _rows_contiguous(part), part_lse, backwards=backwards)
        return
    if backwards:
        part, part_lse = part.flip(3), part_lse.flip(3)
    share = torch.sigmoid(part_lse - lse)[..., None]
    out.copy_(torch.lerp(out.to(lse.dtype), part.to(lse.dtype), share))
    lse.copy_(torch.logaddexp(lse, part_lse))


def _add(total: Tensor, part: Tensor, *, backwards: bool) -> None:
    if _has_kernels(total):
        from lighthouse.ops.triton import softmaxes

        softmaxes.add(total, _rows_contiguous(part), backwards=backwards)
        return
    total += part.flip(3) if backwards else part


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.dtype != torch.float64 and importlib.util.find_spec("triton") is not None


# Stock kernels ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kernel:
    """A call for (C, H, R, D), its backward for the gradient, the same, output and log-sum-exp."""

    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    most: int = _MOST_BLOCKS


def _kernel(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> _Kernel:
    """The stock kernel for these inputs. All take grouped heads as they are."""
    if q.device.type == "cpu":
        return _on_cpu(causal)
    if q.is_cuda:
        params = SDPAParams(q, k, v, None, 0.0, causal, q.shape[1] != k.shape[1])
        if can_use_cudnn_attention(params):
            return _cudnn(causal)
        if q.shape[-1] % 8 == 0 and can_use_flash_attention(params):
            return _flash(causal)
    logits = q.shape[1] * q.shape[2] * k.shape[2]
    return _plain(causal, max(1, _MOST_LOGITS // logits))


def _on_cpu(causal: bool) -> _Kernel:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        return out, lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal
        )
        return dq, dk, dv

    return _Kernel(forward, backward)


def _cudnn(causal: bool) -> _Kernel:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, causal, False
        )
        return out, lse.view(out.shape[:3])

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Without dropout nothing is drawn, and the state of the generator is not read.
        state = q.new_zeros((), dtype=torch.int64)
        dq, dk, dv = _aten._scaled_dot_product_cudnn_attention_backward(
            *(grad, q, k, v, out, lse[..., None], state, state, None, None, None),
            *(q.shape[2], k.shape[2], 0.0, causal),
        )
        return dq, dk, dv

    return _Kernel(forward, backward)


def _flash(causal: bool) -> _Kernel:
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
        return out, lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        state = q.new_zeros(2, dtype=torch.uint64)
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
            *(grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal),
            *(state, state),
        )
        return dq, dk, dv

    return _Kernel(forward, backward)


def _plain(causal: bool, most: int) -> _Kernel:
    """Products of matrices, for what has no stock kernel that returns its log-sum-exp."""

    def logits(q: Tensor, k: Tensor) -> Tensor:
        scaled = q.to(_lse_dtype(q)) @ k.to(_lse_dtype(k)).mT / math.sqrt(q.shape[-1])
        if not causal:
            return scaled
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        return scaled.masked_fill(future, -math.inf)

    def of_queries(x: Tensor, heads: int) -> Tensor:
        return x.repeat_interleave(heads // x.shape[1], 1)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k, v = of_queries(k, q.shape[1]), of_queries(v, q.shape[1])
        scores = logits(q, k)
        lse = scores.logsumexp(-1)
        out = (scores - lse[..., None]).exp() @ v.to(lse.dtype)
        return out.to(q.dtype), lse

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kv_heads = k.shape[1]
        wide = lse.dtype
        k, v = of_queries(k, q.shape[1]).to(wide), of_queries(v, q.shape[1]).to(wide)
        weights = (logits(q, k) - lse[..., None]).exp()
        grad = grad.to(wide)
        dot = (grad * out.to(wide)).sum(-1, keepdim=True)
        d_logits = weights * (grad @ v.mT - dot) / math.sqrt(q.shape[-1])
        of_heads = d_logits.mT @ q.to(wide), weights.mT @ grad
        dk, dv = (x.unflatten(1, (kv_heads, -1)).sum(2).to(q.dtype) for x in of_heads)
        return (d_logits @ k).to(q.dtype), dk, dv

    return _Kernel(forward, backward, most)
