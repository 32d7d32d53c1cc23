"""The rivals that select keys, with naive forms that attend to the same ones by a mask."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks import flash_attn_shim
from benchmarks.rivals_check import Call, Layer, causal, drawn, masked, near


def mask_of_blocks(chosen: Tensor, block: int) -> Tensor:
    """(B, H, N, N) of (B, H, N, blocks), causal."""
    mask = chosen.repeat_interleave(block, -1)
    return mask & causal(mask.shape[-1], mask.device)


def by_heads(mask: Tensor, heads: int) -> Tensor:
    """Of key/value heads, (B, Hkv, ..), to those of queries."""
    return mask.repeat_interleave(heads // mask.shape[1], 1)


# NSA ----------------------------------------------------------------------------------------------


def nsa(q: Tensor, k: Tensor, v: Tensor) -> Layer:
    flash_attn_shim.install()
    from fla.ops.nsa import parallel_nsa

    def call(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return parallel_nsa(*heads_last, *gates, window_size=512).transpose(1, 2)

    gates = drawn(q, q.shape[1], 3).sigmoid().to(q.dtype).unbind(-1)
    gates = tuple(x.contiguous().requires_grad_() for x in gates)
    return Layer(call, lambda: naive_nsa(nsa_selection(q, k)), gates)


def nsa_selection(q: Tensor, k: Tensor, *, block: int = 64, count: int = 16) -> Tensor:
    """The blocks that the kernel selects, (B, Hkv, N, blocks), no worse than the naive choice.

    Raises:
        AssertionError: if they have less of the naive scores than rounding can explain.
    """
    from fla.ops.nsa.compression import parallel_nsa_compression
    from fla.ops.nsa.naive import naive_nsa_topk
    from fla.ops.nsa.parallel import parallel_nsa_topk
    from fla.ops.utils.pooling import mean_pooling

    q_BNHD, k_BNHD = (x.detach().transpose(1, 2).contiguous() for x in (q, k))
    n, scale = q.shape[2], q.shape[-1] ** -0.5
    means = mean_pooling(k_BNHD, block)
    common = {"TK": n, "block_size": block, "scale": scale}
    _, lse = parallel_nsa_compression(q=q_BNHD, k=means, v=means, **common)
    found = parallel_nsa_topk(q=q_BNHD, k=means, lse=lse, block_counts=count, **common)
    wanted = naive_nsa_topk(q_BNHD.float(), means.float(), count, block, scale)
    chosen = [
        F.one_hot(x.clamp(min=-1) + 1, n // block + 1)[..., 1:].amax(-2).bool().transpose(1, 2)
        for x in (found.long(), wanted)
    ]
    scores = torch.einsum("bhnd,bcgd->bhnc", q.float(), means.float()) * scale
    scores = scores.masked_fill(~seen_blocks(n, block, q.device), -torch.inf)
    scores = scores.softmax(-1).nan_to_num(0).unflatten(1, (k.shape[1], -1)).mean(2)
    got, best = ((scores * x).sum() for x in chosen)
    # Scores are off by a rounding's share at most, and so is a sum of those that look largest.
    if not got >= best * (1 - 2 * 2**-8):
        raise AssertionError(f"selected blocks have {got / best:.4f} of the best ones' scores")
    return chosen[0]


def seen_blocks(n: int, block: int, device: Any) -> Tensor:
    """(N, blocks), true where a block has ended."""
    ends = torch.arange(block, n + 1, block, device=device)
    return ends <= torch.arange(1, n + 1, device=device)[:, None]


def naive_nsa(chosen: Tensor, *, block: int = 64, window: int = 512) -> Call:
    """Three attentions: to the blocks' means, inside the chosen blocks, in a window."""

    def call(q: Tensor, k: Tensor, v: Tensor, *gates_BNH: Tensor) -> Tensor:
        n = q.shape[2]
        means = (x.unflatten(2, (-1, block)).mean(3) for x in (k, v))
        parts = [
            masked(seen_blocks(n, block, q.device))(q, *means),
            masked(by_heads(mask_of_blocks(chosen, block), q.shape[1]))(q, k, v),
            masked(near(n, window, q.device))(q, k, v),
        ]
        gates = (x.transpose(1, 2)[..., None] for x in gates_BNH)
        return sum(gate * part for gate, part in zip(gates, parts, strict=True))

    return call


# MoBA ---------------------------------------------------------------------------------------------


def moba(q: Tensor, k: Tensor, v: Tensor, *, block: int, count: int) -> Layer:
    flash_attn_shim.install()
    from fla.ops.moba import parallel_moba

    n = q.shape[2]
    ends = torch.tensor([0, n], dtype=torch.int32, device=q.device)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return parallel_moba(*heads_last, ends, n, block, count).transpose(1, 2)

    return Layer(call, lambda: masked(moba_mask(q, k, block=block, count=count)))


