"""Attention across context-parallel ranks where torch's ring has no mask: in windows and documents.

A rank owns one chunk of the sequence, or two with head-tail balancing: r and 2W - 1 - r of 2W. In
front of each it needs the keys and values of the ``window - 1`` tokens before it. They are of the
chunk before, which a neighbour owns, or of several if the window is longer than a chunk. One
exchange fetches those of all chunks, and nothing else; backward returns their gradients to where
the tokens are.

A document may be as long as the sequence, and where documents begin the host does not know. So in
documents without a window a rank fetches all tokens before each chunk: 2W - 1 chunks, as many as
there are of others and one of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce, all_to_all_single_autograd

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
    """Tokens that one rank sends another.

    Attributes:
        first: by its place in the sequence.
        start: the same by its place in the sender's tokens.
        tokens: how many.
        chunk: which of the receiver's they come before, 0 or 1.
    """

    first: int
    start: int
    tokens: int
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
                start = first + (own_place - owned) * chunk_len
                found.append(Transfer(first, start, tokens, place))
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
def _exchange(x: Tensor, received: list[int], sent: list[int], group: Any) -> Tensor:
    """``all_to_all_single_autograd`` as one node of Dynamo's graph.

    In torch 2.11 it ends with a function of autograd: checkpoints would keep what was fetched,
    as lighthouse.ops.triton.gather_scatter says.
    """
    return all_to_all_single_autograd(x, received, sent, group)


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
        starts_BKM = all_reduce(sum(before[1:], before[0]), "sum", self.group)
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
        fronts = self._fetch(k_BHND, v_BHND, chunk_len, reach)
        outputs = []
        for chunk, q, k, v, (k_front, v_front) in zip(
            owned,
            *(x.chunk(len(owned), dim=2) for x in (q_BHND, k_BHND, v_BHND)),
            fronts,
            strict=True,
        ):
            seen = q, torch.cat((*k_front, k), dim=2), torch.cat((*v_front, v), dim=2)
            if starts_BGM is None:
                assert window is not None
                outputs.append(window_attention(*seen, window=window))
                continue
            num_keys = seen[1].shape[2]
            first = (chunk + 1) * chunk_len - num_keys
            starts = (starts_BGM - first).clamp(0, num_keys)
            outputs.append(document_attention(*seen, starts, window=window))
        return torch.cat(outputs, dim=2)

    def _fetch(
        self, k_BHND: Tensor, v_BHND: Tensor, chunk_len: int, reach: int
    ) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Keys and values before each chunk, in the order of the sequence."""

        def between(sender: int, receiver: int) -> list[Transfer]:
            return transfers(sender, receiver, self.ranks, self.balanced, chunk_len, reach)

        fronts: list[tuple[list[Tensor], list[Tensor]]]
        fronts = [([], []) for _ in _owned(self.rank, self.ranks, self.balanced)]
        if not reach:
            return fronts
        everyone = range(self.ranks)
        sent = [between(self.rank, other) for other in everyone]
        received = [between(other, self.rank) for other in everyone]
        pieces = [slice(t.start, t.start + t.tokens) for of_rank in sent for t in of_rank]
        # (2, B, H, tokens, D), then tokens first: what an exchange splits
        both = torch.stack(
            [torch.cat([x[:, :, p] for p in (slice(0, 0), *pieces)], 2) for x in (k_BHND, v_BHND)]
        )
        fetched = _exchange(
            both.movedim(3, 0).contiguous(),
            [sum(t.tokens for t in of_rank) for of_rank in received],
            [sum(t.tokens for t in of_rank) for of_rank in sent],
            self.group,
        )
        arrived = fetched.movedim(0, 3)
        of_chunks: list[list[tuple[int, Tensor]]] = [[] for _ in fronts]
        place = 0
        for of_rank in received:
            for t in of_rank:
                of_chunks[t.chunk].append((t.first, arrived[:, :, :, place : place + t.tokens]))
                place += t.tokens
        for (k_front, v_front), pieces_of_chunk in zip(fronts, of_chunks, strict=True):
            # A rank that is sent nothing must take part in the backward exchange all the same.
            k_front.append(arrived[0, :, :, :0])
            for _, piece in sorted(pieces_of_chunk, key=lambda item: item[0]):
                k_front.append(piece[0])
                v_front.append(piece[1])
        return fronts
