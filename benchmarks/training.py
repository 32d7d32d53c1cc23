"""Speed and memory of the trainer, by the launcher, and where a step's time goes.

    python -m benchmarks.training OUT.json CASE[:STAGE,...] ... [--seconds S]
    python -m benchmarks.training_plan h100 CASE ...        # what to expect; needs no GPU

Each case of ``training_cases.py`` is a fresh run of ``train_configs/530M_byte_98k.toml`` with a few
flags, one sequence a step, random weights, Python's sources as bytes. Some are a run of several
``[[stages]]``, of which the command line may name a few, and each is a result of its own.

Speed is the median of the log's lines of the steps behind the warmup but the last, a line for each
step or for several; memory is the largest that rank 0's allocator reserved in them. The last step
is traced: each rank's GPU time by kind of kernel. Where it is the only one behind the warmup, speed
is by its kernels, from the first one's start to the last one's end, of the slowest rank.
``causal_mfu_percent`` counts the products of causal attention once and nothing that runs again,
``mfu_percent``, the trainer's, those under the mask too. Communication is the time in which NCCL
has a kernel running, of the rank that has the least of it, since the others also wait in theirs;
``exposed`` is where nothing else runs beside.

``--seconds`` ends the measurement: no case begins that would last longer by the plan, and one that
does is stopped. Results are written after each case, with the steps that it has finished, and the
reason where it failed.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w
import torch

from benchmarks.ceilings import copy_rate, matmul_rate
from benchmarks.provenance import gpu
from benchmarks.training_cases import BASE, Case, Run, named, tokens_per_step
from benchmarks.training_plan import expectations, planned
from benchmarks.training_trace import summarise
from lighthouse.cost.rates import devices, load_rates
from lighthouse.launch import environment

ROOT = Path(__file__).parents[1]
BUSY_SECONDS = 3


def run(name: str, case: Case, left: float = float("inf")) -> list[Run]:
    """One case in processes of its own: a result for each stage that has measured steps.

    Args:
        left: seconds until it is stopped.

    Returns:
        The results; the last has an ``error`` where the run did not end well.
    """
    with tempfile.TemporaryDirectory() as folder:
        tables = case.tables()
        ends = [sum(t["steps"] for t in tables[: i + 1]) for i in range(len(tables))]
        ends = ends or [case.steps]
        command = [
            *f"{sys.executable} -m lighthouse.launch --processes {case.gpus} --".split(),
            *"--experimental.custom_import benchmarks.trace_step".split(),
            *arguments(case, Path(folder)),
        ]
        # Where a rank fails, the others wait for it in a kernel, and hear no signal.
        variables = {"PET_SHUTDOWN_TIMEOUT": "5", "TRACE_STEPS": " ".join(map(str, ends))}
        error = run_to_its_end(command, environment(os.environ | variables), left)
        file = Path(folder) / "metrics.jsonl"
        lines = list(map(json.loads, file.read_text().splitlines())) if file.exists() else []
        results = []
        for number, (begin, end) in enumerate(pairwise([0, *ends]), start=1):
            result: Run = {"case": name, "gpus": case.gpus, "flags": case.flags}
            of_stage = lines
            if tables:
                result["case"] = f"{name}:{[*case.stages][number - 1]}"
                result["stage_table"] = tables[number - 1]
                of_stage = [line for line in lines if line["stage_number"] == number]
            traces = sorted(Path(folder).glob(f"trace/{end}-*.json"))
            profile = [summarise(json.loads(trace.read_text())) for trace in traces]
            results.append(measured(result, case, of_stage, begin, end, profile))
            if error is not None and (not of_stage or of_stage[-1]["step"] < end):
                results[-1]["error"] = error
                break
        return results


def arguments(case: Case, folder: Path) -> list[str]:
    """What the trainer is given for a case that is run in ``folder``."""
    file = BASE
    # The base switches behind the end of so short a run.
    length = f"--training.steps {case.steps} --lighthouse.dense_from_step None"
    flags = case.flags.split()
    if tables := case.tables():
        if "--training.seq_len" in flags and all("seq_len" in table for table in tables):
            of_no_stage = flags.index("--training.seq_len")
            del flags[of_no_stage : of_no_stage + 2]
        file, length = folder / "job.toml", ""
        file.write_text(tomli_w.dumps({"job": {"extends": str(BASE)}, "stages": tables}))
    return [
        *f"--job.config_file {file} --job.dump_folder {folder} {length}".split(),
        *"--training.dataset python --training.global_batch_size -1".split(),
        *"--training.rehearse_stages False --checkpoint.no-enable --debug.seed=1".split(),
        *"--metrics.no-enable_tensorboard --metrics.disable_color_printing".split(),
        *f"--metrics.log_freq {case.log_every}".split(),
        *flags,
    ]


def run_to_its_end(
    command: list[str], variables: dict[str, str], left: float = float("inf")
) -> str | None:
    """Run a command, at most for ``left`` seconds, and show its steps; why it failed, if it did."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    out_of_time = threading.Event()

    def stop() -> None:
        out_of_time.set()
        process.send_signal(signal.SIGTERM)

    timer = threading.Timer(min(left, threading.TIMEOUT_MAX), stop)
    timer.start()
    printed: list[str] = []
    shown: set[str] = set()
    assert process.stdout is not None
    for line in process.stdout:
        printed.append(line.rstrip())
        found = re.search(r"step: +\d+ |^refused: .*|\w*Error: .*", line)
        if found and found[0] not in shown:  # each rank says it
            shown.add(found[0])
            print(f"  {line[found.start() :].rstrip()[:160]}", flush=True)
    code = process.wait()
    timer.cancel()
    if out_of_time.is_set():
        return f"stopped after {left:.0f} seconds"
    if code == 0:
        return None
    errors = [line for line in printed if re.search(r"^refused: |Error: ", line)]
    return (errors or printed or [f"exit code {code}"])[0 if errors else -1][-400:]


