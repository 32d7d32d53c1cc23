"""Processes for tests, forked from one that has imported what takes long to import.

A short training run spends most of its time on imports otherwise. What is forked knows packages of
others alone: the modules under test are imported by each process itself.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

ROOT = Path(__file__).parents[2]
TIMEOUT = 300.0  # seconds

# What has asked CUDA for GPUs can't be forked into what uses them. This asks the driver's library.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

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
    environment: Mapping[str, str] | None = None,
    path: Path = ROOT,
) -> tuple[int, str]:
    """Run a module as ``python -m`` does, each process with one thread.

    Args:
        module: its name.
        arguments: its command line.
        ranks: processes that torchrun's agent starts; None for one process without an agent.
        environment: what differs from this process's.
        path: the working folder, where modules are looked for first.

    Returns:
        Exit code, negative for a signal, and all that was printed.

    Raises:
        TimeoutError: it took longer than `TIMEOUT`.
    """
    with tempfile.NamedTemporaryFile() as output:
        process = _server.Process(
            target=_start,
            args=(output.name, path, os.environ | (environment or {}), ranks, module, arguments),
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
