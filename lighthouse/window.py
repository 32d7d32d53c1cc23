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
left of its triangle is a smaller triangle and a rectangle (``window_pieces.py``).

Shape suffixes: B batch, H heads (query or key/value), N queries, M keys, D head dimension, C
blocks, R rows of a block.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from lighthouse.config import WindowConfig
from lighthouse.inputs import check_inputs
from lighthouse.stock_kernels import in_turn, kernel_for, lse_dtype
from lighthouse.window_pieces import Piece, pieces


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


# Order in memory ----------------------------------------------------------------------------------


def _empty_like(x: Tensor, token_major: bool) -> Tensor:
    """In (B, N, H, D)-ordered memory if ``token_major``, else in (B, H, N, D)-ordered one."""
    batch, heads, seq_len, head_dim = x.shape
    if token_major:
        return x.new_empty(batch, seq_len, heads, head_dim).transpose(1, 2)
    return x.new_empty(x.shape)


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


# Operators ----------------------------------------------------------------------------------------


@torch.library.custom_op("lighthouse::window", mutates_args=())
def _window(
    q: Tensor, k: Tensor, v: Tensor, window: int, token_major: bool
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp (B, H, N)."""
    q, k, v = map(_rows_contiguous, (q, k, v))
    lse = q.new_empty(q.shape[:3], dtype=lse_dtype(q))
    out: Tensor | None = None
    for piece in pieces(q.shape[2], k.shape[2], window):
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
    return _empty_like(q, token_major), q.new_empty(q.shape[:3], dtype=lse_dtype(q))


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
    for piece in pieces(q.shape[2], k.shape[2], window):
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


# A piece ------------------------------------------------------------------------------------------


def _as_batch(piece: Piece, x_BCHRD: Tensor) -> Tensor:
    return (_reverse(x_BCHRD) if piece.backwards else x_BCHRD).flatten(0, 1)


def _attend(
    piece: Piece, q_BCHRD: Tensor, k_BCHRD: Tensor, v_BCHRD: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, in the order of the piece."""
    inputs = [_as_batch(piece, x) for x in (q_BCHRD, k_BCHRD, v_BCHRD)]
    kernel = kernel_for(*inputs, causal=piece.causal)
    out, lse = in_turn(kernel.forward, inputs, kernel.most)
    blocks = q_BCHRD.shape[:2]
    return out.unflatten(0, blocks), lse.unflatten(0, blocks)


def _gradients(
    piece: Piece,
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
    kernel = kernel_for(q, k, v, causal=piece.causal)
    gradients = in_turn(kernel.backward, [grad, q, k, v, out, lse.contiguous()], kernel.most)
    return tuple(x.unflatten(0, q_BCHRD.shape[:2]) for x in gradients)


def _reverse(x: Tensor) -> Tensor:
    """Rows last first, of what has any beside their places."""
    if x.dim() == 5 and _has_kernels(x):
        from lighthouse.ops.triton import softmaxes

        return softmaxes.reverse(x)
    return x.flip(3)


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
