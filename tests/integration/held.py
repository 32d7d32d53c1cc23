"""Imported by a training run (``experimental.custom_import``): each step waits while it is held.

Held are runs of as many steps as a file in the folder ``HOLD_FOLDER`` is named, unless they are
asked to stop. So a run is interrupted at a known place, whatever the machine and its load.
"""

import os
import time
from pathlib import Path

from torchtitan.components.metrics import MetricsProcessor

_log = MetricsProcessor.log


def log(self, *args, **kwargs):
    _log(self, *args, **kwargs)
    hold = Path(os.environ["HOLD_FOLDER"], str(self.job_config.training.steps))
    stop = Path(self.job_config.job.dump_folder, "STOP")
    while hold.exists() and not stop.exists():
        time.sleep(0.1)


MetricsProcessor.log = log
