"""Imported by a training run (``experimental.custom_import``): gradients that are no numbers.

``NAN_IN_STEPS`` names the calls of clipping, from 1, before which the last rank's are.
"""

import os

from torch.distributed.tensor import DTensor
from torchtitan.distributed import utils

_steps = set(map(int, os.environ["NAN_IN_STEPS"].split()))
_clip = utils.clip_grad_norm_
_last_rank = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
_calls = 0


def clip(parameters, *args, **kwargs):
    global _calls
    _calls += 1
    if _calls in _steps and _last_rank:
        grad = next(iter(parameters)).grad
        (grad.to_local() if isinstance(grad, DTensor) else grad).mul_(float("nan"))
    return _clip(parameters, *args, **kwargs)


utils.clip_grad_norm_ = clip
