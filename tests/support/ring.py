"""Started by torchrun: each rank compares its share of the layers with the whole of them.

    torchrun --nproc_per_node=W -m tests.support.ring cpu|cuda [PART ...]

PARTs are selection, windows and documents; without, all of them.

The whole is computed on every rank, on one device, with the same number of chunks. Selections must
be equal; outputs and gradients may be off by no more than a few times what the whole computation
is off from float64 on the same inputs. With documents, which no ring attends in, all is in float64
on CPUs, and may be off by what sums in another order are.
"""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torchtitan.distributed.context_parallel import apply_cp_to_attention_module, cp_shard
from torchtitan.models.attention import ScaledDotProductAttentionWrapper

from lighthouse import (
    LighthouseAttention,
    LighthouseConfig,
    WindowConfig,
    lighthouse_attention,
    select,
    window_attention,
)
from lighthouse.documents import document_attention, first_tokens, row_starts
from lighthouse.scorers import level0_scores, level1_maxima
from lighthouse.titan.distributed.exchange import share_sequences
from lighthouse.titan.llama3.layers import DenseInDocuments

BATCH, SEQ_LEN, HEAD_DIM = 2, 512, 16
HEADS = {"one key/value head each": (2, 2), "grouped": (4, 2)}
BALANCERS = {"headtail": 2, None: 1}
"""Chunks that a rank owns."""
Cases = Iterator[tuple[Any, str, str | None, list[list[int]] | None]]
"""A layer, its heads, a balancer, and where the documents of each sequence begin."""
DOCUMENTS = [[0, 1, 2, 64, 65, 203, 511], [0, 509]]
ALIGNED_DOCUMENTS = [[0, 4, 8, 64, 68, 200, 508], [0, 504]]
"""Of one token or entry, of more tokens than a rank has, and from where a chunk begins."""


def selecting(chunks: int, scale: int, **more: Any) -> LighthouseConfig:
    """As much of each chunk as of another."""
    return LighthouseConfig(
        num_levels=3,
        pooling_factor=2,
        topk=4 * scale * chunks,
        stratum=2 * scale,
        num_chunks=chunks,
        **more,
    )