def measured(
    result: Run, case: Case, lines: list[Run], begin: int, end: int, profile: list[Run]
) -> Run:
    """A result with what the lines of its steps say; nothing where none was measured.

    Args:
        result: which case and stage it is of.
        lines: of the stage's steps.
        begin: the step before its first.
        end: its last step, which was traced.
        profile: of each rank in that step.
    """
    steps = [line for line in lines if line["step"] - case.log_every >= begin + case.warmup]
    untraced = [line for line in steps if line["step"] < end]
    result = result | {"losses": [round(line["loss"], 5) for line in lines]}
    speeds = [line["tokens_per_second"] for line in untraced]
    if steps and not speeds and profile:
        span = max(rank["span_ms"] for rank in profile) / 1000
        speeds = [tokens_per_step(result) / case.gpus / span]
    if speeds:
        result |= {
            "tokens_per_second": round(statistics.median(speeds)),
            "slowest_and_fastest": [round(min(speeds)), round(max(speeds))],
            "memory_gib": round(max(line["memory/max_reserved(GiB)"] for line in steps), 2),
            "active_gib": round(max(line["memory/max_active(GiB)"] for line in steps), 2),
            "data_loading_percent": round(steps[0]["time_metrics/data_loading(%)"], 2),
        }
        if untraced and "mfu(%)" in untraced[0]:
            result["mfu_percent"] = round(untraced[0]["mfu(%)"], 1)
    if profile:
        for what in ("communication", "exposed_communication"):
            shares = [rank[f"{what}_ms"] / rank["span_ms"] for rank in profile]
            result[f"{what}_percent"] = round(100 * min(shares), 1)
        result["profile"] = profile
    return result


def machine() -> dict[str, Any]:
    return {
        **gpu(),
        "alloc_conf": environment()["PYTORCH_ALLOC_CONF"],
        "matmul_tflops": round(matmul_rate(), 1),
        "busy_matmul_tflops": round(matmul_rate(BUSY_SECONDS), 1),
        "copy_tb_per_s": round(copy_rate(), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="+", type=named, metavar="CASE[:STAGE,...]")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    report: dict[str, Any] = {**machine(), "results": []}
    torch.cuda.empty_cache()  # this process stays while others measure
    (device,) = (name for name in devices() if name in report["device"].lower())
    rates = load_rates(device)
    for name, case in args.cases:
        seconds, lines = expectations(name, case, rates)
        left = end - time.monotonic()
        print("\n".join(lines), flush=True)
        print(f"  about {seconds:.0f} s in all, {left:.0f} are left", flush=True)
        if seconds > left:
            results: list[Run] = [
                {"case": name, "error": f"not begun: {left:.0f} s left, {seconds:.0f} wanted"}
            ]
        else:
            results = [result | planned(result, rates) for result in run(name, case, left)]
        report["results"] += results
        for result in results:
            shown = {k: v for k, v in result.items() if k not in ("profile", "flags", "losses")}
            print(json.dumps(shown), flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
