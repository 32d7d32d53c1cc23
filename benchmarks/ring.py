"""What overlaps with attention in a ring of two GPUs: transfers alone, attention alone, both.

    torchrun --nproc_per_node=2 benchmarks/ring.py OUT.json

Sizes are those of one layer of 524,288 tokens at k=8,192 in two ranks: 49,152 rows of 8 heads of
128 each. Keys and values are gathered in bf16; their gradients are sent on in fp32. Times are those
of each rank, since a transfer ties the faster one to the slower.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.provenance import gpu

ROWS, HEADS, HEAD_DIM = 49152, 8, 128
RUNS, CALLS = 4, 8


def median_ms(call: Callable[[], Any]) -> list[float]:
    """Of each rank. Many calls at a time, so that the host is ahead of the GPU, as in training."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    dist.barrier()
    times = []
    for _ in range(RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / CALLS)
    median = torch.tensor([statistics.median(times)], device="cuda")
    medians = torch.empty(dist.get_world_size(), device="cuda")
    dist.all_gather_into_tensor(medians, median)
    return [round(value, 2) for value in medians.tolist()]


def main(out: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl")
    elements = 2 * ROWS * HEADS * HEAD_DIM
    keys_values = torch.randn(elements, device="cuda", dtype=torch.bfloat16)
    gathered = torch.empty(2 * elements, device="cuda", dtype=torch.bfloat16)
    gradients = torch.randn(elements, device="cuda")
    received = torch.empty_like(gradients)
    to_the_other = [elements, 0] if rank else [0, elements]
    q, k, v = (
        torch.randn(1, HEADS, ROWS, HEAD_DIM, device="cuda", dtype=torch.bfloat16) for _ in "qkv"
    )

    def gather(wait: bool = True) -> Any:
        return dist.all_gather_into_tensor(gathered, keys_values, async_op=not wait)

    def send(wait: bool = True) -> Any:
        return dist.all_to_all_single(
            received, gradients, to_the_other, to_the_other, async_op=not wait
        )

    def attend() -> Any:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def beside(transfer: Callable[[bool], Any], compute: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            work = transfer(False)
            compute()
            work.wait()

        return call

    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    output = F.scaled_dot_product_attention(*inputs, is_causal=True)
    output_gradient = torch.randn_like(output)

    def attend_backward() -> Any:
        return torch.autograd.grad(output, inputs, output_gradient, retain_graph=True)

    half = ROWS // 2
    milliseconds = {
        "gather keys and values": median_ms(gather),
        "send gradients": median_ms(send),
        "attend, causal": median_ms(attend),
        "attend, gathering beside it": median_ms(beside(gather, attend)),
        "attend backward": median_ms(attend_backward),
        "attend backward, gathering beside it": median_ms(beside(gather, attend_backward)),
        "attend backward, sending beside it": median_ms(beside(send, attend_backward)),
        "attend to half the keys": median_ms(
            lambda: F.scaled_dot_product_attention(q, k[:, :, :half], v[:, :, :half])
        ),
        "attend from half the queries": median_ms(
            lambda: F.scaled_dot_product_attention(q[:, :, half:], k, v)
        ),
    }
    if rank == 0:
        report = {
            **gpu(),
            "nccl_settings": {k: v for k, v in os.environ.items() if "NCCL_" in k},
            "gather_gb_per_s": round(
                elements * 2 / max(milliseconds["gather keys and values"]) / 1e6
            ),
            "send_gb_per_s": round(elements * 4 / max(milliseconds["send gradients"]) / 1e6),
            "milliseconds": milliseconds,
        }
        print(json.dumps(report, indent=1))
        out.write_text(json.dumps(report, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
