"""Runs of the trainer that build on each other, side by side on the GPUs of one machine."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lighthouse import launch

ROOT = Path(__file__).parents[2]
BASE = ROOT / "benchmarks/study/base.toml"


@dataclass(frozen=True)
class Job:
    """A process of one GPU.

    Attributes:
        name: of its folder below the study's.
        command: arguments of ``python -m``.
        after: jobs that must be done before.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()


def training(
    study: Path, name: str, flags: str, after: tuple[str, ...] = (), config: Path = BASE
) -> Job:
    """A run of the trainer in the folder ``name``."""
    where = ("--job.config_file", str(config), "--job.dump_folder", str(study / name))
    return Job(name, ("torchtitan.train", *where, *flags.split()), after)


def run(study: Path, jobs: Sequence[Job], gpus: int, a_gpu: int) -> None:
    """Run what is not done, ``a_gpu`` jobs at a time on each GPU, the first that can begin first.

    A job that failed is left out with all that needs it. Its output is ``NAME.log``; ``NAME.done``
    says that it has ended well, so that the same command goes on where it was stopped.
    """
    study.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not (study / f"{job.name}.done").exists()]
    failed: set[str] = set()
    slots: dict[tuple[int, int], tuple[Job, subprocess.Popen[bytes], float]] = {}
    began = time.time()

    def say(text: str) -> None:
        print(f"{time.time() - began:7.1f} s  {text}", flush=True)

    while waiting or slots:
        for slot, (job, process, since) in list(slots.items()):
            if process.poll() is None:
                continue
            del slots[slot]
            took = f"{time.time() - since:.0f} s"
            if process.returncode == 0:
                (study / f"{job.name}.done").touch()
                say(f"done    {job.name} ({took}); {len(waiting)} waiting")
            else:
                failed.add(job.name)
                say(f"FAILED  {job.name} ({took}), exit code {process.returncode}")
        lost = {job.name for job in waiting if failed.intersection(job.after)}
        if lost:
            failed |= lost
            waiting = [job for job in waiting if job.name not in lost]
            continue
        for slot in ((gpu, place) for place in range(a_gpu) for gpu in range(gpus)):
            ready = [
                job for job in waiting if all((study / f"{a}.done").exists() for a in job.after)
            ]
            if slot not in slots and ready:
                job = ready[0]
                waiting.remove(job)
                slots[slot] = job, start(study, job, str(slot[0])), time.time()
                say(f"start   {job.name} on GPU {slot[0]}")
        time.sleep(0.5)


def start(study: Path, job: Job, gpu: str) -> subprocess.Popen[bytes]:
    """Begin a job, its output going to ``NAME.log``."""
    single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    environment = {
        **launch.environment(),
        **single,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
        "CUDA_VISIBLE_DEVICES": gpu,
        "TORCHINDUCTOR_CACHE_DIR": str(study / "compiled"),
        "TRITON_CACHE_DIR": str(study / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": "6",
        "OMP_NUM_THREADS": "1",  # every process would use all cores, and wait for the others
    }
    with (study / f"{job.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *job.command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
