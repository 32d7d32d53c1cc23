"""Checks across sections of a job's configuration, before a model or process group exists."""

import importlib
import importlib.util
import os
from typing import Any

import torch

from lighthouse.config import nearest_multiple
from lighthouse.ops import implementation
from lighthouse.titan.bounds import check_numbers
from lighthouse.titan.config import layer_configs, num_chunks
from lighthouse.titan.flavors import BYTE_VOCAB_SIZE
from lighthouse.titan.layout import check_layout, check_model_fits, layout_of
from lighthouse.titan.text_files import check_text

OPTIMIZERS = ("Adam", "AdamW")
STATES = ("model", "optimizer", "lr_scheduler", "dataloader", "train_state")
"""What a checkpoint consists of."""


def validate(job_config: Any, this_machine: bool = True) -> None:
    """Refuse a job that could not run, or whose checkpoints could not be resumed.

    Args:
        job_config: torchtitan's ``JobConfig``, merged from TOML and command line.
        this_machine: the job is to run here, so its device, what is installed, and the number of
            processes that torchrun started must suit it. False for a dry run of a job elsewhere.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    if job_config.experimental.custom_import:
        _import(job_config.experimental.custom_import)
    check_numbers(job_config)
    _check_compiler(job_config.compile)
    _check_loading(job_config)
    check_layout(job_config)
    if job_config.model.name == "llama3":
        _check_optimizer(job_config.optimizer)
        check_model_fits(job_config, _flavor_args(job_config))
        _check_balancer(job_config)
        _warn_of_pipeline(job_config)
    _check_reports(job_config)
    if this_machine:
        from torchtitan.tools.utils import device_type

        _check_device(job_config, device_type)
        if job_config.model.name == "llama3":
            check_ring(job_config, device_type)
            _check_texts(job_config)
        # Absent where a configuration is read but not run; fake process groups ignore it.
        if "WORLD_SIZE" in os.environ and job_config.comm.mode == "default":
            _check_processes(job_config, int(os.environ["WORLD_SIZE"]))
    if job_config.lighthouse.enable:
        _check_lighthouse(job_config, this_machine)
        _check_stage_can_be_resumed(job_config)
    if job_config.model.tokenizer == "byte":
        _check_byte_vocabulary(job_config)
    if job_config.training.loss_chunk_tokens:
        _check_chunked_loss(job_config)


def _import(module: str) -> None:
    """What the trainer is about to import; what it registers, such as flavors, is checked too."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"experimental.custom_import = {module!r}: {error}") from error


def _check_optimizer(section: Any) -> None:
    if section.name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name = {section.name!r}: must be one of {', '.join(OPTIMIZERS)}"
        )


def _check_compiler(section: Any) -> None:
    # The list is torch._dynamo's, which takes long to import.
    if section.enable and section.backend != "inductor":
        known = torch.compiler.list_backends(exclude_tags=())
        if section.backend not in known:
            raise ValueError(
                f"compile.backend = {section.backend!r}: must be one of {', '.join(known)}"
            )


def _check_device(job_config: Any, device_type: str) -> None:
    if job_config.training.enable_cpu_offload and device_type == "cpu":
        raise ValueError(
            "training.enable_cpu_offload = true: there is no accelerator to offload from; use false"
        )
    if job_config.profiling.enable_memory_snapshot and device_type == "cpu":
        raise ValueError(
            "profiling.enable_memory_snapshot = true: needs an accelerator, since the CPU's "
            "allocator keeps no history; set it to false (profiling.enable_profiling works)"
        )


def _check_texts(job_config: Any) -> None:
    sections = {"training": job_config.training}
    if job_config.validation.enable:
        sections["validation"] = job_config.validation
    for name, section in sections.items():
        check_text(name, section.dataset.lower(), section.dataset_path)


def check_ring(job_config: Any, device_type: str) -> None:
    """Refuse a Llama's ring attention for which a device has no kernel.

    It has handlers for fused kernels alone, and those of GPUs take no float32.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    degree, dtype = (
        job_config.parallelism.context_parallel_degree,
        job_config.training.mixed_precision_param,
    )
    fused = device_type == "cpu" or dtype != "float32"
    if degree > 1 and not fused and _flavor_args(job_config).attn_type == "sdpa":
        raise ValueError(
            f"training.mixed_precision_param = {dtype!r}: ring attention, which "
            f"parallelism.context_parallel_degree = {degree} asks for, has no kernel for it on a "
            "GPU; use 'bfloat16'"
        )


def _check_processes(job_config: Any, processes: int) -> None:
    if job_config.checkpoint.create_seed_checkpoint and processes > 1:
        raise ValueError(
            f"checkpoint.create_seed_checkpoint = true: is for one process, and this is one of "
            f"{processes}; start it with torchrun --nproc_per_node=1"
        )
    layout_of(job_config, processes)


def _flavor_args(job_config: Any) -> Any:
    """The model arguments of the job's flavor."""
    from torchtitan.protocols.train_spec import get_train_spec

    known = get_train_spec(job_config.model.name).model_args
    if job_config.model.flavor not in known:
        raise ValueError(
            f"model.flavor = {job_config.model.flavor!r}: must be one of {', '.join(known)}"
        )
    return known[job_config.model.flavor]


