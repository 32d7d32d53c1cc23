"""What a result was measured with, for its file."""

import os
from typing import Any

import torch

from lighthouse.sweep import code


def commit() -> str:
    """The commit, "+" behind it if files differ; ``COMMIT`` names one for a copy of the tree."""
    return os.environ.get("COMMIT") or code.commit() or "unknown"


def gpu() -> dict[str, Any]:
    """Device, versions and commit."""
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "commit": commit(),
    }
