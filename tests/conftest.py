"""Settings shared by all tests."""

import os

import torch
from hypothesis import settings

# Without a GPU the kernels run under Triton's interpreter, which is chosen when Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples on every run and machine, and no example database in the working tree.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")
