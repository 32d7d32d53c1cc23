"""Lighthouse Attention: hierarchical top-k selection around stock dense attention, for training.

The library (this package without :mod:`lighthouse.titan`) needs PyTorch alone;
:mod:`lighthouse.titan` connects it to torchtitan and is the only importer of it.
"""

from lighthouse.attention import LighthouseAttention, lighthouse_attention
from lighthouse.config import LighthouseConfig
from lighthouse.selection import Selection, select

__all__ = [
    "LighthouseAttention",
    "LighthouseConfig",
    "Selection",
    "lighthouse_attention",
    "select",
]
