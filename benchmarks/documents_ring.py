"""Documents across two GPUs or more: each rank's share of one layer, by two ways to mask.

    torchrun --nproc_per_node=2 -m benchmarks.documents_ring OUT.json [--seq-len 98304]

Ours fetches all tokens before each of a rank's chunks and attends by the kernel for sequences of
many lengths. The other gathers all keys and values and attends by FlexAttention with a mask of
documents. Beside them torch's ring without documents, and a Lighthouse layer with and without them.
Documents are those of ``benchmarks.documents``. Medians of forward, and of forward + backward, in
milliseconds of the slower rank; calls follow each other without waiting for the host. Beside them
what the kernels of the first rank take in forward + backward, all together and the longest, and
for how long forward keeps its host: a call that waits for the GPU is as long as what it waits for.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torchtitan.distributed.context_parallel import apply_cp_to_attention_module
from torchtitan.models.attention import ScaledDotProductAttentionWrapper

from benchmarks.documents import draw_starts, tensor_of
from benchmarks.provenance import gpu
from benchmarks.ring import median_ms
from lighthouse import LighthouseAttention, LighthouseConfig
from lighthouse.documents import places_for
from lighthouse.titan.distributed.exchange import SharedSequence, share_sequences

Call = Callable[[Tensor, Tensor, Tensor], Tensor]

HEADS, HEAD_DIM = 8, 128


class GatheredFlex:
    """All keys and values on each rank, in the order of ranks; FlexAttention sees their places."""

    def __init__(self, mesh: DeviceMesh, starts_BM: Tensor, seq_len: int) -> None:
        self._group = mesh.get_group()
        self._attention = torch.compile(flex_attention, dynamic=False)
        ranks, chunk_len = mesh.size(), seq_len // mesh.size() // 2
        chunk = torch.arange(chunk_len, device=starts_BM.device)
        owned = [
            [c * chunk_len + chunk for c in (rank, 2 * ranks - 1 - rank)] for rank in range(ranks)
        ]
        self._key_place = torch.cat([x for of_rank in owned for x in of_rank])
        self._query_place = torch.cat(owned[mesh.get_local_rank()])
        places = torch.arange(seq_len, device=starts_BM.device, dtype=starts_BM.dtype)
        nth = torch.searchsorted(starts_BM[0].contiguous(), places, right=True) - 1
        self._first = starts_BM[0][nth]

    def mask(self) -> BlockMask:
        query_place, key_place, first = self._query_place, self._key_place, self._first

        def seen(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            query, key = query_place[q], key_place[k]
            return (key <= query) & (first[query] <= key)

        sizes = (None, None, len(query_place), len(key_place))
        return create_block_mask(seen, *sizes, device=first.device, _compile=first.is_cuda)

    def attend(self, mask: BlockMask) -> Call:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys_values = torch.stack([k, v]).movedim(3, 0).contiguous()
            gathered = all_gather_tensor_autograd(keys_values, 0, self._group)
            if gathered.requires_grad:  # NCCL reduces and scatters what is contiguous alone
                gathered.register_hook(Tensor.contiguous)
            k, v = gathered.movedim(0, 3).contiguous().unbind()
            return self._attention(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

        return call


def calls(
    mesh: DeviceMesh, starts: Tensor, config: LighthouseConfig, seq_len: int
) -> dict[str, Any]:
    """What is measured, by name."""
    inner = ScaledDotProductAttentionWrapper()
    apply_cp_to_attention_module([inner], mesh, "sdpa")
    layer = LighthouseAttention(config.local(mesh.size()), inner)
    balanced = SimpleNamespace(context_parallel_load_balancer="headtail")
    dims = SimpleNamespace(get_optional_mesh=lambda _: mesh)
    share_sequences([layer], SimpleNamespace(parallelism=balanced), dims)
    shared = layer.documents
    assert isinstance(shared, SharedSequence)
    flex = GatheredFlex(mesh, starts, seq_len)
    return {
        "dense, torch's ring": lambda q, k, v: inner(q, k, v, enable_gqa=q.shape[1] != k.shape[1]),
        "dense, documents": lambda q, k, v: shared.attend(q, k, v, starts),
        "dense, documents, by FlexAttention": flex.attend(flex.mask()),
        "Lighthouse": lambda q, k, v: layer(q, k, v, enable_gqa=True),
        "Lighthouse, documents": lambda q, k, v: layer(
            q, k, v, enable_gqa=True, document_starts=starts
        ),
    }


def both(call: Call, inputs: list[Tensor], grad: Tensor) -> list[float]:
    def forward_backward() -> None:
        torch.autograd.grad(call(*inputs), inputs, grad)

    return [max(median_ms(run)) for run in (lambda: call(*inputs), forward_backward)]


def host_ms(call: Call, inputs: list[Tensor]) -> float:
    """Until forward returns, on a GPU that has nothing else to do."""
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call(*inputs)
        times.append(time.perf_counter() - begin)
    return round(1e3 * statistics.median(times), 2)


def kernels(call: Call, inputs: list[Tensor], grad: Tensor) -> dict[str, float]:
    """Milliseconds of one forward + backward by kernel, the longest eight, and of all."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.autograd.grad(call(*inputs), inputs, grad)
        torch.cuda.synchronize()
    ms = {event.key[:80]: event.self_device_time_total / 1e3 for event in profile.key_averages()}
    longest = sorted(ms, key=lambda name: -ms[name])[:8]
    return {"all": sum(ms.values())} | {name: ms[name] for name in longest}


