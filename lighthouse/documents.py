"""Attention that ends where a document ends (docs/method.md, section 10).

A sequence packs documents one behind another. Where they begin is said by ``document_starts``,
int32 (B, M): the first token of each document in rising order, of which the first is 0; places
without a document hold the length N. M bounds the number of documents, and shapes are made by it,
so that nothing waits for the device.

Shape suffixes: B batch, H heads (query or key/value), G groups of heads that are cut alike, N
tokens or rows, K key/value heads, or keys in the place of N, M documents, C coarsest entries, D
head dimension.
"""

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

import lighthouse.window  # noqa: F401  (registers the operators that attend to a document)
from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.inputs import check_inputs
from lighthouse.pyramid import Pyramid, Selection
from lighthouse.stock_kernels import lse_dtype

# Grouped heads have to be said from some release of PyTorch on, and can't be before it.
_GROUPED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}
)

_MOST_PIECES = 2**15
"""Of a call: CUDA's grids have at most 65,535 in their lesser dimensions."""

_FEWEST_PLACES = 32


def places_for(documents: int, most: int) -> int:
    """How many places ``document_starts`` should have for so many documents, ``most`` at most.

    A GPU's kernel starts programs for each place, as many as for the longest document that there
    could be, so that places without a document cost time. The numbers are few, powers of two from
    32 on, since code is compiled for each.
    """
    return min(most, max(_FEWEST_PLACES, 1 << (documents - 1).bit_length()))


def check_document_starts(
    document_starts_BM: Tensor, batch: int, seq_len: int, multiple: int = 1
) -> None:
    """Refuse what can't say where documents begin.

    Args:
        multiple: what starts must be multiples of.

    Raises:
        ValueError: for another shape or dtype; on the CPU also for other values, for which a GPU
            would have to be waited for.
    """
    starts = document_starts_BM
    if starts.ndim != 2 or starts.shape[0] != batch or not starts.shape[1]:
        raise ValueError(
            f"document_starts: must be (B, M) = ({batch}, at least 1), got {tuple(starts.shape)}"
        )
    if starts.dtype != torch.int32:
        raise ValueError(f"document_starts: must be int32, got {starts.dtype}")
    if starts.device.type != "cpu" or torch.compiler.is_compiling():
        return
    unused = starts == seq_len
    falls = (starts[:, 1:] < starts[:, :-1]).any()
    if (starts[:, 0] != 0).any() or falls or (starts > seq_len).any():
        raise ValueError(
            "document_starts: each row must begin with 0, never fall, and hold the length "
            f"{seq_len} in places without a document"
        )
    if ((starts % multiple != 0) & ~unused).any():
        raise ValueError(
            "document_starts: Lighthouse needs multiples of pooling_factor ** (num_levels - 1) = "
            f"{multiple}, so that no pooled entry mixes two documents; pad documents to them"
        )


def document_attention(
    q_BHND: Tensor,
    k_BHKD: Tensor,
    v_BHKD: Tensor,
    starts_BGM: Tensor,
    *,
    window: int | None = None,
) -> Tensor:
    """Causal attention inside each document.

    Args:
        q_BHND: queries (B, Hq, N, D); any strides.
        k_BHKD: keys (B, Hkv, K, D); Hq is a multiple of Hkv. The last N are those of the queries'
            tokens; K - N more are those of the tokens before.
        v_BHKD: values (B, Hkv, K, D). The three agree in floating dtype and device.
        starts_BGM: int32, with which keys documents begin, in the heads of each of G groups; G
            divides Hkv. Each row is as ``document_starts`` of K tokens.
        window: tokens that a token sees, its own among them; None for all of its document.

    Returns:
        (B, Hq, N, D) in the dtype of the inputs. With gradients of first order in reverse mode.
        No value and no gradient crosses a border, not even NaN. On GPUs by PyTorch's kernel for
        sequences of many lengths, and as deterministic as that is. On CPUs, in fp32 and in float64
        document by document, which waits for a GPU.

    Raises:
        ValueError: for inputs that don't fit each other, or a window below 1.
    """
    check_inputs(q_BHND, k_BHKD, v_BHKD, keys_in_front=True)
    if window is not None:
        WindowConfig(window)
    batch, kv_heads, num_keys, head_dim = k_BHKD.shape
    groups = starts_BGM.shape[1]
    if starts_BGM.shape[0] != batch or kv_heads % groups:
        raise ValueError(
            f"starts must be (B, G, M) with B = {batch} and G a divisor of Hkv = {kv_heads}, got "
            f"{tuple(starts_BGM.shape)}"
        )
    window = min(window or num_keys, num_keys)
    half = q_BHND.dtype in (torch.bfloat16, torch.float16)
    if q_BHND.is_cuda and half and head_dim % 8 == 0 and head_dim <= 256:
        return _by_lengths(q_BHND, k_BHKD, v_BHKD, starts_BGM, window)
    out: Tensor = _documents(q_BHND, k_BHKD, v_BHKD, starts_BGM, window)[0]
    return out


