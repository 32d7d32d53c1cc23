"""What a planned step's memory leaves room for, and which key makes its largest part smaller."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lighthouse.cost.memory import memory
from lighthouse.cost.rates import Rates
from lighthouse.cost.sizes import Layout, Model, Work

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


_FFN_CHUNK = 16384
"""Tokens of a chunk that keep a GPU busy, and of which a large model's hidden layer is small."""


def largest_local_batch(model: Model, layout: Layout, work: Work, rates: Rates) -> int:
    """Sequences of a micro-batch that fit into the device's memory; 0 where one does not."""

    def fits(batch: int) -> bool:
        tried = replace(work, local_batch=batch)
        return sum(memory(model, layout, tried, rates).values()) <= rates.memory

    if not fits(1):
        return 0
    least, most = 1, 2
    while fits(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def largest_part(gib_by_part: Mapping[str, float], job: "JobConfig", layout: Layout) -> str:
    """The largest part of a stage's memory, and what would make it smaller, in a sentence.

    Args:
        gib_by_part: of :func:`lighthouse.cost.memory.memory`.
        job: the stage's configuration.
        layout: of the run.
    """
    part = max(gib_by_part, key=lambda name: gib_by_part[name])
    return (
        f"{part} are the largest part, {gib_by_part[part]:.1f} GiB: {_smaller(part, job, layout)}"
    )


def _smaller(part: str, job: "JobConfig", layout: Layout) -> str:
    training, mode = job.training, job.activation_checkpoint.mode
    split = f"parallelism.tensor_parallel_degree = {2 * layout.tp}"
    if part == "logits":
        if layout.tp > 1:  # which excludes chunks of the loss
            return f"{split} makes them smaller"
        chunk = min(1024, training.loss_chunk_tokens // 2 or 1024)
        return f"training.loss_chunk_tokens = {chunk} makes them smaller"
    if part in ("activations", "block inputs"):
        if mode != "full":
            return 'activation_checkpoint.mode = "full" makes them smaller'
        if training.local_batch_size > 1:
            return f"training.local_batch_size = {training.local_batch_size // 2} halves them"
        if part == "block inputs" and not job.activation_checkpoint.offload and layout.tp == 1:
            return "activation_checkpoint.offload = true moves them to the host"
        is_long = training.seq_len / layout.cp > 2 * _FFN_CHUNK
        if part == "activations" and not training.ffn_chunk_tokens and layout.tp == 1 and is_long:
            return f"training.ffn_chunk_tokens = {_FFN_CHUNK} makes them smaller"
        return f"parallelism.context_parallel_degree = {2 * layout.cp} halves them"
    if part == "parameters and optimizer" and layout.dp_replicate > 1:
        return "parallelism.data_parallel_replicate_degree = 1 shards them more"
    if training.ffn_chunk_tokens or job.activation_checkpoint.offload:  # not with split weights
        return "more GPUs make them smaller"
    return f"more GPUs, or {split}, make them smaller"
