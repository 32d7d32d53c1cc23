"""Speed and memory of the trainer, through torchrun, and where a step's time goes.

    python benchmarks/training.py OUT.json CASE [CASE ...] [--profile CASE ...]

Each case is a fresh ``torchrun -m torchtitan.train`` of ``train_configs/530M_byte_98k.toml`` with
a few flags, one sequence a step, the same ones in each. Speed is the median of the steps after the
first three; memory is the largest that the allocator reserved in them. A profiled case adds each
rank's GPU time of one step by kind of kernel. Results are written after each case, so an
interrupted run keeps them.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.provenance import gpu

ROOT = Path(__file__).parents[1]
WARMUP_STEPS = 3

# Kernel names, in the order they are tried.
KINDS = {
    "attention": r"fmha|flash|sdpa",
    "lighthouse": r"_summarize_kernel|_select_kernel|_windows_kernel|_pull_kernel",
    "matmul": r"gemm|nvjet|cutlass|cublas|splitK",
    "communication": r"nccl",
    "compiled elementwise": r"^triton_",
    "optimizer": r"multi_tensor|adam|lpnorm",
    "copies": r"Mem(cpy|set)|copy|CatArray",
    "other": r"",
}

NO_AC = "--activation_checkpoint.mode none"
OP_AC = "--activation_checkpoint.mode selective --activation_checkpoint.selective_ac_option op"
FULL_AC = "--activation_checkpoint.mode full"
DENSE = "--lighthouse.no-enable"
WINDOWS = "--lighthouse.dense_layers --lighthouse.window_layers 0 1 28 29 --lighthouse.window 4096"
REAL_VOCABULARY = "--model.flavor 530M --training.loss_chunk_tokens 8192"
LONG = "--training.loss_chunk_tokens 65536 --lighthouse.dense_layers " + FULL_AC
MILLION = f"--lighthouse.num_levels 4 --lighthouse.topk 4096 {LONG}"
RING = "--parallelism.context_parallel_degree"
ALL_TO_ALL = "--parallelism.context_parallel_rotate_method alltoall"


class Case(NamedTuple):
    """What is run: on how many GPUs, with which flags, for how many steps."""

    gpus: int
    flags: str
    steps: int = 12


def cases() -> dict[str, Case]:
    """The runs by name. Runs on several GPUs have one of the same chunks on one beside them."""
    known = {
        "98k": Case(1, NO_AC),
        "98k-op": Case(1, OP_AC),
        "98k-full": Case(1, FULL_AC),
        "98k-autocast": Case(1, f"--parallelism.no-fsdp_on_one_rank {NO_AC}"),
        "98k-windows": Case(1, f"{WINDOWS} {NO_AC}"),
        "98k-all": Case(1, f"--lighthouse.dense_layers {NO_AC}"),
        "98k-dense": Case(1, f"{DENSE} {NO_AC}"),
        "98k-dense-op": Case(1, f"{DENSE} {OP_AC}"),
        "98k-dense-full": Case(1, f"{DENSE} {FULL_AC}"),
        "98k-530M": Case(1, f"{REAL_VOCABULARY} {NO_AC}"),
        "98k-530M-op": Case(1, f"{REAL_VOCABULARY} {OP_AC}"),
    }
    for length in (262144, 524288, 786432, 851968, 917504, 1048576):
        known[f"{length}-L4"] = Case(1, f"--training.seq_len {length} {MILLION}", steps=7)

    shared = f"--training.seq_len 196608 --lighthouse.topk 3072 --lighthouse.num_chunks 4 {OP_AC}"
    half = f"--training.seq_len 262144 --lighthouse.topk 4096 --lighthouse.num_chunks 4 {LONG}"
    whole = f"--training.seq_len 524288 --lighthouse.topk 8192 {LONG} --lighthouse.num_chunks"
    known |= {
        "196k-one": Case(1, shared),
        "196k-cp2": Case(2, f"{shared} {RING} 2"),
        "196k-cp2-alltoall": Case(2, f"{shared} {RING} 2 {ALL_TO_ALL}"),
        "196k-dense-one": Case(1, f"{shared} {DENSE}", steps=5),
        "196k-dense-cp2": Case(2, f"{shared} {DENSE} {RING} 2", steps=5),
        "262k-one": Case(1, half, steps=7),
        "524k-one": Case(1, f"{whole} 4", steps=7),
        "524k-cp2": Case(2, f"{whole} 4 {RING} 2", steps=7),
        "524k-cp2-alltoall": Case(2, f"{whole} 4 {RING} 2 {ALL_TO_ALL}", steps=7),
        "524k-one-8": Case(1, f"{whole} 8", steps=7),
        "524k-cp4": Case(4, f"{whole} 8 {RING} 4", steps=7),
        "524k-cp4-alltoall": Case(4, f"{whole} 8 {RING} 4 {ALL_TO_ALL}", steps=7),
    }
    return known


def run(name: str, case: Case, profiled: bool) -> dict[str, Any]:
    """One case in processes of its own; ``error`` instead of figures where it fails."""
    gpus, flags, steps = case
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *f"{sys.executable} -m torch.distributed.run --standalone".split(),
            *f"--nproc_per_node={gpus} -m torchtitan.train".split(),
            *f"--job.config_file {ROOT}/train_configs/530M_byte_98k.toml".split(),
            *f"--job.dump_folder {folder} --training.dataset python --training.steps".split(),
            *f"{steps} --training.global_batch_size -1 --checkpoint.no-enable".split(),
            *"--metrics.log_freq 1 --metrics.no-enable_tensorboard --debug.seed 1".split(),
            *flags.split(),
        ]
        if profiled:
            command += "--profiling.enable_profiling --profiling.profiler_warmup 1".split()
            command += f"--profiling.profile_freq {steps - 1}".split()
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        result: dict[str, Any] = {"case": name, "gpus": gpus, "flags": flags}
        if done.returncode != 0:
            errors = re.findall(r"^refused: .*|.*Error: .*", done.stdout, re.MULTILINE)
            return result | {"error": (errors or done.stdout.splitlines())[-1][-400:]}
        lines = list(map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines()))
        measured = [line for line in lines if line["step"] > WARMUP_STEPS]
        # The profiler's own steps are slow: its warmup, the profiled one, and where it writes.
        speeds = [line["tokens_per_second"] for line in measured][: -3 if profiled else None]
        result |= {
            "tokens_per_second": round(statistics.median(speeds)),
            "slowest_and_fastest": [round(min(speeds)), round(max(speeds))],
            "memory_gib": round(max(line["memory/max_reserved(GiB)"] for line in measured), 2),
            "active_gib": round(max(line["memory/max_active(GiB)"] for line in measured), 2),
            "mfu_percent": round(measured[0]["mfu(%)"], 1),
            "losses": [round(line["loss"], 5) for line in lines],
        }
        if profiled:
            traces = sorted(Path(folder).rglob("rank*_trace.json"))
            result["profile"] = [summarise(json.loads(trace.read_text())) for trace in traces]
        return result


def summarise(trace: dict[str, Any]) -> dict[str, Any]:
    """GPU milliseconds of one step by kind, and the longest kernels.

    ``idle_ms`` has no kernel running, ``not_computing_ms`` none or only communication.
    """
    kernels = [
        event
        for event in trace["traceEvents"]
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    by_kind: dict[str, float] = defaultdict(float)
    by_name: dict[str, list[float]] = defaultdict(list)
    computing = []
    for event in kernels:
        kind = next(k for k, pattern in KINDS.items() if re.search(pattern, event["name"]))
        by_kind[kind] += event["dur"] / 1000
        by_name[event["name"]].append(event["dur"] / 1000)
        if kind != "communication":
            computing.append(event)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:12]
    start = min(event["ts"] for event in kernels)
    span = (max(event["ts"] + event["dur"] for event in kernels) - start) / 1000
    return {
        "span_ms": round(span, 1),
        "idle_ms": round(span - busy_ms(kernels), 1),
        "not_computing_ms": round(span - busy_ms(computing), 1),
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


def machine() -> dict[str, Any]:
    return {
        **gpu(),
        "alloc_conf": os.environ.get("PYTORCH_ALLOC_CONF", ""),
        "matmul_tflops": round(matmul_rate(), 1),
    }


def matmul_rate() -> float:
    """TFLOP/s of a large bf16 product, the ceiling of the model's."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ a
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return 2 * 8192**3 / statistics.median(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="+", choices=list(cases()), metavar="CASE")
    parser.add_argument("--profile", nargs="*", default=[], metavar="CASE")
    args = parser.parse_args()
    report: dict[str, Any] = {**machine(), "results": []}
    for name in args.cases:
        result = run(name, cases()[name], profiled=name in args.profile)
        report["results"].append(result)
        shown = {k: v for k, v in result.items() if k != "profile"}
        print(json.dumps(shown), flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
