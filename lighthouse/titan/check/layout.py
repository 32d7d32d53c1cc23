"""Checks of degrees, batch, activation checkpointing and compilation, whatever the model."""

import os
from typing import TYPE_CHECKING, Any

import torch

from lighthouse.titan.distributed.layout import DEGREES, EXPERT_DEGREES, layout_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

    from lighthouse.titan.check.job import Machine


def check_layout(job_config: "JobConfig", machine: "Machine") -> None:
    """Refuse settings that contradict each other or the number of processes.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    section, shard = job_config.parallelism, job_config.parallelism.data_parallel_shard_degree
    for key in (*DEGREES, *EXPERT_DEGREES):
        if getattr(section, key) < 1:
            raise ValueError(f"parallelism.{key} = {getattr(section, key)}: must be at least 1")
    if shard < 1 and shard != -1:
        raise ValueError(
            f"parallelism.data_parallel_shard_degree = {shard}: must be at least 1, or -1 to take "
            "all processes that the other degrees leave"
        )
    if section.pipeline_parallel_degree > 1:
        _check_pipeline(section, job_config.training.local_batch_size)
    _check_compiler(job_config.compile)
    compiles = job_config.compile.enable and "model" in job_config.compile.components
    tensor = section.tensor_parallel_degree
    if section.enable_async_tensor_parallel and (tensor == 1 or not compiles):
        raise ValueError(
            "parallelism.enable_async_tensor_parallel = true: needs tensor_parallel_degree > 1, "
            "compile.enable = true and 'model' among compile.components"
        )
    _check_activation_checkpoint(job_config.activation_checkpoint, compiles, tensor)
    _check_offload(job_config)
    _check_fake_processes(job_config.comm.mode, machine.here)
    # Fake process groups have as many processes as they like.
    if machine.processes is not None and job_config.comm.mode == "default":
        _check_processes(job_config, machine.processes)


def _check_fake_processes(mode: str, here: bool) -> None:
    told = os.environ.get("NGPU", "")
    if mode != "default" and here and not (told.isdecimal() and int(told)):
        raise ValueError(
            f"comm.mode = {mode!r}: the variable NGPU says how many processes there would be, and "
            f"it is {told!r}; set it to a number, or use comm.mode = 'default'"
        )


def _check_pipeline(section: Any, local_batch_size: int) -> None:
    # Not imported above: it takes long.
    from torch.distributed.pipelining.schedules import get_schedule_class

    name = section.pipeline_parallel_schedule
    try:
        get_schedule_class(name)
    except ValueError:
        raise ValueError(
            f"parallelism.pipeline_parallel_schedule = {name!r}: there is no such schedule; use "
            "'1F1B', 'Interleaved1F1B' or another one of torch.distributed.pipelining"
        ) from None
    for key in ("layers_per_stage", "microbatch_size"):
        value = getattr(section, f"pipeline_parallel_{key}")
        if value is not None and value < 1:
            raise ValueError(f"parallelism.pipeline_parallel_{key} = {value}: must be at least 1")
    for key in ("first_stage_less_layers", "last_stage_less_layers"):
        value = getattr(section, f"pipeline_parallel_{key}")
        if value < 0:
            raise ValueError(f"parallelism.pipeline_parallel_{key} = {value}: must not be negative")
    size = section.pipeline_parallel_microbatch_size
    if local_batch_size % size:
        raise ValueError(
            f"parallelism.pipeline_parallel_microbatch_size = {size}: must divide "
            f"training.local_batch_size = {local_batch_size}"
        )


def _check_compiler(section: Any) -> None:
    # The list is torch._dynamo's, which takes long to import.
    if section.enable and section.backend != "inductor":
        known = torch.compiler.list_backends(exclude_tags=())
        if section.backend not in known:
            raise ValueError(
                f"compile.backend = {section.backend!r}: must be one of {', '.join(known)}"
            )


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


def _check_offload(job_config: "JobConfig") -> None:
    section = job_config.activation_checkpoint
    if not section.offload:
        return
    key = "activation_checkpoint.offload = true"
    if section.mode != "full":
        raise ValueError(
            f"{key}: moves what activation_checkpoint.mode = 'full' keeps, and the mode is "
            f"{section.mode!r}; use that, or no offload"
        )
    if job_config.model.name != "llama3":
        raise ValueError(f"{key}: model.name = {job_config.model.name!r} has no such blocks")
    why = {
        "tensor_parallel_degree": "leaves a rank a part of a block's input, still on its way",
        "pipeline_parallel_degree": "runs a block forward again before its backward",
    }
    for degree, does in why.items():
        if (ranks := getattr(job_config.parallelism, degree)) > 1:
            raise ValueError(f"{key}: parallelism.{degree} = {ranks} {does}; use 1, or no offload")


def _check_processes(job_config: "JobConfig", processes: int) -> None:
    if job_config.checkpoint.create_seed_checkpoint and processes > 1:
        raise ValueError(
            f"checkpoint.create_seed_checkpoint = true: is for one process, and this is one of "
            f"{processes}; start it by NPROC=1 scripts/train.sh, or torchrun --nproc_per_node=1"
        )
    layout_of(job_config, processes)
