"""Triton kernels for everything around the dense attention call, as PyTorch custom operators.

Every function has the signature of its namesake in ``lighthouse.ops.reference``.

    operator.py         registering a function as an operator
    tensors.py          launches for queries, keys and values at once
    geometry.py         a configuration as an operator's list of integers
    summarize.py        the one pass over all tokens: coarsest means, scores by norm
    select.py           the cascade and the order of the sub-sequence
    gather_scatter.py   two functions with gradients, out of two kernels, each serving one direction
                        forward and the other backward:
    windows.py            sums a window of tokens into a row:  gather forward,  scatter backward
    pull.py               sums a token's rows into the token:  scatter forward, gather backward

Each element of an output is computed by one program, in a fixed order of sums: nothing is added
into zeros, nothing is atomic, and results are the same on every run. Of ``slot`` alone only the
selected elements are computed, over a fill of -1.

Names in kernels: ``i_x`` indices of what the program works on, one or a tile; ``in_x`` the mask of
those that exist; ``b_x`` a tile of values; ``p_x`` pointers; capitals are compile-time constants, P
the pooling factor, L the levels, G the query heads of a key/value head.
"""

import torch
import triton

from lighthouse.ops.triton.gather_scatter import gather, scatter
from lighthouse.ops.triton.select import select
from lighthouse.ops.triton.summarize import summarize

__all__ = ["DTYPES", "INTERPRETED", "gather", "runs_on", "scatter", "select", "summarize"]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Triton decides at import; and torch.compile cannot trace a look-up of the setting.
INTERPRETED = triton.knobs.runtime.interpret


def runs_on(device: torch.device) -> bool:
    """Whether these kernels run there: on GPUs, and on CPUs under Triton's interpreter."""
    return device.type == "cuda" or INTERPRETED