def difference(one: Call, other: Call, inputs: list[Tensor], grad: Tensor) -> float:
    """Largest norm of a difference of outputs or gradients, over that of the first's."""
    found = [
        (out, *torch.autograd.grad(out, inputs, grad)) for out in (f(*inputs) for f in (one, other))
    ]
    pairs = zip(*found, strict=True)
    return max(float((a.float() - b.float()).norm() / a.float().norm()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seq-len", type=int, default=98304)
    parser.add_argument("--mean", type=int, default=4096)
    parser.add_argument("--topk", type=int, default=1536)
    parser.add_argument("--seed", type=int, default=4)
    options = parser.parse_args()
    rank, seq_len = int(os.environ["LOCAL_RANK"]), options.seq_len
    torch.cuda.set_device(rank)
    mesh = init_device_mesh("cuda", (int(os.environ["WORLD_SIZE"]),), mesh_dim_names=("cp",))
    config = LighthouseConfig(topk=options.topk, num_chunks=2 * mesh.size())
    drawn = draw_starts(seq_len, options.mean, config.coarsest_width, options.seed)
    starts = tensor_of(drawn, seq_len, places_for(len(drawn), seq_len // 256))
    lengths = np.diff([*drawn, seq_len])
    report: dict[str, Any] = {
        **gpu(),
        "ranks": mesh.size(),
        "statistic": "median ms of the slower rank, eager, [forward, both]",
        "seq_len": seq_len,
        "config": str(config),
        "documents": len(drawn),
        "longest": int(lengths.max()),
        "share_of_pairs": float((lengths * (lengths + 1)).sum() / (seq_len * (seq_len + 1))),
        "rows": [],
    }
    for kv_heads in (8, 2):
        torch.manual_seed(rank)
        inputs = [
            torch.randn(
                1, seq_len // mesh.size(), heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16
            )
            .transpose(1, 2)
            .requires_grad_()
            for heads in (HEADS, kv_heads, kv_heads)
        ]
        grad = torch.randn_like(inputs[0])
        measured = calls(mesh, starts, config, seq_len)
        for what, call in measured.items():
            row = {"what": what, "kv_heads": kv_heads, "ms": both(call, inputs, grad)}
            row["host_ms"] = host_ms(call, inputs)
            row["kernels_ms"] = kernels(call, inputs, grad)
            if what.endswith("FlexAttention"):
                row["difference"] = difference(measured["dense, documents"], call, inputs, grad)
            report["rows"].append(row)
            if rank == 0:
                print(json.dumps(row), flush=True)
                options.out.write_text(json.dumps(report, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