def _check_byte_vocabulary(job_config: Any) -> None:
    if job_config.model.name != "llama3":
        raise ValueError(
            f"model.tokenizer = 'byte': model.name = {job_config.model.name!r} does not take it; "
            "use 'hf' there, or model.name = 'llama3'"
        )
    vocab_size = _flavor_args(job_config).vocab_size
    if vocab_size < BYTE_VOCAB_SIZE:
        raise ValueError(
            f"model.flavor = {job_config.model.flavor!r}: its vocabulary of {vocab_size} is "
            f"smaller than the byte tokenizer's {BYTE_VOCAB_SIZE}; use 530M_byte or tiny_byte"
        )


def _check_chunked_loss(job_config: Any) -> None:
    chunk_tokens, parallelism = job_config.training.loss_chunk_tokens, job_config.parallelism
    key = f"training.loss_chunk_tokens = {chunk_tokens}"
    if chunk_tokens < 0:
        raise ValueError(f"{key}: must be a number of tokens, or 0 for all of them at once")
    if job_config.model.name != "llama3":
        raise ValueError(f"{key}: model.name = {job_config.model.name!r} has no such loss; use 0")
    for degree in ("tensor_parallel_degree", "pipeline_parallel_degree"):
        if getattr(parallelism, degree) > 1:
            raise ValueError(
                f"{key}: needs the whole output layer on each rank, which "
                f"parallelism.{degree} = {getattr(parallelism, degree)} splits; use 0"
            )
    converted = "quantize.linear.float8" in job_config.model.converters and not any(
        name in "output" for name in job_config.quantize.linear.float8.filter_fqns
    )
    # Of sides that are no multiples of 16 a layer is left as it is.
    sizes = _flavor_args(job_config)
    if converted and sizes.vocab_size % 16 == 0 and sizes.dim % 16 == 0:
        raise ValueError(
            f"{key}: needs the output layer as it is, which model.converters = "
            f"{job_config.model.converters} replaces; use 0, or add 'output' to "
            "quantize.linear.float8.filter_fqns"
        )


def _check_lighthouse(job_config: Any, this_machine: bool) -> None:
    section = job_config.lighthouse
    if job_config.model.name != "llama3":
        raise ValueError(
            f"model.name = {job_config.model.name!r}: lighthouse.enable needs 'llama3'"
        )
    model_args = _flavor_args(job_config)
    if model_args.attn_type != "sdpa" or model_args.attn_mask_type != "causal":
        raise ValueError(
            f"model.flavor = {job_config.model.flavor!r}: has {model_args.attn_type} attention "
            f"under a {model_args.attn_mask_type} mask; lighthouse.enable needs sdpa attention "
            "under the plain causal mask, for instance a flavor without _flex or _varlen"
        )
    chunks = num_chunks(section, job_config.parallelism)
    configs = layer_configs(section, model_args.n_layers, job_config.training.seq_len, chunks)
    if this_machine:
        _check_implementation(section.impl, any(c and c.scorer == "gla" for c in configs))
    if job_config.validation.enable:
        length = job_config.validation.seq_len
        layer_configs(section, model_args.n_layers, length, chunks, "validation")
    if section.dense_from_step is not None and section.dense_from_step < 1:
        raise ValueError(
            f"lighthouse.dense_from_step = {section.dense_from_step}: steps count from 1; "
            "leave it out to stay in the Lighthouse stage"
        )
    degree = job_config.parallelism.pipeline_parallel_degree
    if degree > 1:
        raise ValueError(
            f"parallelism.pipeline_parallel_degree = {degree}: lighthouse.enable is not available "
            "under pipeline parallelism, where torchtitan 0.2.2 leaves gradients undivided by the "
            "number of tokens and clipping cuts them all; use 1, with data or tensor parallelism"
        )


