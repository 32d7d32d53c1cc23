"""Imported by a training run (``experimental.custom_import``): every other step has no guard.

Times each step on the device, from one update to the next, and each call of the guard on the host;
rank 0 writes both to ``guard.json`` in the run's folder. What the guard costs is within the step
whose update it judges: the intervals from an even step are without.
"""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from lighthouse.titan.hooks import RunHooks

_before_update, _end = RunHooks.before_update, RunHooks.end
_began: dict[int, torch.cuda.Event] = {}
_host_ms: dict[int, float] = {}


def before_update(self: RunHooks, step: int, *args: Any) -> None:
    _began[step] = torch.cuda.Event(enable_timing=True)
    _began[step].record()
    if step % 2:
        began = time.perf_counter()
        _before_update(self, step, *args)
        _host_ms[step] = 1e3 * (time.perf_counter() - began)
        return
    for optimizer in self._trainer.optimizers:
        vars(optimizer).pop("found_inf", None)  # left by the guard at the step before


def end(self: RunHooks, step: int) -> None:
    torch.cuda.synchronize()
    intervals = {n: _began[n].elapsed_time(_began[m]) for n, m in pairwise(sorted(_began))}
    file = Path(self._job_config.job.dump_folder) / "guard.json"
    file.write_text(json.dumps({"step_ms": intervals, "host_ms": _host_ms}))
    _end(self, step)


RunHooks.before_update = before_update  # type: ignore[method-assign]
RunHooks.end = end  # type: ignore[method-assign]
