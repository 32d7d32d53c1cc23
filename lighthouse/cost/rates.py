"""What a device does a second: data, fitted to measurements by ``benchmarks/fit_cost.py``."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

RATES_FILE = Path(__file__).with_name("rates.json")

CPU = "cpu"
"""In the place of a device: without rates."""


@dataclass(frozen=True)
class Rates:
    """What a device does: per second in FLOPs and bytes, times in seconds, memory in bytes.

    Attributes:
        memory: bytes of the device that torch can have.
        matmul: FLOP/s of the linear layers.
        float8: FLOP/s of a layer's products in float8, as a multiple of that.
        elementwise: bytes/s of norms, rotary embedding, activation and loss in compiled blocks.
        casts: bytes/s of casts to float8, as a share of that.
        copy: bytes/s of the optimizer and of merging in the ring.
        attention_forward, attention_backward: FLOP/s of the causal kernel, the half under the mask
            not counted.
        attention_latency: seconds of a call of it beside that.
        documents: FLOP/s of the kernel for documents, as a share of that one's.
        documents_latency: seconds of a call of it beside that, forward; 2.5 times that backward.
        around: bytes/s of summarize, gather and scatter, each byte counted once.
        select: seconds of a selection.
        window: bytes/s of reversing and merging in windows, each byte counted once.
        dilated: FLOP/s of the ``dilated`` scorer's attention.
        gla: seconds per token and channel of the ``gla`` scorer.
        nvlink, network: bytes/s a GPU sends within a node and between nodes.
        host: bytes/s between a GPU and its host's memory, one way.
        node: GPUs of a node.
        activations: bytes held in fact over bytes counted, by checkpointing mode.
    """

    memory: float
    matmul: float
    float8: float
    elementwise: float
    casts: float
    copy: float
    attention_forward: float
    attention_backward: float
    attention_latency: float
    documents: float
    documents_latency: float
    around: float
    select: float
    window: float
    dilated: float
    gla: float
    nvlink: float
    network: float
    host: float
    node: int
    activations: dict[str, float]

    @property
    def peak(self) -> float:
        """FLOP/s of dense bfloat16 by the data sheet of an SXM5 board, which MFU is a share of."""
        return 989e12  # H100 and H200 alike, as torchtitan has them


@cache
def _rates_file() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RATES_FILE.read_text(encoding="utf-8"))
    return content["devices"]


def devices() -> list[str]:
    """Devices whose rates are known."""
    return list(_rates_file())


def load_rates(device: str) -> Rates:
    """The rates of a device, by its short name.

    Raises:
        ValueError: for a device without rates.
    """
    if device not in _rates_file():
        raise ValueError(f"device = {device!r}: must be one of {', '.join(devices())}")
    return Rates(**_rates_file()[device])
