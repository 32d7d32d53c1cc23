"""Imported by a training run (``experimental.custom_import``): the disk of its folder becomes full.

``FILL_DISK`` is "STEP BYTES": from that step on, before it is logged and saved, so much is left.
"""

import os
import shutil
from pathlib import Path

from torchtitan.components.metrics import MetricsProcessor

_step, _left = map(int, os.environ["FILL_DISK"].split())
_log = MetricsProcessor.log


def log(self, step, *args, **kwargs):
    if step == _step:
        folder = Path(self.job_config.job.dump_folder)
        with (folder.parent / "filler").open("wb") as file:
            file.write(bytes(shutil.disk_usage(folder).free - _left))
    _log(self, step, *args, **kwargs)


MetricsProcessor.log = log
