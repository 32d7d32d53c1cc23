"""Started by torchrun: each rank compares its share of the layers with the whole of them.

    torchrun --nproc_per_node=W -m tests.support.ring [cpu|cuda]

The whole is computed on every rank, on one device, with the same number of chunks. Selections must
be equal; outputs and gradients may be off by no more than a few times what the whole computation
is off from float64 on the same inputs.
"""

import itertools
import os
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

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
from lighthouse.scorers import level0_scores, level1_maxima
from lighthouse.titan.distributed.window_exchange import exchange_windows

BATCH, SEQ_LEN, HEAD_DIM = 2, 512, 16
HEADS = {"one key/value head each": (2, 2), "grouped": (4, 2)}
BALANCERS = {"headtail": 2, None: 1}
"""Chunks that a rank owns."""


def main(device_type: str) -> None:
    world = int(os.environ["WORLD_SIZE"])
    device = torch.device(device_type, int(os.environ["LOCAL_RANK"]) if device_type != "cpu" else 0)
    if device_type != "cpu":
        torch.cuda.set_device(device)
    # bf16 where flash attention asks for it.
    dtype = torch.float32 if device_type == "cpu" else torch.bfloat16
    scale = 1 if device_type == "cpu" else 8
    mesh = init_device_mesh(device_type, (world,), mesh_dim_names=("cp",))
    count = 0
    for scorer, heads, balancer, extra in itertools.product(
        ("norm", "dilated", "gla"), HEADS, BALANCERS, (1, 2)
    ):
        chunks = world * BALANCERS[balancer] * extra
        config = LighthouseConfig(
            num_levels=3,
            pooling_factor=2,
            topk=4 * scale * chunks,
            stratum=2 * scale,
            scorer=scorer,
            num_chunks=chunks,
        )
        compare(config, heads, balancer, mesh, device, dtype, SEQ_LEN * scale)
        count += 1
    for heads, balancer, window in itertools.product(HEADS, BALANCERS, (1, 24, 300, 10**6)):
        chunks = world * BALANCERS[balancer]
        mixed = LighthouseConfig(
            num_levels=3,
            pooling_factor=2,
            topk=4 * scale * chunks,
            stratum=2 * scale,
            num_chunks=chunks,
            window=window,
            window_heads=1,
        )
        for layer in (WindowConfig(window), mixed):
            compare(layer, heads, balancer, mesh, device, dtype, SEQ_LEN * scale)
            count += 1
    if dist.get_rank() == 0:
        print(f"{count} cases agree on {world} ranks", flush=True)
    dist.destroy_process_group()


def compare(config, heads, balancer, mesh, device, dtype, seq_len) -> None:
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

    is_window = isinstance(config, WindowConfig)
    local = config if is_window else config.local(mesh.size())
    inner = ScaledDotProductAttentionWrapper()
    apply_cp_to_attention_module([inner], mesh, "sdpa")
    layer = LighthouseAttention(local, inner)
    balanced = SimpleNamespace(context_parallel_load_balancer=balancer)
    dims = SimpleNamespace(get_optional_mesh=lambda _: mesh)
    exchange_windows([layer], SimpleNamespace(parallelism=balanced), dims)

    def ring(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return layer(q, k, v, enable_gqa=query_heads != kv_heads)

    shares = share(inputs)
    if config.window is None:
        check_selection(config, local, inputs, shares, balancer, mesh)
    ours = with_gradients(ring, shares, *share([grad_out]))

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if is_window:
            return window_attention(q, k, v, window=config.window)
        return lighthouse_attention(q, k, v, config=config)

    rounded = share(with_gradients(whole, inputs, grad_out))
    # The selection of the rounded inputs, so that float64 attends to the same entries.
    exact = share(exact_with_gradients(config, inputs, grad_out))
    what = f"{config}, {heads}, {balancer}"
    for name, x, y, truth in zip(("output", "dq", "dk", "dv"), ours, rounded, exact, strict=True):
        error, allowed = (x - truth).abs().max(), (y - truth).abs().max()
        slack = torch.finfo(dtype).eps * truth.abs().max()
        assert error <= 4 * allowed + slack, (what, name, error.item(), allowed.item())


def with_gradients(call, inputs: list[Tensor], grad_out: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = call(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad_out)]


def exact_with_gradients(config, inputs: list[Tensor], grad_out: Tensor) -> list[Tensor]:
    """In float64, with the selection made by the inputs as they are."""
    from lighthouse.ops import reference

    if isinstance(config, WindowConfig):
        window = partial(reference.window_attention, window=config.window)
        return with_gradients(window, [x.double() for x in inputs], grad_out.double())
    if config.window_heads:
        heads = config.is_windowed(inputs[1].shape[1])
        group = inputs[0].shape[1] // len(heads)
        of_heads: list[list[Tensor]] = []
        for h, windowed in enumerate(heads):
            one = WindowConfig(config.window) if windowed else replace(config, window_heads=0)
            places = (slice(h * group, (h + 1) * group), slice(h, h + 1), slice(h, h + 1))
            own = [x[:, place] for x, place in zip(inputs, places, strict=True)]
            of_heads.append(exact_with_gradients(one, own, grad_out[:, places[0]]))
        return [torch.cat(parts, 1) for parts in zip(*of_heads, strict=True)]
    scores = level0_scores(*inputs, config)
    selection = reference.select(*(level1_maxima(x, config) for x in scores), config)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        coarsest = [reference.summarize(x, config, scored=False)[0] for x in (q, k, v)]
        rows = [
            reference.gather(x, c, selection, config)
            for x, c in zip((q, k, v), coarsest, strict=True)
        ]
        out = torch.nn.functional.scaled_dot_product_attention(
            *rows, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        return reference.scatter(out, selection, q, config)

    return with_gradients(call, [x.double() for x in inputs], grad_out.double())


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
    main(*sys.argv[1:] or ["cpu"])
