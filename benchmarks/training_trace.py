"""What the trace of a step says: GPU time by kind of kernel."""

import re
from collections import defaultdict
from typing import Any

# Kernel names, in the order they are tried. cuDNN's backward has two kernels beside its large one.
KINDS = {
    "attention": r"fmha|flash|sdpa|compute_dot_do_o|convert_dq",
    "lighthouse": r"_summarize_kernel|_select_kernel|_windows_kernel|_pull_kernel",
    "window": r"^_(merge|rows)_kernel",
    "matmul": r"gemm|nvjet|cutlass|cublas|splitK",
    "communication": r"nccl",
    "compiled elementwise": r"^triton_",
    "optimizer": r"multi_tensor|adam|lpnorm",
    "copies": r"Mem(cpy|set)|copy|CatArray",
    "other": r"",
}


def summarise(trace: dict[str, Any]) -> dict[str, Any]:
    """GPU milliseconds of one step by kind, and the longest kernels.

    ``idle_ms`` has no kernel running, ``exposed_communication_ms`` only communication, and
    ``not_computing_ms`` is both together; ``communication_ms`` has some, alone or not.
    """
    kernels = [
        event
        for event in trace["traceEvents"]
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(list)
    computing, communicating = [], []
    for event in kernels:
        kind = next(k for k, pattern in KINDS.items() if re.search(pattern, event["name"]))
        by_kind[kind] += event["dur"] / 1000
        by_name[event["name"]].append(event["dur"] / 1000)
        (communicating if kind == "communication" else computing).append(event)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:30]
    start = min(event["ts"] for event in kernels)
    span = (max(event["ts"] + event["dur"] for event in kernels) - start) / 1000
    return {
        "span_ms": round(span, 1),
        "idle_ms": round(span - busy_ms(kernels), 1),
        "not_computing_ms": round(span - busy_ms(computing), 1),
        "communication_ms": round(busy_ms(communicating), 1),
        "exposed_communication_ms": round(busy_ms(kernels) - busy_ms(computing), 1),
        "by_kind_ms": {kind: round(ms, 1) for kind, ms in by_kind.items()},
        "kernels": [[name[:120], len(ms), round(sum(ms), 2)] for name, ms in longest],
    }


def busy_ms(kernels: list[dict[str, Any]]) -> float:
    """Milliseconds in which at least one of the kernels ran."""
    busy = busy_until = 0.0
    for event in sorted(kernels, key=lambda event: event["ts"]):
        end = event["ts"] + event["dur"]
        busy += max(0.0, end - max(event["ts"], busy_until)) / 1000
        busy_until = max(busy_until, end)
    return busy