def with_heads(*choices: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """All that can be chosen together, each with heads of one kind: every two of anything meet."""
    kinds = list(HEADS)
    for places in itertools.product(*(range(len(choice)) for choice in choices)):
        chosen = (choice[place] for choice, place in zip(choices, places, strict=True))
        yield kinds[sum(places) % len(kinds)], *chosen


def selections(world: int, scale: int) -> Cases:
    scorers = "norm", "dilated", "gla"
    for heads, scorer, balancer, extra in with_heads(scorers, [*BALANCERS], (1, 2)):
        chunks = world * BALANCERS[balancer] * extra
        yield selecting(chunks, scale, scorer=scorer), heads, balancer, None


def windows(world: int, scale: int) -> Cases:
    for heads, balancer, window in with_heads([*BALANCERS], (1, 24, 300, 10**6)):
        yield WindowConfig(window), heads, balancer, None


def documents(world: int, scale: int) -> Cases:
    for heads, balancer, window in with_heads([*BALANCERS], (None, 1, 24, 300)):
        yield window and WindowConfig(window), heads, balancer, DOCUMENTS
    for heads, balancer, kind in with_heads([*BALANCERS], ("causal", "published")):
        chunks = world * BALANCERS[balancer] * (1 if kind == "causal" else 2)
        yield selecting(chunks, scale, selection=kind), heads, balancer, ALIGNED_DOCUMENTS


PARTS = {"selection": selections, "windows": windows, "documents": documents}


def main(device_type: str, *parts: str) -> None:
    world = int(os.environ["WORLD_SIZE"])
    device = torch.device(device_type, int(os.environ["LOCAL_RANK"]) if device_type != "cpu" else 0)
    if device_type != "cpu":
        torch.cuda.set_device(device)
    # bf16 where flash attention asks for it.
    low = torch.float32 if device_type == "cpu" else torch.bfloat16
    scale = 1 if device_type == "cpu" else 8
    mesh = init_device_mesh(device_type, (world,), mesh_dim_names=("cp",))
    compared: Counter[str] = Counter()
    for part, (layer, heads, balancer, lengths) in (
        (name, case) for name in parts or PARTS for case in PARTS[name](world, scale)
    ):
        starts, dtype = None, low
        if lengths is not None:
            most = max(map(len, lengths)) + 1
            starts = torch.tensor(
                [[scale * x for x in row + [SEQ_LEN] * (most - len(row))] for row in lengths],
                dtype=torch.int32,
                device=device,
            )
            dtype = torch.float64 if device_type == "cpu" else low
        compare(layer, heads, balancer, mesh, device, dtype, SEQ_LEN * scale, starts)
        compared[part] += 1
    if dist.get_rank() == 0:
        for part, count in compared.items():
            print(f"{part}: {count} cases agree on {world} ranks", flush=True)
    dist.destroy_process_group()


def compare(config, heads, balancer, mesh, device, dtype, seq_len, starts=None) -> None:
    query_heads, kv_heads = HEADS[heads]
    generator = torch.Generator().manual_seed(len(heads))

    def draw(count: int) -> Tensor:
        x = torch.randn(BATCH, count, seq_len, HEAD_DIM, generator=generator)
        return x.to(device, dtype)

    inputs = [draw(query_heads), draw(kv_heads), draw(kv_heads)]
    grad_out = draw(query_heads)

    def share(tensors: list[Tensor]) -> list[Tensor]:
        whole = tuple(x.detach().clone() for x in tensors)
        return list(cp_shard(mesh, whole, None, balancer, input_seq_dim=2)[0])

    local = config.local(mesh.size()) if isinstance(config, LighthouseConfig) else config
    inner = ScaledDotProductAttentionWrapper()
    apply_cp_to_attention_module([inner], mesh, "sdpa")
    layer = DenseInDocuments(inner) if local is None else LighthouseAttention(local, inner)
    balanced = SimpleNamespace(context_parallel_load_balancer=balancer)
    dims = SimpleNamespace(get_optional_mesh=lambda _: mesh)
    share_sequences([layer], SimpleNamespace(parallelism=balanced), dims)

    def ring(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return layer(q, k, v, enable_gqa=query_heads != kv_heads, document_starts=starts)

    shares = share(inputs)
    if starts is None and isinstance(config, LighthouseConfig):
        check_selection(config, local, inputs, shares, balancer, mesh)
    ours = with_gradients(ring, shares, *share([grad_out]))

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if isinstance(config, LighthouseConfig):
            return lighthouse_attention(q, k, v, config=config, document_starts=starts)
        window = config and config.window
        if starts is not None:
            return document_attention(q, k, v, starts[:, None], window=window)
        return window_attention(q, k, v, window=window)

    rounded = share(with_gradients(whole, inputs, grad_out))
    # The selection of the rounded inputs, so that float64 attends to the same entries.
    exact = share(exact_with_gradients(config, inputs, grad_out, starts))
    what = f"{config}, {heads}, {balancer}, {starts}"
    terms = seq_len if dtype == torch.float64 else 1
    for name, x, y, truth in zip(("output", "dq", "dk", "dv"), ours, rounded, exact, strict=True):
        error, allowed = (x - truth).abs().max(), (y - truth).abs().max()
        slack = terms * torch.finfo(dtype).eps * truth.abs().max()
        assert error <= 4 * allowed + slack, (what, name, error.item(), allowed.item())


def with_gradients(call, inputs: list[Tensor], grad_out: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = call(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad_out)]


def exact_with_gradients(config, inputs: list[Tensor], grad_out: Tensor, starts) -> list[Tensor]:
    """In float64, with the selection made by the inputs as they are."""
    from lighthouse.ops import reference

    if not isinstance(config, LighthouseConfig):
        window = partial(in_documents, starts=starts, window=config and config.window)
        return with_gradients(window, [x.double() for x in inputs], grad_out.double())
    scores = level0_scores(*inputs, config)
    seq_len = inputs[0].shape[2]
    first = None if starts is None else first_tokens(starts, seq_len, config)
    selection = reference.select(*(level1_maxima(x, config) for x in scores), config, first)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        coarsest, _ = reference.summarize((q, k, v), config, scored=False)
        rows = reference.gather((q, k, v), coarsest, selection, config)
        if starts is None:
            out = torch.nn.functional.scaled_dot_product_attention(
                *rows, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
            )
        else:
            out = document_attention(*rows, row_starts(selection, starts, seq_len, config))
        return reference.scatter(out, selection, q, config)

    return with_gradients(call, [x.double() for x in inputs], grad_out.double())


def in_documents(q: Tensor, k: Tensor, v: Tensor, starts, window: int | None) -> Tensor:
    """The reference of each document alone, or of the sequence."""
    from lighthouse.ops import reference

    seq_len = q.shape[2]
    window = window or seq_len
    if starts is None:
        return reference.window_attention(q, k, v, window)
    rows = []
    for row, bounds in enumerate(starts.tolist()):
        of_documents = [
            reference.window_attention(*(x[row : row + 1, :, a:b] for x in (q, k, v)), window)
            for a, b in itertools.pairwise([*bounds, seq_len])
            if b > a
        ]
        rows.append(torch.cat(of_documents, 2))
    return torch.cat(rows)


def check_selection(config, local, inputs, shares, balancer, mesh) -> None:
    """A rank selects in its chunks what a single device selects there."""
    whole = select(*level0_scores(*inputs, config), config=config).index
    ours = select(*level0_scores(*shares, local), config=local).index
    rank, world = mesh.get_local_rank(), mesh.size()
    owned = (rank, 2 * world - 1 - rank) if balancer else (rank,)
    whole_chunks = spans(whole, config, inputs[0].shape[2]).unflatten(2, (config.num_chunks, -1))
    of_piece = config.num_chunks // (world * len(owned))
    chunks = [piece * of_piece + i for piece in owned for i in range(of_piece)]
    expected = whole_chunks[:, :, chunks]
    got = spans(ours, local, shares[0].shape[2]).unflatten(2, (local.num_chunks, -1))
    chunk_len = inputs[0].shape[2] // config.num_chunks
    for place, chunk in enumerate(chunks):
        shift = torch.tensor([(chunk - place) * chunk_len, 0], device=ours.device)
        assert torch.equal(got[:, :, place] + shift, expected[:, :, place])


def spans(index: Tensor, config: LighthouseConfig, seq_len: int) -> Tensor:
    """First token and width of each flat entry: (B, H, S, 2)."""
    widths = [config.pooling_factor**level for level in range(config.num_levels)]
    table = torch.cat(
        [
            torch.stack((torch.arange(0, seq_len, w), torch.full((seq_len // w,), w)), dim=-1)
            for w in widths
        ]
    )
    return table.to(index.device)[index.long()]


if __name__ == "__main__":
    main(*sys.argv[1:])