class Documents:
    """How a layer attends in documents, on a device that has the whole sequence.

    Where ranks share a sequence :class:`lighthouse.titan.distributed.exchange.SharedSequence` takes
    its place.
    """

    def whole(self, seq_len: int) -> int:
        """Tokens of the sequence of which this rank has ``seq_len``."""
        return seq_len

    def here(self, document_starts_BM: Tensor, seq_len: int) -> Tensor:
        """Documents of the sequence in the ``seq_len`` tokens of this rank; some may be empty."""
        del seq_len
        return document_starts_BM

    def attend(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        document_starts_BM: Tensor,
        *,
        window: int | None = None,
    ) -> Tensor:
        """(B, Hq, N, D) from this rank's tokens and the documents of the sequence.

        Raises:
            ValueError: as :func:`check_document_starts`.
        """
        whole = self.whole(q_BHND.shape[2])
        check_document_starts(document_starts_BM, q_BHND.shape[0], whole)
        return self._attend(q_BHND, k_BHND, v_BHND, document_starts_BM[:, None], window)

    def attend_rows(self, q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, starts: Tensor) -> Tensor:
        """(B, Hq, S, D) from this rank's rows of the sub-sequence, and their :func:`row_starts`."""
        return self._attend(q_BHSD, k_BHSD, v_BHSD, starts, None)

    def _attend(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        starts_BGM: Tensor,
        window: int | None,
    ) -> Tensor:
        return document_attention(q_BHND, k_BHND, v_BHND, starts_BGM, window=window)


