"""Stopping a run on request: at a step boundary, on all ranks, with a checkpoint.

SIGTERM, SIGUSR1 or SIGINT (Ctrl-C) in any worker process asks for it, and so does a file ``STOP``
in the run's folder, which works through every launcher.
"""

import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torchtitan.tools.logging import logger

from lighthouse.runs.folder import STOP_FILE

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

# A request travels between ranks as its place here; the highest counts.
_REASONS = ("", f"the file {STOP_FILE}", "SIGUSR1", "SIGTERM", "SIGINT")
_FILE = 1
_SIGNALS = {signal.SIGUSR1: 2, signal.SIGTERM: 3, signal.SIGINT: 4}

# Slurm and a terminal signal every process, and torchrun passes on what it gets: one request then
# arrives twice.
_SAME_REQUEST_SECONDS = 5.0

_PROCESS_STARTED = time.time()


class StopRequest:
    """Whether the run is asked to stop. All ranks make one, and call `check` in every step.

    A ``STOP`` file older than this process was meant for the one before, and is removed.

    Args:
        job_config: torchtitan's ``JobConfig``. A process group must exist.
    """

    def __init__(self, job_config: "JobConfig") -> None:
        self._steps: int = job_config.training.steps
        self._checkpoint = job_config.checkpoint
        self._folder = Path(job_config.job.dump_folder)
        self._watches_file = dist.get_rank() == 0
        # On the CPU, so that asking does not wait for the accelerator. A faked group has one
        # process, whatever its size.
        shared = dist.get_world_size() > 1 and job_config.comm.mode == "default"
        self._group = dist.new_group(backend="gloo") if shared else None
        self._received = 0
        self._received_at = 0.0
        self._agreed = 0
        stop = self._folder / STOP_FILE
        if self._watches_file and stop.exists() and stop.stat().st_mtime < _PROCESS_STARTED:
            stop.unlink()

    def listen(self) -> None:
        """Take SIGTERM, SIGUSR1 and SIGINT as requests from now on; main thread only.

        Before the first step there is nothing to save, so it's not done any sooner. A second signal
        ends the process as if there were no handler.
        """
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def check(self, step: int) -> bool:
        """Whether to stop after ``step``, because any rank was asked to; a collective.

        Never after the last step, where the run ends anyway.
        """
        if step >= self._steps:
            return False
        request = self._received
        if self._watches_file and (self._folder / STOP_FILE).exists():
            request = max(request, _FILE)
        if self._group is not None:
            shared = torch.tensor(request)
            dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._group)
            request = int(shared)
        self._agreed = request
        return request > 0

    def conclude(self, step: int) -> None:
        """Say how the run ended after ``step``; rank 0 only.

        For launchers, ``STOP`` holds the reason where the run was stopped, and is gone where it was
        finished.
        """
        stop = self._folder / STOP_FILE
        if not self._agreed:
            stop.unlink(missing_ok=True)
            logger.info("Training completed")
            return
        reason = _REASONS[self._agreed]
        stop.write_text(f"{reason}\n")
        message = f"Stopped by {reason} after step {step} of {self._steps}: "
        if self._checkpoint.enable and not self._checkpoint.load_only:
            checkpoint = self._folder / self._checkpoint.folder / f"step-{step}"
            message += f"saved {checkpoint}; the same command continues from there"
        else:
            message += "nothing was saved, since this run writes no checkpoints"
        logger.info(message)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received and now - self._received_at > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self._received:
            self._received_at = now
        self._received = max(self._received, _SIGNALS[signal.Signals(number)])
