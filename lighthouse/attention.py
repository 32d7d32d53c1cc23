"""Lighthouse Attention as a function and as a module around a dense attention module."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lighthouse.config import LighthouseConfig
from lighthouse.ops import check_name, implementation
from lighthouse.scorers import level0_scores, level1_maxima

DenseAttention = Callable[..., Tensor]


def dense_attention(
    q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, *, enable_gqa: bool = False
) -> Tensor:
    """Causal attention by whatever kernel ``scaled_dot_product_attention`` picks."""
    return F.scaled_dot_product_attention(
        q_BHSD, k_BHSD, v_BHSD, is_causal=True, enable_gqa=enable_gqa
    )


def lighthouse_attention(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    *,
    config: LighthouseConfig,
    impl: str = "auto",
    attention: DenseAttention = dense_attention,
) -> Tensor:
    """Pool, score, select, gather, attend, scatter back (arXiv 2605.06554).

    For training only: which entries are refined depends on later tokens too, although what flows
    into an output never does. ``config.selection`` says how: see docs/selection.md.

    Args:
        q_BHND: queries (B, Hq, N, D), rotary embedding applied; any strides.
        k_BHND: keys (B, Hkv, N, D), rotary embedding applied; Hq is a multiple of Hkv.
        v_BHND: values (B, Hkv, N, D). The three agree in floating dtype and device.
        config: parameters; N must satisfy ``config.validate``.
        impl: ``"auto"`` or the name of an implementation of the steps around attention.
        attention: the causal dense attention of the sub-sequence, called as
            ``attention(q_BHSD, k_BHSD, v_BHSD, enable_gqa=Hq != Hkv)``.

    Returns:
        (B, Hq, N, D) in the dtype that ``attention`` returns: that of the inputs, but for autocast.
        Gradients of first order, in reverse mode, flow through pooling, attention and scatter,
        never through scores or indices. As deterministic as ``attention`` is.

    Raises:
        ValueError: for inputs that don't fit each other or ``config``, and for an ``attention``
            that returns another shape than its queries'.
    """
    _check_inputs(q_BHND, k_BHND, v_BHND)
    seq_len = q_BHND.shape[2]
    config.validate(seq_len)
    ops = implementation(impl, q_BHND.device, q_BHND.dtype)
    by_norm = config.scorer == "norm"
    q_coarsest, query_maxima = ops.summarize(q_BHND, config, scored=by_norm)
    k_coarsest, key_maxima = ops.summarize(k_BHND, config, scored=by_norm)
    v_coarsest, _ = ops.summarize(v_BHND, config, scored=False)
    if not by_norm:
        scores = level0_scores(q_BHND, k_BHND, v_BHND, config)
        query_maxima, key_maxima = (level1_maxima(x, config) for x in scores)
    assert query_maxima is not None and key_maxima is not None
    selection = ops.select(query_maxima, key_maxima, config)
    q_BHSD = ops.gather(q_BHND, q_coarsest, selection, config)
    k_BHSD = ops.gather(k_BHND, k_coarsest, selection, config)
    v_BHSD = ops.gather(v_BHND, v_coarsest, selection, config)
    enable_gqa = False
    if q_BHND.shape[1] != k_BHND.shape[1]:  # a branch: SDPA refuses a comparison of symbolic sizes
        enable_gqa = True
    rows_BHSD = attention(q_BHSD, k_BHSD, v_BHSD, enable_gqa=enable_gqa)
    if rows_BHSD.shape != q_BHSD.shape:
        raise ValueError(
            "attention must return the shape of its queries, (B, Hq, S, D) = "
            f"{tuple(q_BHSD.shape)}, got {tuple(rows_BHSD.shape)}"
        )
    return ops.scatter(rows_BHSD, selection, q_BHND, config)


def _check_inputs(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> None:
    shapes = f"q {tuple(q_BHND.shape)}, k {tuple(k_BHND.shape)}, v {tuple(v_BHND.shape)}"
    if not (q_BHND.ndim == k_BHND.ndim == 4 and k_BHND.shape == v_BHND.shape):
        raise ValueError(f"q, k, v must be (B, H, N, D) with k and v of one shape, got {shapes}")
    batch, heads, seq_len, head_dim = q_BHND.shape
    kv_heads = k_BHND.shape[1]
    if k_BHND.shape != (batch, kv_heads, seq_len, head_dim) or kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"q and k must agree in B, N and D, and Hq be a multiple of Hkv, got {shapes}"
        )
    if heads == 0 or head_dim == 0:
        raise ValueError(f"Hq and D must be at least 1, got {shapes}")
    if not q_BHND.is_floating_point() or not q_BHND.dtype == k_BHND.dtype == v_BHND.dtype:
        raise ValueError(
            "q, k, v must share one floating dtype, got "
            f"{q_BHND.dtype}, {k_BHND.dtype}, {v_BHND.dtype}"
        )
    if not q_BHND.device == k_BHND.device == v_BHND.device:
        raise ValueError(
            f"q, k, v must be on one device, got {q_BHND.device}, {k_BHND.device}, {v_BHND.device}"
        )


class LighthouseAttention(nn.Module):
    """Wraps a dense attention module; called like it, with the same arguments.

    Attributes:
        config: the layer's parameters.
        inner: the dense module, called as ``inner(q, k, v, enable_gqa=..., **kwargs)`` on the
            sub-sequence, or on the whole input when ``dense`` is set.
        impl: as in :func:`lighthouse_attention`.
        dense: whether to pass calls straight on to ``inner``. Not part of the state dict: the
            module has no parameters and no buffers, so checkpoints are those of the dense model.
    """

    def __init__(self, config: LighthouseConfig, inner: nn.Module, impl: str = "auto") -> None:
        super().__init__()
        check_name(impl)
        self.config = config
        self.inner = inner
        self.impl = impl
        self.dense = False

    def forward(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        *,
        enable_gqa: bool = False,
        **inner_kwargs: Any,
    ) -> Tensor:
        """(B, Hq, N, D) from q (B, Hq, N, D), k and v (B, Hkv, N, D); see the function."""
        if self.dense:
            return self.inner(q_BHND, k_BHND, v_BHND, enable_gqa=enable_gqa, **inner_kwargs)
        if q_BHND.shape[1] != k_BHND.shape[1] and not enable_gqa:
            raise ValueError(
                f"enable_gqa = False: q has {q_BHND.shape[1]} heads and k {k_BHND.shape[1]}; "
                "grouped-query heads need enable_gqa = True"
            )

        def attention(q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool) -> Tensor:
            return self.inner(q, k, v, enable_gqa=enable_gqa, **inner_kwargs)

        return lighthouse_attention(
            q_BHND, k_BHND, v_BHND, config=self.config, impl=self.impl, attention=attention
        )

    def extra_repr(self) -> str:
        return f"{self.config}, impl={self.impl!r}, dense={self.dense}"
