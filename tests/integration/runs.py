"""Real training runs in processes of their own, tiny ones."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.processes import run_module


@dataclass
class Run:
    """A finished process and the folder it wrote."""

    folder: Path
    returncode: int
    output: str

    def lines(self) -> list[dict[str, Any]]:
        """Every line of the run's metrics."""
        return list(map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines()))

    def losses(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm of each step in full precision, the last line of a step counts."""
        training = (line for line in self.lines() if "loss" in line)
        return {line["step"]: (line["loss"], line["grad_norm"]) for line in training}

    def values(self, key: str) -> dict[int, float]:
        """A metric at the steps that have it."""
        return {line["step"]: line[key] for line in self.lines() if key in line}

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoint" / f"step-{step}"


def train(
    folder: Path,
    *args: str,
    processes: int = 1,
    torchrun: bool = False,
    env: dict[str, str] | None = None,
    ok: bool = True,
) -> Run:
    """Run ``torchtitan.train`` on a tiny model over the embedded corpus.

    Args:
        folder: the job's dump folder.
        args: command-line options after the defaults, which they override.
        processes: local processes.
        torchrun: as for `run_module`.
        ok: whether the process must succeed.
    """
    defaults = {
        "job.dump_folder": folder,
        "model.flavor": "tiny_byte",
        "model.tokenizer": "byte",
        "training.dataset": "python",
        "training.seq_len": 256,
        "training.local_batch_size": 2,
        "training.mixed_precision_param": "float32",
        "metrics.log_freq": 1,
        "debug.seed": 7,
        "optimizer.lr": 0.002,
        "lr_scheduler.warmup_steps": 2,
        "activation_checkpoint.mode": "none",
        "lighthouse.topk": 16,
        "lighthouse.stratum": 8,
    }
    options = [part for key, value in defaults.items() for part in (f"--{key}", str(value))]
    ranks: int | None = processes
    if processes == 1 and not torchrun:
        single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        rendezvous = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
        env, ranks = (env or {}) | single | rendezvous, None
    code, output = run_module(
        "torchtitan.train", *options, *args, ranks=ranks, torchrun=torchrun, environment=env
    )
    if ok:
        assert code == 0, output
    else:
        assert code != 0, output
    return Run(folder, code, output)
