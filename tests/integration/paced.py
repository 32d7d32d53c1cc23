"""Imported by a training run (``experimental.custom_import``): each step waits PACE_SECONDS.

So a run lasts long enough to be interrupted, whatever the machine, and costs nothing while it does.
"""

import os
import time

from torchtitan.components.metrics import MetricsProcessor

_log = MetricsProcessor.log


def log(self, *args, **kwargs):
    time.sleep(float(os.environ.get("PACE_SECONDS", "0")))
    _log(self, *args, **kwargs)


MetricsProcessor.log = log
