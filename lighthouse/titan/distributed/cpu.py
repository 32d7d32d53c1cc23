"""What training on CPUs needs beyond upstream, which assumes an accelerator.

The patched torchtitan calls these functions; none of them does anything on another device. This
module imports nothing of torchtitan, because torchtitan's own lowest modules import it.
"""

import os
import platform
import resource
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental._context_parallel._attention import (
    _templated_ring_attention,
    _templated_ring_attention_backward,
)

from lighthouse.cost.memory import GIB

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

# Attention works on (B, H, N, D) and its log-sum-exp on (B, H, N): the sequence is dimension 2.
_SEQ_DIM = 2


# Memory -------------------------------------------------------------------------------------------


class HostMemoryStats(NamedTuple):
    """The fields of torchtitan's DeviceMemStats, which its loggers read by name."""

    max_active_gib: float
    max_active_pct: float
    max_reserved_gib: float
    max_reserved_pct: float
    num_alloc_retries: int
    num_ooms: int


class HostMemoryMonitor:
    """Stands in for torchtitan's DeviceMemoryMonitor, whose statistics torch.cpu does not have.

    Args:
        device: Ignored; the constructor's form is upstream's.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device_name = platform.processor() or platform.machine()
        self.device_capacity = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.device_capacity_gib = self.device_capacity / GIB

    def get_peak_stats(self) -> HostMemoryStats:
        """Peak resident memory of this process since it began; both "active" and "reserved"."""
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        gib, percent = peak / GIB, 100 * peak / self.device_capacity
        return HostMemoryStats(gib, percent, gib, percent, num_alloc_retries=0, num_ooms=0)

    def reset_peak_stats(self) -> None:
        """Do nothing: the operating system's peak is that of the whole process."""


# Random numbers -----------------------------------------------------------------------------------


def distinct_seed_mesh_dims(device_type: str) -> list[str]:
    """Mesh dimensions whose ranks need seeds of their own.

    Upstream names "pp" and leaves the ranks that share a layer to DTensor, which draws each shard
    from its place in one stream. DTensor has no such generator for CPUs: with one seed, every shard
    of a weight would hold the same numbers. Ranks of "dp_replicate" hold copies and must agree.
    """
    return ["pp", "fsdp", "tp"] if device_type == "cpu" else ["pp"]


# Context parallelism ------------------------------------------------------------------------------


def enable_context_parallel(device_type: str) -> None:
    """Let context parallelism dispatch the CPU's flash attention to ring attention.

    torch registers handlers for the CUDA kernels only. To be called after
    `_enable_context_parallel_dispatcher`, which replaces the table of handlers.
    """
    if device_type == "cpu":
        dispatcher = DTensor._op_dispatcher
        dispatcher._custom_op_handlers = {
            **dispatcher._custom_op_handlers,
            _FLASH: _handler(_ring_forward),
            _FLASH_BACKWARD: _handler(_ring_backward),
        }


def _handler(ring: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[..., object]:
    """Make a DTensor op handler: run `ring` on the local shards, wrap what it returns alike."""

    def handle(
        op_call: object, args: Sequence[object], kwargs: dict[str, object]
    ) -> tuple[DTensor, ...]:
        sharded = next(value for value in args if isinstance(value, DTensor))
        mesh, placements = sharded.device_mesh, sharded.placements
        local = [value.to_local() if isinstance(value, DTensor) else value for value in args]
        results = ring(mesh, *local, **kwargs)
        return tuple(DTensor.from_local(x, mesh, placements, run_check=False) for x in results)

    return handle


def _ring_forward(
    mesh: DeviceMesh,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, ...]:
    assert attn_mask is None, "context parallelism shards causal attention without a mask"
    return _templated_ring_attention(
        mesh.get_group(),
        _SEQ_DIM,
        _FLASH,
        query=query,
        key=key,
        value=value,
        is_causal=is_causal,
        dropout_p=dropout_p,
        scale=scale,
    )


def _ring_backward(
    mesh: DeviceMesh,
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> tuple[torch.Tensor, ...]:
    assert attn_mask is None, "context parallelism shards causal attention without a mask"
    return _templated_ring_attention_backward(
        mesh.get_group(),
        _SEQ_DIM,
        _FLASH_BACKWARD,
        grad_out=grad_out,
        grad_out_name="grad_out",
        query=query,
        key=key,
        value=value,
        out=out,
        logsumexp=logsumexp,
        is_causal=is_causal,
        dropout_p=dropout_p,
        scale=scale,
    )
