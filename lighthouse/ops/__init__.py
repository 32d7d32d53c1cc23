"""Implementations of the steps around the dense attention call, and the choice between them."""

from typing import Protocol

import torch
from torch import Tensor

from lighthouse.config import LighthouseConfig
from lighthouse.inputs import QKV
from lighthouse.pyramid import Selection

IMPLEMENTATIONS = ("reference", "triton")


class Implementation(Protocol):
    """What an implementation does: a module with these functions.

    :mod:`lighthouse.ops.reference` documents them.
    """

    def summarize(
        self, qkv: QKV, config: LighthouseConfig, *, scored: bool
    ) -> tuple[QKV, tuple[Tensor, Tensor] | None]: ...

    def select(
        self,
        query_maxima_BHE: Tensor,
        key_maxima_BKE: Tensor,
        config: LighthouseConfig,
        first_token_BC: Tensor | None = None,
    ) -> Selection: ...

    def gather(
        self, qkv: QKV, coarsest: QKV, selection: Selection, config: LighthouseConfig
    ) -> QKV: ...

    def scatter(
        self, rows_BHSD: Tensor, selection: Selection, like_BHND: Tensor, config: LighthouseConfig
    ) -> Tensor: ...


def implementation(impl: str, device: torch.device, dtype: torch.dtype) -> Implementation:
    """The one that is to do the work.

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
    if not triton.runs_on(device):
        raise ValueError(
            f"impl = {impl!r}: the Triton kernels need a GPU, and this is {device.type!r}; use "
            "'reference' or 'auto'"
        )
    raise ValueError(
        f"impl = {impl!r}: the Triton kernels have {', '.join(map(str, triton.DTYPES))}, got "
        f"{dtype}; use 'reference' or 'auto'"
    )


def check_name(impl: str) -> None:
    """Refuse an unknown implementation.

    Raises:
        ValueError: naming it and those that there are.
    """
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl = {impl!r}: must be one of auto, {', '.join(IMPLEMENTATIONS)}")
