"""Checks of how a job is laid out: processes, batch, activation checkpointing, compilation."""

import math
from typing import Any

from lighthouse.config import nearest_multiple
from lighthouse.cost import Layout

_DEGREES = (
    "data_parallel_replicate_degree",
    "context_parallel_degree",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
)
"""With ``data_parallel_shard_degree``, what the number of processes is the product of."""

_EXPERT_DEGREES = ("expert_parallel_degree", "expert_tensor_parallel_degree")


def check_layout(job_config: Any) -> None:
    """Refuse settings that contradict each other, whatever the model and number of processes.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    section, shard = job_config.parallelism, job_config.parallelism.data_parallel_shard_degree
    for key in (*_DEGREES, *_EXPERT_DEGREES):
        if getattr(section, key) < 1:
            raise ValueError(f"parallelism.{key} = {getattr(section, key)}: must be at least 1")
    if shard < 1 and shard != -1:
        raise ValueError(
            f"parallelism.data_parallel_shard_degree = {shard}: must be at least 1, or -1 to take "
            "all processes that the other degrees leave"
        )
    compiles = job_config.compile.enable and "model" in job_config.compile.components
    tensor = section.tensor_parallel_degree
    if section.enable_async_tensor_parallel and (tensor == 1 or not compiles):
        raise ValueError(
            "parallelism.enable_async_tensor_parallel = true: needs tensor_parallel_degree > 1, "
            "compile.enable = true and 'model' among compile.components"
        )
    _check_activation_checkpoint(job_config.activation_checkpoint, compiles, tensor)


def _check_activation_checkpoint(section: Any, compiles: bool, tensor: int) -> None:
    option = section.selective_ac_option
    if section.mode == "selective" and option != "op" and not (option.isdecimal() and int(option)):
        raise ValueError(
            f"activation_checkpoint.selective_ac_option = {option!r}: must be 'op', or n for every "
            "n-th layer, such as '2'"
        )
    if section.mode == "memory_budget" and not compiles:
        raise ValueError(
            "activation_checkpoint.mode = 'memory_budget': is for the compiler to keep, so set "
            "compile.enable = true with 'model' among compile.components, or use 'selective'"
        )
    if section.mode == "memory_budget" and tensor > 1:
        raise ValueError(
            f"activation_checkpoint.mode = 'memory_budget': torch 2.13 fails to plan it under "
            f"parallelism.tensor_parallel_degree = {tensor}; use 'selective' or 'full'"
        )


def check_model_fits(job_config: Any, model_args: Any) -> None:
    """Refuse a layout that the Llama cannot be split into.

    Args:
        job_config: torchtitan's ``JobConfig``.
        model_args: the flavor's ``TransformerModelArgs``.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    section = job_config.parallelism
    for key in _EXPERT_DEGREES:
        if getattr(section, key) > 1:
            raise ValueError(
                f"parallelism.{key} = {getattr(section, key)}: llama3 has no experts; use 1"
            )
    tensor = section.tensor_parallel_degree
    heads = model_args.n_kv_heads or model_args.n_heads
    if heads % tensor:
        raise ValueError(
            f"parallelism.tensor_parallel_degree = {tensor}: must divide the {heads} key/value "
            f"heads of model.flavor = {job_config.model.flavor!r}"
        )
    # Context parallelism gives every rank a piece from either half of the sequence.
    pieces = tensor * 2 * section.context_parallel_degree
    seq_len = job_config.training.seq_len
    lengths = {"training": seq_len}
    if job_config.validation.enable:
        lengths["validation"] = job_config.validation.seq_len
    for name, length in lengths.items():
        if length % pieces:
            raise ValueError(
                f"{name}.seq_len = {length}: must be a multiple of {pieces}, which is "
                "tensor_parallel_degree * 2 * context_parallel_degree; nearest is "
                f"{nearest_multiple(length, pieces)}"
            )
        if length > seq_len:
            raise ValueError(
                f"{name}.seq_len = {length}: the model's positions end at training.seq_len = "
                f"{seq_len}; use at most that"
            )


def layout_of(job_config: Any, processes: int) -> Layout:
    """The degrees of a job on a number of processes, as torchtitan will take them.

    Args:
        job_config: torchtitan's ``JobConfig``, which passed ``check_layout``.
        processes: all of the job's, on all machines.

    Raises:
        ValueError: degrees that do not make up ``processes``, or a batch that they do not divide;
            names the key, its value and what would do.
    """
    section = job_config.parallelism
    degrees = {key: getattr(section, key) for key in _DEGREES}
    others = math.prod(degrees.values())
    shard = section.data_parallel_shard_degree
    if shard == -1:
        shard = max(1, processes // others)
    if shard * others != processes:
        named = "".join(f" * {key} {degree}" for key, degree in degrees.items() if degree > 1)
        raise ValueError(
            f"parallelism.data_parallel_shard_degree = {section.data_parallel_shard_degree}: "
            f"{shard}{named} = {shard * others} is not the number of processes, {processes}; "
            f"start {shard * others}, or set -1 and start a multiple of {others}"
        )
    layout = Layout(
        dp_replicate=section.data_parallel_replicate_degree,
        dp_shard=shard,
        cp=section.context_parallel_degree,
        tp=section.tensor_parallel_degree,
        pp=section.pipeline_parallel_degree,
    )
    training = job_config.training
    together, wanted = training.local_batch_size * layout.batch, training.global_batch_size
    if wanted == 0 or (wanted > 0 and wanted % together):
        raise ValueError(
            f"training.global_batch_size = {wanted}: must be a multiple of "
            f"training.local_batch_size * data-parallel ranks = {training.local_batch_size} * "
            f"{layout.batch}; nearest is {nearest_multiple(wanted, together)}"
        )
    return layout


def accumulation_steps(job_config: Any, layout: Layout) -> int:
    """Micro-batches in a step; ``layout`` is from :func:`layout_of`, so it divides."""
    training = job_config.training
    if training.global_batch_size < 0:
        return 1
    return training.global_batch_size // (training.local_batch_size * layout.batch)
