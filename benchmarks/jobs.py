"""Commands that build on each other, side by side on the GPUs of one machine."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lighthouse import launch

ROOT = Path(__file__).parents[1]

Place = tuple[int, int]
"""A GPU, and which of the jobs on it."""


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: of its files in the jobs' folder.
        command: arguments of ``python -m``.
        after: jobs that must be done before.
        gpus: that it has to itself, unless it takes one, and GPUs have several jobs.
        seconds: that it may take; it is not begun when fewer are left.
        variables: of its environment, beside all jobs'.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    gpus: int = 1
    seconds: float = 0.0
    variables: Mapping[str, str] = field(default_factory=dict)


def run(
    folder: Path,
    jobs: Sequence[Job],
    gpus: int,
    a_gpu: int = 1,
    seconds: float = float("inf"),
) -> None:
    """Run what is not done, the first that can begin first.

    A job for which too few GPUs are free gets the next ones, before those behind it. One that
    failed is left out with all that needs it. Its output is ``NAME.log``; ``NAME.done`` says that
    it has ended well, so that the same command goes on where it was stopped.

    Args:
        a_gpu: jobs of one GPU that share it.
        seconds: in which all should be done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    waiting = [job for job in jobs if job.gpus <= gpus and not _done(folder, job.name)]
    free: list[Place] = [(gpu, place) for place in range(a_gpu) for gpu in range(gpus)]
    running: list[tuple[Job, list[Place], subprocess.Popen[bytes], float]] = []
    failed: set[str] = set()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    while True:
        for entry in list(running):
            job, places, process, since = entry
            if process.poll() is None:
                continue
            running.remove(entry)
            free = sorted([*free, *places], key=lambda place: place[::-1])
            took = f"{time.monotonic() - since:.0f} s"
            if process.returncode == 0:
                (folder / f"{job.name}.done").touch()
                say(f"done    {job.name} ({took}); {len(waiting)} waiting")
            else:
                failed.add(job.name)
                say(f"FAILED  {job.name} ({took}), exit code {process.returncode}")
        left = seconds - (time.monotonic() - began)
        for job in list(waiting):
            if failed.intersection(job.after):
                failed.add(job.name)
                waiting.remove(job)
                say(f"left out {job.name}")
            elif job.seconds <= left and all(_done(folder, name) for name in job.after):
                places = _places(free, job.gpus, a_gpu)
                if places is None:
                    break
                free = [place for place in free if place not in places]
                waiting.remove(job)
                process = start(folder, job, sorted({gpu for gpu, _ in places}))
                running.append((job, places, process, time.monotonic()))
                say(f"start   {job.name} on GPU {', '.join(str(gpu) for gpu, _ in places)}")
        if not running:
            break
        time.sleep(0.1)
    for job in waiting:
        say(f"not begun: {job.name}")


def _done(folder: Path, name: str) -> bool:
    return (folder / f"{name}.done").exists()


def _places(free: Sequence[Place], gpus: int, a_gpu: int) -> list[Place] | None:
    """For a job of so many GPUs; several it must have to itself."""
    if gpus == 1:
        return list(free[:1]) or None
    whole = [gpu for gpu, place in free if place == 0 and _count(free, gpu) == a_gpu][:gpus]
    return [place for place in free if place[0] in whole] if len(whole) == gpus else None


def _count(places: Sequence[Place], gpu: int) -> int:
    return sum(place[0] == gpu for place in places)


def start(folder: Path, job: Job, gpus: Sequence[int]) -> subprocess.Popen[bytes]:
    """Begin a job, its output going to ``NAME.log``."""
    environment = {
        **launch.environment(),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": "6",
        "OMP_NUM_THREADS": "1",  # every process would use all cores, and wait for the others
        **job.variables,
    }
    with (folder / f"{job.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *job.command],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
