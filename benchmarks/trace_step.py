"""Imported by a training run (``experimental.custom_import``): traces the GPU in some steps.

``TRACE_STEPS`` names them; each rank writes ``trace/STEP-RANK.json`` into the run's folder. Only
kernels and copies are recorded, which hardly slows a step down. Such a step and the one before are
logged. Starting and writing is slow, and within the time that is logged of a traced step.
Afterwards the allocator gives back what is not in use, so that the memory of a next stage is its
own.
"""

import os
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.tools.utils import device_module, device_type

_steps = set(map(int, os.environ["TRACE_STEPS"].split()))
_log, _should_log = MetricsProcessor.log, MetricsProcessor.should_log
_running: list[profile] = []


def should_log(self: MetricsProcessor, step: int) -> bool:
    return bool(_steps & {step, step + 1}) or _should_log(self, step)


def log(self: MetricsProcessor, step: int, *args: Any, **kwargs: Any) -> None:
    if _running:
        tracer = _running.pop()
        device_module.synchronize()
        tracer.stop()
        folder = Path(self.job_config.job.dump_folder) / "trace"
        folder.mkdir(exist_ok=True)
        tracer.export_chrome_trace(str(folder / f"{step}-{os.environ['RANK']}.json"))
        if device_type == "cuda":
            device_module.empty_cache()
    _log(self, step, *args, **kwargs)
    if step + 1 in _steps:
        tracer = profile(activities=[getattr(ProfilerActivity, device_type.upper())])
        tracer.start()
        _running.append(tracer)


MetricsProcessor.log, MetricsProcessor.should_log = log, should_log
