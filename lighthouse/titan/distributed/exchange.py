"""Attention across context-parallel ranks where torch's ring has no mask: in windows and documents.

A rank owns one chunk of the sequence, or two with head-tail balancing: r and 2W - 1 - r of 2W. In
front of each it needs the keys and values of the ``window - 1`` tokens before it. They are of the
chunk before, which a neighbour owns, or of several if the window is longer than a chunk. One
exchange fetches those of all chunks, and nothing else; backward returns their gradients to where
the tokens are.

A document may be as long as the sequence, and where documents begin the host does not know. So in
documents without a window a rank fetches all tokens before each chunk that are not its own: 2W - 2
chunks at most, as many as there are of others.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import (
    AsyncCollectiveTensor,
    all_reduce,
    all_to_all_single,
)

from lighthouse.attention import LighthouseAttention
from lighthouse.documents import Documents, document_attention
from lighthouse.titan.llama3.layers import DenseInDocuments
from lighthouse.window import window_attention

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def share_sequences(
    model_parts: Iterable[nn.Module], job_config: "JobConfig", parallel_dims: Any
) -> None:
    """Let windows and documents reach over ranks, where context parallelism shares sequences out.

    To be called before the model is, which is compiled when it is called first.

    Args:
        model_parts: the model.
        job_config: torchtitan's ``JobConfig``.
        parallel_dims: torchtitan's ``ParallelDims``.
    """
    mesh = parallel_dims.get_optional_mesh("cp")
    if mesh is None:
        return
    balanced = bool(job_config.parallelism.context_parallel_load_balancer)
    group = mesh.get_group().group_name
    shared = SharedSequence(group, mesh.get_local_rank(), mesh.size(), balanced)
    for module in (m for part in model_parts for m in part.modules()):
        if isinstance(module, LighthouseAttention):
            module.windowed = shared
        if isinstance(module, LighthouseAttention | DenseInDocuments):
            module.documents = shared


@dataclass(frozen=True)
class Transfer:
    """Tokens that one rank has and another needs: the last of a chunk.

    Attributes:
        first: by its place in the sequence.
        tokens: how many.
        source: which of the sender's chunks, 0 or 1.
        chunk: which of the receiver's they come before, 0 or 1.
    """

    first: int
    tokens: int
    source: int
    chunk: int


def transfers(
    sender: int, receiver: int, ranks: int, balanced: bool, chunk_len: int, reach: int
) -> list[Transfer]:
    """What a rank has of the ``reach`` tokens before each chunk of another, or of its own."""
    found = []
    for place, wanted in enumerate(_owned(receiver, ranks, balanced)):
        before = wanted * chunk_len
        for own_place, owned in enumerate(_owned(sender, ranks, balanced)):
            first = max(owned * chunk_len, before - reach)
            tokens = min((owned + 1) * chunk_len, before) - first
            if tokens > 0:
                found.append(Transfer(first, tokens, own_place, place))
    return found


@torch.library.custom_op("lighthouse::after", mutates_args=())
def after(x: Tensor, arrived: Tensor) -> Tensor:
    """A copy of ``x``, made when ``arrived`` is there, which has no gradient.

    Where ``arrived`` was sent and ``x`` will be, a compiler that may do the two in any order can
    find another one on each rank, which then wait for each other without end. In eager code it
    orders nothing that is not in this order anyway.
    """
    return x.clone()


@after.register_fake
def _(x: Tensor, _: Any) -> Tensor:
    return torch.empty_like(x)


after.register_autograd(lambda _, grad: (grad, None))


def _owned(rank: int, ranks: int, balanced: bool) -> tuple[int, ...]:
    return (rank, 2 * ranks - 1 - rank) if balanced else (rank,)


@torch.compiler.allow_in_graph
class _Exchange(torch.autograd.Function):
    """``all_to_all_single`` as one node of Dynamo's graph, so that checkpoints don't keep what was
    fetched: see lighthouse.ops.triton.gather_scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, received: list[int], sent: list[int], group: Any) -> Tensor:
        ctx.received, ctx.sent, ctx.group = received, sent, group
        return _waited(all_to_all_single(x, received, sent, group))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        back = all_to_all_single(grad.contiguous(), ctx.sent, ctx.received, ctx.group)
        return _waited(back), None, None, None


def _waited(x: Tensor) -> Tensor:
    """What a collective returns, as a plain tensor.

    In eager code it is of a class that waits when it is used. Each view of it goes through Python,
    which together takes longer than attention. What it is for comes right behind it anyway.
    """
    return x.wait() if isinstance(x, AsyncCollectiveTensor) else x


