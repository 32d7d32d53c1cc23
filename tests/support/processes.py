"""Processes for tests, forked from one that has imported what takes long to import.

A short training run spends most of its time on imports otherwise. What is forked knows packages of
others alone: the modules under test are imported by each process itself. Where there are GPUs,
which a forked process may be unable to use, processes are started by command.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.support import ROOT

TIMEOUT = 300.0  # seconds

_server = multiprocessing.get_context("forkserver")
# Not what reads its environment when it is imported, such as "datasets".
_server.set_forkserver_preload(
    [
        "pandas",
        "pyarrow.dataset",
        "torch._inductor.compile_fx",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "torch.distributed.launcher.api",
        "torch.distributed.pipelining",
        "torch.distributed.tensor",
        "torch.nn.attention.varlen",
        "torch.utils.tensorboard",
        "torchdata.stateful_dataloader",
        "triton",
        "tyro",
    ]
)


def run_module(
    module: str,
    *arguments: str,
    ranks: int | None = None,
    torchrun: bool = False,
    environment: Mapping[str, str] | None = None,
    path: Path = ROOT,
) -> tuple[int, str]:
    """Run a module as ``python -m`` does, each process with one thread.

    Args:
        module: its name.
        arguments: its command line.
        ranks: processes that torchrun's agent starts; None for one process without an agent.
        torchrun: start them by the command, not by its agent alone; takes longer.
        environment: what differs from this process's.
        path: the working folder, where modules are looked for first.

    Returns:
        Exit code, negative for a signal, and all that was printed.

    Raises:
        TimeoutError, subprocess.TimeoutExpired: it took longer than `TIMEOUT`.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    if torchrun or torch.cuda.is_available():
        agent = f"torch.distributed.run --standalone --nproc_per_node={ranks} -m".split()
        done = subprocess.run(
            [sys.executable, "-m", *([] if ranks is None else agent), module, *arguments],
            cwd=path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
        return done.returncode, done.stdout
    with tempfile.NamedTemporaryFile() as output:
        process = _server.Process(
            target=_start,
            args=(output.name, path, environment, ranks, module, arguments),
        )
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(output.read().decode())
        return process.exitcode, output.read().decode()


def _start(
    output: str,
    path: Path,
    environment: Mapping[str, str],
    ranks: int | None,
    module: str,
    arguments: tuple[str, ...],
) -> None:
    """In the forked process: become what was asked for."""
    with open(output, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(path)
    sys.path.insert(0, str(path))
    torch.set_num_threads(1)
    # The platform's own again: a loader's workers would import everything anew.
    multiprocessing.set_start_method(None, force=True)
    if ranks is None:
        _run(module, arguments)
        return
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, _run)(module, arguments)


def _run(module: str, arguments: tuple[str, ...]) -> None:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
