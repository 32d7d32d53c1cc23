"""Implementations of the steps around the dense attention call, and the choice between them."""

from types import ModuleType

import torch

from lighthouse.ops import reference

IMPLEMENTATIONS: dict[str, ModuleType] = {"reference": reference}


def implementation(impl: str, device: torch.device) -> ModuleType:
    """The module that provides ``norm_scores``, ``select``, ``gather`` and ``scatter``.

    Args:
        impl: a name in ``IMPLEMENTATIONS``, or ``"auto"`` for the fastest one for ``device``.

    Raises:
        ValueError: for an unknown name. A named implementation is never replaced by another.
    """
    if impl == "auto":
        return reference
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl = {impl!r}: must be one of auto, {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[impl]