@dataclass(frozen=True)
class SharedSequence(Documents):
    """What attention to a rank's share of the tokens is; a collective.

    Called it is :func:`lighthouse.window.window_attention`. A rank's share of a sub-sequence is
    exchanged as its tokens are: each chunk has as many rows.

    Attributes:
        group: name of the context-parallel process group.
        rank, ranks: in it.
        balanced: whether a rank owns two chunks.
    """

    group: Any  # a str; functional collectives have a type of their own for it
    rank: int
    ranks: int
    balanced: bool

    def __call__(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, *, window: int) -> Tensor:
        """(B, Hq, N, D) from a rank's N tokens of q (B, Hq, N, D), k and v (B, Hkv, N, D)."""
        return self._attend(q_BHND, k_BHND, v_BHND, None, window)

    def whole(self, seq_len: int) -> int:
        return self.ranks * seq_len

    def here(self, document_starts_BM: Tensor, seq_len: int) -> Tensor:
        """Chunk after chunk all documents of the sequence, (B, chunks * M)."""
        owned = _owned(self.rank, self.ranks, self.balanced)
        chunk_len = seq_len // len(owned)
        # Clamped first: from torch 2.14 on, compiling an input less 0 in a checkpoint fails.
        starts = [
            document_starts_BM.clamp(chunk * chunk_len, (chunk + 1) * chunk_len)
            + (place - chunk) * chunk_len
            for place, chunk in enumerate(owned)
        ]
        return torch.cat(starts, dim=1)

    def attend_rows(self, q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, starts: Tensor) -> Tensor:
        # Of all rows those before a document are the sum of those in each chunk.
        chunks = len(_owned(self.rank, self.ranks, self.balanced))
        before = [
            of_chunk - place * (k_BHSD.shape[2] // chunks)
            for place, of_chunk in enumerate(starts.chunk(chunks, dim=2))
        ]
        starts_BKM = _waited(all_reduce(sum(before[1:], before[0]), "sum", self.group))
        # Both send: on all ranks this first.
        return self._attend(q_BHSD, after(k_BHSD, starts_BKM), v_BHSD, starts_BKM, None)

    def _attend(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        starts_BGM: Tensor | None,
        window: int | None,
    ) -> Tensor:
        owned = _owned(self.rank, self.ranks, self.balanced)
        reach = self.whole(q_BHND.shape[2]) if window is None else window - 1
        chunk_len = q_BHND.shape[2] // len(owned)
        seen = self._seen(k_BHND, v_BHND, chunk_len, reach)
        outputs = []
        for chunk, q, (k, v) in zip(owned, q_BHND.chunk(len(owned), dim=2), seen, strict=True):
            if starts_BGM is None:
                assert window is not None
                outputs.append(window_attention(q, k, v, window=window))
                continue
            num_keys = k.shape[2]
            first = (chunk + 1) * chunk_len - num_keys
            starts = (starts_BGM - first).clamp(0, num_keys)
            outputs.append(document_attention(q, k, v, starts, window=window))
        return torch.cat(outputs, dim=2)

    def _seen(
        self, k_BHND: Tensor, v_BHND: Tensor, chunk_len: int, reach: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each chunk and of what is before it, in the order of the sequence.

        All is cut and joined along the tokens, whole chunks where it can be. Backward then joins
        and cuts; what is selected by an index would be added to zeros of the whole each time.
        """
        # (N, B, H, D): what an exchange splits
        own = [x.movedim(2, 0).split(chunk_len) for x in (k_BHND, v_BHND)]
        owned = _owned(self.rank, self.ranks, self.balanced)
        pieces: list[list[tuple[int, Tensor, Tensor]]] = [
            [(chunk * chunk_len, k, v)] for chunk, k, v in zip(owned, *own, strict=True)
        ]

        def between(sender: int, receiver: int) -> list[Transfer]:
            return transfers(sender, receiver, self.ranks, self.balanced, chunk_len, reach)

        def piece(t: Transfer) -> tuple[Tensor, Tensor]:
            k, v = (chunks[t.source] for chunks in own)
            return (k, v) if t.tokens == chunk_len else (k[-t.tokens :], v[-t.tokens :])

        for t in between(self.rank, self.rank):
            pieces[t.chunk].append((t.first, *piece(t)))
        if reach:
            everyone = range(self.ranks)
            sent = [between(self.rank, r) if r != self.rank else [] for r in everyone]
            received = [between(r, self.rank) if r != self.rank else [] for r in everyone]
            outgoing = [x for of_rank in sent for t in of_rank for x in piece(t)]
            fetched = _Exchange.apply(
                torch.cat(outgoing or [own[0][0][:0]]),
                [2 * sum(t.tokens for t in of_rank) for of_rank in received],
                [2 * sum(t.tokens for t in of_rank) for of_rank in sent],
                self.group,
            )
            arrivals = [t for of_rank in received for t in of_rank]
            sizes = [t.tokens for t in arrivals for _ in "kv"]
            # A rank that is sent nothing must take part in the backward exchange all the same.
            nothing, *arrived = fetched.split([0, *sizes])
            pieces[-1].append((-1, nothing, nothing))
            for t, k, v in zip(arrivals, arrived[::2], arrived[1::2], strict=True):
                pieces[t.chunk].append((t.first, k, v))
        joined = []
        for of_chunk in pieces:
            _, keys, values = zip(*sorted(of_chunk, key=lambda item: item[0]), strict=True)
            joined.append((torch.cat(keys).movedim(0, 2), torch.cat(values).movedim(0, 2)))
        return joined
