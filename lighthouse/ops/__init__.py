"""Implementations of the steps around the dense attention call, and the choice between them.

An implementation is a module with ``summarize``, ``select``, ``gather`` and ``scatter``, as
:mod:`lighthouse.ops.reference` documents them.
"""

from types import ModuleType

import torch

IMPLEMENTATIONS = ("reference", "triton")


def implementation(impl: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module that is to do the work.

    Args:
        impl: a name in ``IMPLEMENTATIONS``, or ``"auto"``: Triton on GPUs for the dtypes it has,
            the reference otherwise.
        device: where the tensors are.
        dtype: theirs.

    Raises:
        ValueError: for an unknown name, and for Triton where it does not run. A named
            implementation is never replaced by another.
    """
    check_name(impl)
    if impl == "reference" or (impl == "auto" and device.type != "cuda"):
        from lighthouse.ops import reference

        return reference
    # Not imported above: Triton exists on Linux alone.
    from lighthouse.ops import triton

    if dtype in triton.DTYPES and triton.runs_on(device):
        return triton
    if impl == "auto":
        from lighthouse.ops import reference

        return reference
    raise ValueError(
        f"impl = {impl!r}: runs on GPUs with {', '.join(map(str, triton.DTYPES))}, got {dtype} on "
        f"{device}; use 'reference' or 'auto'"
    )


def check_name(impl: str) -> None:
    """Refuse an unknown implementation.

    Raises:
        ValueError: naming it and those that there are.
    """
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl = {impl!r}: must be one of auto, {', '.join(IMPLEMENTATIONS)}")
