"""Processes for tests, forked from one that has imported what takes long to import.

A short training run spends most of its time on imports otherwise. Where there are GPUs, which a
forked process may be unable to use, processes start as usual.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tests.support import ROOT

TIMEOUT = 300.0  # seconds


FOLDER = "TESTS_PYTHON_FOLDER"
"""Environment variable: where the Python is that a process has started for all that it starts."""


def start_python() -> None:
    """Start the process that is forked, for this one and those that it starts, and don't wait."""
    folder = tempfile.mkdtemp(prefix="python-")
    # Without the tests' PYTHONPATH, which each process has from its own environment.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("fork_server.py")), folder],
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
    )
    assert server.stdin is not None
    os.environ[FOLDER] = folder

    def end() -> None:
        server.stdin.close()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:  # it still imports
            server.kill()
        shutil.rmtree(folder)

    atexit.register(end)


@functools.cache
def python() -> str:
    """A Python that starts at once, and so do the processes that it starts as its own kind."""
    if torch.cuda.is_available():
        return sys.executable
    if FOLDER not in os.environ:
        start_python()
    client = Path(os.environ[FOLDER], "python")
    end = time.monotonic() + TIMEOUT
    while not os.access(client, os.X_OK):
        assert time.monotonic() < end, f"{client} is not made"
        time.sleep(0.02)
    return str(client)


def run(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    path: Path = ROOT,
    timeout: float = TIMEOUT,
) -> tuple[int, str]:
    """Run a command whose processes have one thread each.

    Args:
        command: the program and its arguments.
        environment: what differs from this process's.
        path: the working folder.
        timeout: seconds.

    Returns:
        Exit code, negative for a signal, and all that was printed.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    done = subprocess.run(
        command,
        cwd=path,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout


def run_module(
    module: str,
    *arguments: str,
    ranks: int | None = None,
    environment: Mapping[str, str] | None = None,
    path: Path = ROOT,
) -> tuple[int, str]:
    """:func:`run` a module as ``python -m`` does.

    Args:
        module: its name.
        arguments: its command line.
        ranks: processes that torchrun starts; None for one process without torchrun.
        environment: what differs from this process's.
        path: the working folder, where modules are looked for first.
    """
    agent = f"torch.distributed.run --standalone --nproc_per_node={ranks} -m".split()
    command = [python(), "-m", *([] if ranks is None else agent), module, *arguments]
    return run(command, environment, path)
