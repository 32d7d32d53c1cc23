"""Attention in a window across context-parallel ranks: the keys and values before each chunk.

A rank owns one chunk of the sequence, or two with head-tail balancing: r and 2W - 1 - r of 2W. In
front of each it needs the ``window - 1`` tokens before it. They are of the chunk before, which a
neighbour owns, or of several if the window is longer than a chunk. One exchange fetches those of
all chunks, and nothing else; backward returns their gradients to where the tokens are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

from lighthouse.titan.llama3.layers import wrapped_modules
from lighthouse.window import window_attention

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def exchange_windows(
    model_parts: Iterable[nn.Module], job_config: "JobConfig", parallel_dims: Any
) -> None:
    """Let windows reach over ranks, where context parallelism has shared the sequence out.

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
    for module in wrapped_modules(model_parts):
        group = mesh.get_group()
        module.windowed = ExchangedWindow(
            group.group_name, mesh.get_local_rank(), mesh.size(), balanced
        )


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


def _owned(rank: int, ranks: int, balanced: bool) -> tuple[int, ...]:
    return (rank, 2 * ranks - 1 - rank) if balanced else (rank,)


@dataclass(frozen=True)
class ExchangedWindow:
    """:func:`lighthouse.window.window_attention` of one rank's share of the tokens; a collective.

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
        chunks = len(_owned(self.rank, self.ranks, self.balanced))
        fronts = self._fetch(k_BHND, v_BHND, q_BHND.shape[2] // chunks, window - 1)
        outputs = [
            window_attention(
                q, torch.cat((*k_front, k), dim=2), torch.cat((*v_front, v), dim=2), window=window
            )
            for q, k, v, (k_front, v_front) in zip(
                *(x.chunk(chunks, dim=2) for x in (q_BHND, k_BHND, v_BHND)), fronts, strict=True
            )
        ]
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
        fetched = all_to_all_single_autograd(
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
