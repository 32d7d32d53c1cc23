"""Lighthouse Attention: hierarchical top-k selection around stock dense attention, for training.

The method needs PyTorch alone; :mod:`lighthouse.titan` connects it to torchtitan and is the only
importer of it, and :mod:`lighthouse.sweep` starts many runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lighthouse.attention import LighthouseAttention as LighthouseAttention
    from lighthouse.attention import lighthouse_attention as lighthouse_attention
    from lighthouse.config import LighthouseConfig as LighthouseConfig
    from lighthouse.config import WindowConfig as WindowConfig
    from lighthouse.selection import Selection as Selection
    from lighthouse.selection import select as select
    from lighthouse.window import window_attention as window_attention

_MODULES = {
    "LighthouseAttention": "attention",
    "LighthouseConfig": "config",
    "Selection": "selection",
    "WindowConfig": "config",
    "lighthouse_attention": "attention",
    "select": "selection",
    "window_attention": "window",
}

__all__ = ["__version__", *_MODULES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # When first asked for: `lighthouse.sweep` and `lighthouse.report` do without PyTorch, which
    # takes long to import on a cluster's login node.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
