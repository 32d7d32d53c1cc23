"""Running a submission on this machine, some runs at a time."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from types import FrameType

from lighthouse.launch import SIDE_BY_SIDE_VARIABLE
from lighthouse.sweep.resources import Resources
from lighthouse.sweep.submission import Submission
from lighthouse.sweep.worker import AGAIN

LOOK_SECONDS = 0.2


@dataclass
class _Slot:
    """Room for one run: its GPUs, as CUDA_VISIBLE_DEVICES names them, and who is in it."""

    gpus: list[str]
    index: int = -1
    worker: subprocess.Popen | None = None
    told: bool = False  # to end


def check_room(resources: Resources, at_a_time: int) -> None:
    """Check that this machine can hold that many runs at a time.

    Raises:
        ValueError: more than one node, or not as many GPUs.
    """
    if resources.nodes != 1:
        raise ValueError(f"resources.nodes = {resources.nodes}: without Slurm there is only 1")
    if at_a_time < 1:
        raise ValueError(f"--jobs {at_a_time}: must be at least 1")
    wanted, there = resources.gpus_per_node * at_a_time, len(_visible_gpus())
    if wanted > there:
        raise ValueError(
            f"resources.gpus_per_node = {resources.gpus_per_node}, --jobs {at_a_time}: {wanted} "
            f"GPUs are wanted at a time, {there} are here; 0 trains on CPUs"
        )


def run_local(submission: Submission, at_a_time: int) -> None:
    """Run all of a submission's runs; returns when none is left, or after SIGINT or SIGTERM."""
    per_run, gpus = submission.resources.gpus_per_node, _visible_gpus()
    beside = min(at_a_time, len(submission.runs))
    slots = [_Slot(gpus[i * per_run : (i + 1) * per_run]) for i in range(beside)]
    waiting = deque(range(len(submission.runs)))
    stopping = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        # A worker may be starting just now: the loop below tells each, when it is there.
        nonlocal stopping
        stopping = True

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        while waiting or any(slot.worker for slot in slots):
            if stopping:
                waiting.clear()
            for slot in slots:
                if slot.worker is not None and stopping and not slot.told:
                    slot.worker.terminate()
                    slot.told = True
                if slot.worker is None and waiting:
                    slot.index = waiting.popleft()
                    slot.worker, slot.told = _start(submission, slot, beside), False
                elif slot.worker is not None and slot.worker.poll() is not None:
                    if slot.worker.returncode == AGAIN and not stopping:
                        waiting.appendleft(slot.index)
                    slot.worker = None
            time.sleep(LOOK_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(submission: Submission, slot: _Slot, beside: int) -> subprocess.Popen:
    print(f"starting {submission.runs[slot.index]}", flush=True)
    own = {"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus), SIDE_BY_SIDE_VARIABLE: str(beside)}
    return subprocess.Popen(
        [sys.executable, "-m", "lighthouse.sweep.worker", str(submission.folder), str(slot.index)],
        env=os.environ | own,
        # Ctrl-C in a terminal comes from the caller alone.
        start_new_session=True,
    )


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        # CUDA ignores the first entry that names no GPU, such as -1, and all after it.
        names = (name.strip() for name in named.split(","))
        return list(takewhile(re.compile(r"\d+|(GPU|MIG)-\S+").fullmatch, names))
    import torch  # which takes long, and most commands of a sweep do without

    return [str(i) for i in range(torch.cuda.device_count())]
