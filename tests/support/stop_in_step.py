"""Imported by a training run (``experimental.custom_import``): asks for a stop in a given step.

``STOP_IN_STEP`` is "STEP RANK HOW", where HOW is what that rank does while it trains the step:
send itself a signal ("SIGUSR1"), send its launcher one ("launcher SIGTERM"), or write the file
("file").
"""

import os
import signal
import time
from pathlib import Path

from torchtitan.components.metrics import MetricsProcessor

_step, _rank, _how = os.environ["STOP_IN_STEP"].split(maxsplit=2)
_log = MetricsProcessor.log


def log(self, step, *args, **kwargs):
    if step == int(_step) and os.environ["RANK"] == _rank:
        if _how == "file":
            (Path(self.job_config.job.dump_folder) / "STOP").touch()
        else:
            *launcher, name = _how.split()
            os.kill(os.getppid() if launcher else os.getpid(), signal.Signals[name])
            time.sleep(2 if launcher else 0)  # which takes a moment to pass it on
    _log(self, step, *args, **kwargs)


MetricsProcessor.log = log