def first_tokens(document_starts_BM: Tensor, seq_len: int, config: LighthouseConfig) -> Tensor:
    """Where the document of each coarsest entry begins, or its chunk if that is later.

    Returns:
        int32 (B, C), in tokens.
    """
    width = config.coarsest_width
    entry_C = torch.arange(0, seq_len, width, device=document_starts_BM.device, dtype=torch.int32)
    starts_BM = document_starts_BM.contiguous()
    entry_BC = entry_C.expand(starts_BM.shape[0], -1).contiguous()
    document_BC = torch.searchsorted(starts_BM, entry_BC, right=True) - 1
    chunk_len = seq_len // config.num_chunks
    return starts_BM.gather(1, document_BC).maximum(entry_C // chunk_len * chunk_len)


def row_starts(
    selection: Selection, document_starts_BM: Tensor, seq_len: int, config: LighthouseConfig
) -> Tensor:
    """Where each document's rows begin in the sub-sequence of each key/value head, int32 (B, K, M).

    A row belongs to the document of its window, and rows are ordered by window ends.
    """
    pyramid = Pyramid(seq_len, config.num_levels, config.pooling_factor)
    index_BKS = selection.index
    end_BKS = index_BKS + 1
    for offset, width in zip(pyramid.offsets[1:], pyramid.widths[1:], strict=True):
        end_BKS = torch.where(index_BKS < offset, end_BKS, (index_BKS - offset + 1) * width)
    starts_BKM = document_starts_BM[:, None].expand(-1, index_BKS.shape[1], -1).contiguous()
    return torch.searchsorted(end_BKS, starts_BKM, right=True, out_int32=True)


# On GPUs: all documents of all heads in one call --------------------------------------------------


def _by_lengths(
    q_BHND: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, starts_BGM: Tensor, window: int
) -> Tensor:
    batch, groups, bound = starts_BGM.shape
    num_queries, num_keys = q_BHND.shape[2], k_BHKD.shape[2]
    if batch * groups * bound > _MOST_PIECES and groups > 1:
        heads = (x.chunk(groups, dim=1) for x in (q_BHND, k_BHKD, v_BHKD, starts_BGM))
        of_groups = zip(*heads, strict=True)
        return torch.cat([_by_lengths(q, k, v, s, window) for q, k, v, s in of_groups], dim=1)

    def bounds(starts_BGM: Tensor, tokens: int) -> Tensor:
        line = torch.arange(batch * groups, device=starts_BGM.device, dtype=torch.int32) * tokens
        starts = (starts_BGM.flatten(0, 1) + line[:, None]).flatten()
        return torch.cat([starts, starts.new_full((1,), batch * groups * tokens)])

    def packed(x_BHND: Tensor) -> Tensor:
        """(B G N, H / G, D): a view where memory allows it."""
        return x_BHND.unflatten(1, (groups, -1)).transpose(2, 3).flatten(0, 2)

    of_keys = of_queries = bounds(starts_BGM, num_keys)
    if num_queries != num_keys:
        # The kernel lets the last query of a piece see its last key.
        of_queries = bounds((starts_BGM - (num_keys - num_queries)).clamp(min=0), num_queries)
    q, k, v = (packed(x) for x in (q_BHND, k_BHKD, v_BHKD))
    seen = (-1 if window == num_keys else window - 1, 0)
    grouped = _GROUPED if q_BHND.shape[1] != k_BHKD.shape[1] else {}
    out = varlen.varlen_attn(
        *(q, k, v, of_queries, of_keys, num_queries, num_keys), window_size=seen, **grouped
    )
    assert isinstance(out, Tensor)  # no log-sum-exp is asked for
    return out.unflatten(0, (batch, groups, num_queries)).transpose(2, 3).flatten(1, 2)


# Elsewhere: one document after another ------------------------------------------------------------

_Piece = tuple[slice, slice, slice]


def _pieces(
    starts_BGM: Tensor, q: Tensor, k: Tensor, window: int
) -> Iterator[tuple[_Piece, _Piece]]:
    """Rows of the batch, heads and tokens of each document: those of its queries, each of which is
    in one document, and those of the keys that they see."""
    num_keys = k.shape[2]
    front = num_keys - q.shape[2]
    for row, of_row in enumerate(starts_BGM.tolist()):
        for group, starts in enumerate(of_row):
            of_queries, of_keys = (
                (slice(row, row + 1), slice(group * heads, (group + 1) * heads))
                for heads in (x.shape[1] // starts_BGM.shape[1] for x in (q, k))
            )
            for start, end in pairwise([*starts, num_keys]):
                first = max(start, front)
                if end > first:
                    seen = slice(max(start, first - window + 1), end)
                    yield (*of_queries, slice(first - front, end - front)), (*of_keys, seen)


@torch.library.custom_op("lighthouse::documents", mutates_args=())
def _documents(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp (B, H, N)."""
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:3], dtype=lse_dtype(q))
    for of_q, of_k in _pieces(starts, q, k, window):
        parts = torch.ops.lighthouse.window(q[of_q], k[of_k], v[of_k], window, False)
        out[of_q], lse[of_q] = parts
    return out, lse


@_documents.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=lse_dtype(q))


@torch.library.custom_op("lighthouse::documents_backward", mutates_args=())
def _documents_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    starts: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_zeros(x.shape) for x in (q, k, v))  # keys in front may be seen by none
    for of_q, of_k in _pieces(starts, q, k, window):
        of_document = (grad[of_q], q[of_q], k[of_k], v[of_k], out[of_q], lse[of_q])
        parts = torch.ops.lighthouse.window_backward(*of_document, window, False)
        dq[of_q], dk[of_k], dv[of_k] = parts
    return dq, dk, dv


@_documents_backward.register_fake
def _(_g: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, starts, ctx.window = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, starts)


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *_documents_backward(grad, *ctx.saved_tensors, ctx.window), None, None


_documents.register_autograd(_backward, setup_context=_setup)