def moba_mask(q: Tensor, k: Tensor, *, block: int, count: int) -> Tensor:
    """Its own block, and of those before it the ``count - 1`` whose mean key fits best."""
    means = k.detach().unflatten(2, (-1, block)).mean(3).float()
    scores = q.detach().float() @ means.mT
    own = torch.arange(q.shape[2], device=q.device)[:, None] // block
    blocks = torch.arange(scores.shape[-1], device=q.device)
    past = blocks < own
    scores = scores.masked_fill(~past, -torch.inf)
    best = scores.topk(min(count - 1, scores.shape[-1]), -1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) & past
    chosen |= blocks == own
    return mask_of_blocks(chosen, block)


# InfLLM-v2 ----------------------------------------------------------------------------------------


@cache
def flex() -> Any:
    """Compiled once for all lengths."""
    return torch.compile(flex_attention, dynamic=True)


def infllm(
    q: Tensor, k: Tensor, v: Tensor, *, block: int = 128, selected: int = 32, local: int = 16
) -> Layer:
    settings = {"block": block, "selected": selected, "local": local}

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            chosen = infllm_blocks(q, k, **settings)
            mask = block_mask(*chosen, block)
        return flex()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    def naive() -> Call:
        index, number = infllm_blocks(q.detach(), k.detach(), **settings)
        blocks = torch.arange(index.shape[-1], device=q.device)
        chosen = torch.zeros_like(index, dtype=torch.bool)
        chosen.scatter_(-1, index.long(), blocks < number[..., None])
        chosen |= torch.eye(len(blocks), dtype=torch.bool, device=q.device)
        mask = mask_of_blocks(chosen.repeat_interleave(block, 2), block)
        return masked(by_heads(mask, q.shape[1]))

    return Layer(call, naive)


def infllm_blocks(
    q: Tensor, k: Tensor, *, block: int, selected: int, local: int
) -> tuple[Tensor, Tensor]:
    """Past blocks of keys that each block of queries reads: (B, Hkv, blocks, blocks) and how many.

    The first one, the ``local`` last ones, and those whose mean key fits the mean query of the
    group's heads best. The indices that count come first.
    """
    queries, keys = (x.unflatten(2, (-1, block)).mean(3, dtype=torch.float32) for x in (q, k))
    scores = queries.unflatten(1, (k.shape[1], -1)).mean(2) @ keys.mT
    row = torch.arange(scores.shape[-1], device=q.device)
    behind = row[:, None] - row
    scores = scores.masked_fill((row == 0) | (behind < local), torch.inf)
    scores = scores.masked_fill(behind <= 0, -torch.inf)
    most = min(selected + local, len(row))
    index = F.pad(scores.topk(most, -1).indices.int(), (0, len(row) - most))
    number = row.clamp(max=most).int().expand(index.shape[:-1])
    return index, number.contiguous()


def block_mask(index: Tensor, number: Tensor, block: int) -> BlockMask:
    """Those blocks whole, and the diagonal ones below the diagonal."""
    blocks = index.shape[-1]
    row = torch.arange(blocks, device=index.device, dtype=torch.int32)
    diagonal = (row[:, None] + row) % blocks  # itself first: the others don't count
    diagonal = diagonal.expand(index.shape).contiguous()
    return BlockMask.from_kv_blocks(
        torch.ones_like(number), diagonal, number, index, BLOCK_SIZE=block, mask_mod=at_or_before
    )


def at_or_before(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


# DSA ----------------------------------------------------------------------------------------------


def dsa(q: Tensor, k: Tensor, v: Tensor, *, topk: int, indexers: int = 64) -> Layer:
    """The indexer learns from a loss of its own, so its inputs get no gradient here."""
    from fla.ops.dsa import naive_dsa
    from fla.ops.dsa.naive import naive_dsa_indexer

    # 128 numbers of each token for each indexing head; one key for all of them.
    drawn_BNHD = drawn(q, indexers + 2, q.shape[3]).to(q.dtype)
    indexer = (drawn_BNHD[:, :, 2:], drawn_BNHD[:, :, 0], drawn_BNHD[:, :, 1, :indexers])

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_last = (x.transpose(1, 2) for x in (q, k, v))
        return naive_dsa(*heads_last, *indexer, topk=topk).transpose(1, 2)

    def naive() -> Call:
        index = naive_dsa_indexer(*indexer, topk, activation="relu")
        n = q.shape[2]
        chosen = torch.zeros(q.shape[0], n, n + 1, dtype=torch.bool, device=q.device)
        chosen = chosen.scatter_(-1, index + 1, True)[..., 1:]  # -1 where there is no key
        return masked((chosen & causal(n, q.device))[:, None])

    return Layer(call, naive)
