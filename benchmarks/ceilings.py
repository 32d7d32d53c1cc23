"""What a GPU does at most, which floors are made of."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def matmul_rate(busy_seconds: float = 0.0) -> float:
    """TFLOP/s of a large bf16 product, the ceiling of the model's.

    Args:
        busy_seconds: of such products before; a GPU that reaches its power lowers its clock.
    """
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    end = time.monotonic() + busy_seconds
    while time.monotonic() < end:
        torch.mm(a, a)
        torch.cuda.synchronize()
    return 2 * 8192**3 / _median_ms(lambda: a @ a) / 1e9


def copy_rate() -> float:
    """TB/s that are read and written by a kernel, which is faster than the copy engine."""
    x = torch.randn(2**29, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return 2 * x.nbytes / _median_ms(lambda: torch.neg(x, out=y)) / 1e9


def _median_ms(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)
