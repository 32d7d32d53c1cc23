"""Imported by a trainer, as ``experimental.custom_import``: closes one of its checkpoints."""

import os
from pathlib import Path

import pytest

from tests.support.locked import lock

lock(pytest.MonkeyPatch(), Path(os.environ["LOCKED_CHECKPOINT"]))
