"""Imported by a job: its model fails at sequences of 128 tokens, as one without memory would.

A configuration that names this module is also planned, in the process of the tests: no model is to
fail there.
"""

import os
from typing import Any

from torch import Tensor
from torchtitan.models.llama3 import Transformer

_forward = Transformer.forward


def _fail(self: Transformer, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if tokens.shape[1] == 128:
        raise RuntimeError("128 tokens are too many")
    return _forward(self, tokens, *args, **kwargs)


if "RANK" in os.environ:
    Transformer.forward = _fail
