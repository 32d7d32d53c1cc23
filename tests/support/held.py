"""Imported by a training run (``experimental.custom_import``): each step waits while it is held.

Held are runs of as many steps as a file in the folder ``HOLD_FOLDER`` is named, unless they are
asked to stop. So a run is interrupted at a known place, whatever the machine and its load. Runs of
N steps fail in their first one while a file is named ``fail-N``, and are refused there while one is
named ``refuse-N``.
"""

import os
import time
from pathlib import Path

from torchtitan.components.metrics import MetricsProcessor

from lighthouse.refusal import Refusal

_log = MetricsProcessor.log


def log(self, *args, **kwargs):
    steps = self.job_config.training.steps
    folder = Path(os.environ["HOLD_FOLDER"])
    if (folder / f"fail-{steps}").exists():
        raise RuntimeError(f"runs of {steps} steps are to fail")
    if (folder / f"refuse-{steps}").exists():
        raise Refusal(f"training.steps = {steps}: must be something else")
    _log(self, *args, **kwargs)
    stop = Path(self.job_config.job.dump_folder, "STOP")
    while (folder / str(steps)).exists() and not stop.exists():
        time.sleep(0.1)


MetricsProcessor.log = log
