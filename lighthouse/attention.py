"""Lighthouse Attention as a function and as a module around a dense attention module."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lighthouse.config import INTERLEAVED_SCORERS, LighthouseConfig, WindowConfig
from lighthouse.documents import (
    Documents,
    check_document_starts,
    document_attention,
    first_tokens,
    row_starts,
)
from lighthouse.inputs import check_inputs
from lighthouse.ops import check_name, implementation
from lighthouse.scorers import level0_scores, level1_maxima
from lighthouse.window import window_attention

DenseAttention = Callable[..., Tensor]
WindowAttention = Callable[..., Tensor]

_WHOLE = Documents()


def dense_attention(
    q_BHSD: Tensor,
    k_BHSD: Tensor,
    v_BHSD: Tensor,
    *,
    enable_gqa: bool = False,
    document_starts: Tensor | None = None,
) -> Tensor:
    """Causal attention by whatever kernel ``scaled_dot_product_attention`` picks.

    With int32 ``document_starts`` (B, Hkv, S) inside documents alone, by ``document_attention``.
    """
    if document_starts is not None:
        return document_attention(q_BHSD, k_BHSD, v_BHSD, document_starts)
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
    document_starts: Tensor | None = None,
    documents: Documents = _WHOLE,
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
            ``attention(q_BHSD, k_BHSD, v_BHSD, enable_gqa=Hq != Hkv)``. With documents it gets
            ``document_starts`` too, int32 (B, Hkv, M): where their rows begin in each head's
            sub-sequence, S where there is none.
        document_starts: int32 (B, M), with which tokens documents begin, in rising order from 0 on,
            multiples of ``config.coarsest_width``; N in places without one. Attention then ends
            where a document ends (docs/method.md, section 10).
        documents: where ranks share the sequence, how they do; ``document_starts`` is then of the
            whole sequence, and what ``attention`` gets of this rank's rows.

    Returns:
        (B, Hq, N, D) in the dtype that ``attention`` returns: that of the inputs, but for autocast.
        Gradients of first order, in reverse mode, flow through pooling, attention and scatter,
        never through scores or indices. As deterministic as ``attention`` is.

    Raises:
        ValueError: for inputs that don't fit each other or ``config``, for an ``attention``
            that returns another shape than its queries', and for scorers that documents don't go
            with: ``dilated`` and ``gla``.
    """
    check_inputs(q_BHND, k_BHND, v_BHND)
    if document_starts is not None:
        _check_documents(document_starts, q_BHND, config, documents)
    seq_len = q_BHND.shape[2]
    config.validate(seq_len)
    ops = implementation(impl, q_BHND.device, q_BHND.dtype)
    qkv = q_BHND, k_BHND, v_BHND
    coarsest, maxima = ops.summarize(qkv, config, scored=config.scorer == "norm")
    if maxima is None:
        query_scores, key_scores = level0_scores(*qkv, config)
        maxima = level1_maxima(query_scores, config), level1_maxima(key_scores, config)
    cut = {}
    if document_starts is None:
        selection = ops.select(*maxima, config)
    else:
        here_BM = documents.here(document_starts, seq_len)
        first_token_BC = first_tokens(here_BM, seq_len, config)
        selection = ops.select(*maxima, config, first_token_BC)
        cut["document_starts"] = row_starts(selection, here_BM, seq_len, config)
    q_BHSD, k_BHSD, v_BHSD = ops.gather(qkv, coarsest, selection, config)
    enable_gqa = False
    if q_BHND.shape[1] != k_BHND.shape[1]:  # a branch: SDPA refuses a comparison of symbolic sizes
        enable_gqa = True
    rows_BHSD = attention(q_BHSD, k_BHSD, v_BHSD, enable_gqa=enable_gqa, **cut)
    if rows_BHSD.shape != q_BHSD.shape:
        raise ValueError(
            "attention must return the shape of its queries, (B, Hq, S, D) = "
            f"{tuple(q_BHSD.shape)}, got {tuple(rows_BHSD.shape)}"
        )
    return ops.scatter(rows_BHSD, selection, q_BHND, config)


def _check_documents(
    document_starts_BM: Tensor,
    q_BHND: Tensor,
    config: LighthouseConfig,
    documents: Documents,
) -> None:
    if config.scorer in INTERLEAVED_SCORERS:
        raise ValueError(
            f"scorer = {config.scorer!r}: attends across the borders of documents; with documents "
            "use 'norm' or 'random'"
        )
    batch, _, seq_len, _ = q_BHND.shape
    whole = documents.whole(seq_len)
    check_document_starts(document_starts_BM, batch, whole, config.coarsest_width)


class LighthouseAttention(nn.Module):
    """Wraps a dense attention module; called like it, with the same arguments.

    Attributes:
        config: the layer's parameters; a :class:`WindowConfig` if it attends in a window instead.
        inner: the dense module, called as ``inner(q, k, v, enable_gqa=..., **kwargs)`` on the
            sub-sequence, or on the whole input when ``dense`` is set.
        impl: as in :func:`lighthouse_attention`.
        dense: whether to pass calls straight on to ``inner``. Not part of the state dict: the
            module has no parameters and no buffers, so checkpoints are those of the dense model.
        windowed: the attention of a window layer, called as
            ``windowed(q_BHND, k_BHND, v_BHND, window=config.window)``. With documents ``documents``
            takes its place.
        documents: as in :func:`lighthouse_attention`, for every kind of layer.
    """

    windowed: WindowAttention
    documents: Documents

    def __init__(
        self, config: LighthouseConfig | WindowConfig, inner: nn.Module, impl: str = "auto"
    ) -> None:
        super().__init__()
        check_name(impl)
        self.config = config
        self.inner = inner
        self.impl = impl
        self.dense = False
        self.windowed = window_attention
        self.documents = _WHOLE

    def forward(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        *,
        enable_gqa: bool = False,
        document_starts: Tensor | None = None,
        **inner_kwargs: Any,
    ) -> Tensor:
        """(B, Hq, N, D) from q (B, Hq, N, D), k and v (B, Hkv, N, D); see the functions.

        With int32 ``document_starts`` (B, M) ``documents`` takes the place of ``inner``.
        """
        if self.dense and document_starts is None:
            return self.inner(q_BHND, k_BHND, v_BHND, enable_gqa=enable_gqa, **inner_kwargs)
        if q_BHND.shape[1] != k_BHND.shape[1] and not enable_gqa:
            raise ValueError(
                f"enable_gqa = False: q has {q_BHND.shape[1]} heads and k {k_BHND.shape[1]}; "
                "grouped-query heads need enable_gqa = True"
            )
        config = None if self.dense else self.config
        if not isinstance(config, LighthouseConfig):
            window = None if config is None else config.window
            if document_starts is not None:
                return self.documents.attend(q_BHND, k_BHND, v_BHND, document_starts, window=window)
            return self.windowed(q_BHND, k_BHND, v_BHND, window=window)

        def attention(
            q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool, **cut: Tensor
        ) -> Tensor:
            if cut:
                return self.documents.attend_rows(q, k, v, cut["document_starts"])
            return self.inner(q, k, v, enable_gqa=enable_gqa, **inner_kwargs)

        return lighthouse_attention(
            *(q_BHND, k_BHND, v_BHND),
            config=config,
            impl=self.impl,
            attention=attention,
            document_starts=document_starts,
            documents=self.documents,
        )

    def extra_repr(self) -> str:
        return f"{self.config}, impl={self.impl!r}, dense={self.dense}"