def _check_balancer(job_config: Any) -> None:
    parallelism = job_config.parallelism
    balancer = parallelism.context_parallel_load_balancer
    flexible = _flavor_args(job_config).attn_type == "flex"
    known = ["headtail", *(["ptrr"] if flexible else []), None]
    if parallelism.context_parallel_degree > 1 and balancer not in known:
        names = ", ".join(repr(name or "none") for name in known)
        raise ValueError(
            f"parallelism.context_parallel_load_balancer = {balancer!r}: must be one of {names}, "
            f"with the attention of model.flavor = {job_config.model.flavor!r}"
        )


def _warn_of_pipeline(job_config: Any) -> None:
    from torchtitan.tools.logging import logger

    degree = job_config.parallelism.pipeline_parallel_degree
    if degree > 1:
        logger.warning(
            f"parallelism.pipeline_parallel_degree = {degree}: torchtitan 0.2.2 leaves gradients "
            "undivided by the number of tokens there, so grad_norm is that much too large and "
            "clipping cuts them all; such a run is no baseline for one without a pipeline"
        )


def _check_reports(job_config: Any) -> None:
    section, log_freq = job_config.lighthouse, job_config.metrics.log_freq
    if section.validate_leak < 0:
        raise ValueError(
            f"lighthouse.validate_leak = {section.validate_leak}: must be a number of pairs of "
            "batches, or 0 for none"
        )
    for key in ("validate_dense", "validate_leak"):
        value = getattr(section, key)
        if value and not job_config.validation.enable:
            raise ValueError(
                f"lighthouse.{key} = {str(value).lower()}: validation.enable is false, so nothing "
                "would be validated; set validation.enable = true"
            )
    validation = job_config.validation
    if section.validate_leak and validation.steps * validation.local_batch_size == 1:
        raise ValueError(
            "lighthouse.validate_leak: validation.steps * validation.local_batch_size = 1 sequence "
            "has no other one to take another future from; use 2 or more"
        )
    freq = section.selection_log_freq
    if freq < 0 or (freq and freq % log_freq):
        raise ValueError(
            f"lighthouse.selection_log_freq = {freq}: must be 0 for none, or a multiple of "
            f"metrics.log_freq = {log_freq}, at whose steps metrics are written; nearest is "
            f"{nearest_multiple(freq, log_freq) if freq > 0 else 0}"
        )


def _check_implementation(impl: str, uses_gla: bool) -> None:
    from torchtitan.tools.utils import device_type

    try:
        implementation(impl, torch.device(device_type), torch.bfloat16)
    except ValueError as error:
        raise ValueError(f"lighthouse.{error}") from None
    if uses_gla and device_type != "cpu" and importlib.util.find_spec("fla") is None:
        raise ValueError(
            "lighthouse.scorer = 'gla': needs fla-core on a GPU; "
            "pip install 'lighthouse-attention[gla]', or use 'norm' or 'dilated'"
        )


def _check_stage_can_be_resumed(job_config: Any) -> None:
    """A run that ends in the Lighthouse stage is meant to be resumed under dense attention."""
    section, checkpoint = job_config.lighthouse, job_config.checkpoint
    steps = job_config.training.steps
    ends_dense = section.dense_from_step is not None and section.dense_from_step <= steps
    saves = checkpoint.enable and not checkpoint.load_only and not checkpoint.create_seed_checkpoint
    if ends_dense or not saves:
        return
    if checkpoint.last_save_model_only:
        raise ValueError(
            "checkpoint.last_save_model_only = true: this run ends in the Lighthouse stage and its "
            "last checkpoint could not be resumed under dense attention; set it to false"
        )
    if job_config.lr_scheduler.total_steps is None:
        raise ValueError(
            "lr_scheduler.total_steps is not set: this run ends in the Lighthouse stage at step "
            f"{steps}, and the dense stage would resume on a schedule that has already ended; set "
            "it to the number of steps of both stages together"
        )


def _check_loading(job_config: Any) -> None:
    excluded = job_config.checkpoint.exclude_from_loading
    unknown = [state for state in excluded if state not in STATES]
    if unknown:
        raise ValueError(
            f"checkpoint.exclude_from_loading = {excluded}: a checkpoint has no "
            f"{', '.join(map(repr, unknown))}, but {', '.join(STATES)}"
        )
    if "lr_scheduler" in excluded and "optimizer" not in excluded:
        raise ValueError(
            f"checkpoint.exclude_from_loading = {excluded}: without 'optimizer' the checkpoint's "
            "learning rate stays for a step while warmup restarts; exclude both or none"
        )
    if job_config.checkpoint.create_seed_checkpoint and not job_config.checkpoint.enable:
        raise ValueError(
            "checkpoint.create_seed_checkpoint = true: needs checkpoint.enable = true to save it"
        )
