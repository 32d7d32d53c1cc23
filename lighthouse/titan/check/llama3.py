"""Checks of what a Llama-3 can be trained as: its sizes, optimizer, loss and ring."""

from typing import TYPE_CHECKING, Any

from lighthouse.config import nearest_multiple
from lighthouse.titan.distributed.layout import EXPERT_DEGREES
from lighthouse.titan.llama3.flavors import BYTE_VOCAB_SIZE
from lighthouse.titan.llama3.model_args import model_args_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

    from lighthouse.titan.check.job import Machine

OPTIMIZERS = ("Adam", "AdamW")


def check_llama3(job_config: "JobConfig", machine: "Machine") -> None:
    """Refuse what a Llama-3, or another model in its place, could not do.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    name = job_config.model.name
    if job_config.model.tokenizer == "byte" and name != "llama3":
        raise ValueError(
            f"model.tokenizer = 'byte': model.name = {name!r} does not take it; use 'hf' there, or "
            "model.name = 'llama3'"
        )
    for key, part in (("loss_chunk_tokens", "loss"), ("ffn_chunk_tokens", "feed-forward")):
        if (chunk_tokens := getattr(job_config.training, key)) and name != "llama3":
            raise ValueError(
                f"training.{key} = {chunk_tokens}: model.name = {name!r} has no such {part}; use 0"
            )
    if name != "llama3":
        return
    model_args = model_args_of(job_config)
    _check_optimizer(job_config.optimizer)
    check_split(job_config, model_args)
    _check_balancer(job_config, model_args)
    _check_ring(job_config, model_args, machine.device)
    if job_config.model.tokenizer == "byte":
        _check_byte_vocabulary(job_config, model_args)
    if job_config.training.loss_chunk_tokens:
        _check_chunked_loss(job_config, model_args)
    if job_config.training.ffn_chunk_tokens:
        _check_chunked_ffn(job_config)
    _warn_of_pipeline(job_config)


def _check_optimizer(section: Any) -> None:
    if section.name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer.name = {section.name!r}: must be one of {', '.join(OPTIMIZERS)}"
        )


def check_split(job_config: "JobConfig", model_args: Any) -> None:
    """Refuse a layout that the model or its sequences can't be split into.

    Args:
        model_args: of the model that it names.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    section = job_config.parallelism
    for key in EXPERT_DEGREES:
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
    lengths = {"training": job_config.training.seq_len}
    if job_config.validation.enable:
        lengths["validation"] = job_config.validation.seq_len
    for name, length in lengths.items():
        if length % pieces:
            raise ValueError(
                f"{name}.seq_len = {length}: must be a multiple of {pieces}, which is "
                "tensor_parallel_degree * 2 * context_parallel_degree; nearest is "
                f"{nearest_multiple(length, pieces)}"
            )


def _check_balancer(job_config: "JobConfig", model_args: Any) -> None:
    parallelism = job_config.parallelism
    balancer = parallelism.context_parallel_load_balancer
    flexible = model_args.attn_type == "flex"
    known = ["headtail", *(["ptrr"] if flexible else []), None]
    if parallelism.context_parallel_degree > 1 and balancer not in known:
        names = ", ".join(repr(name or "none") for name in known)
        raise ValueError(
            f"parallelism.context_parallel_load_balancer = {balancer!r}: must be one of {names}, "
            f"with the attention of model.flavor = {job_config.model.flavor!r}"
        )


def _check_ring(job_config: "JobConfig", model_args: Any, device: str) -> None:
    """Ring attention has handlers for fused kernels alone, and those of GPUs take no float32."""
    degree, dtype = (
        job_config.parallelism.context_parallel_degree,
        job_config.training.mixed_precision_param,
    )
    fused = device == "cpu" or dtype != "float32"
    if degree > 1 and not fused and model_args.attn_type == "sdpa":
        raise ValueError(
            f"training.mixed_precision_param = {dtype!r}: ring attention, which "
            f"parallelism.context_parallel_degree = {degree} asks for, has no kernel for it on a "
            "GPU; use 'bfloat16'"
        )


def _check_byte_vocabulary(job_config: "JobConfig", model_args: Any) -> None:
    vocab_size = model_args.vocab_size
    if vocab_size < BYTE_VOCAB_SIZE:
        raise ValueError(
            f"model.flavor = {job_config.model.flavor!r}: its vocabulary of {vocab_size} is "
            f"smaller than the byte tokenizer's {BYTE_VOCAB_SIZE}; use 530M_byte or tiny_byte, or "
            f"model.args.vocab_size = {BYTE_VOCAB_SIZE}"
        )


def _check_chunked_loss(job_config: "JobConfig", model_args: Any) -> None:
    chunk_tokens, parallelism = job_config.training.loss_chunk_tokens, job_config.parallelism
    key = f"training.loss_chunk_tokens = {chunk_tokens}"
    if chunk_tokens < 0:
        raise ValueError(f"{key}: must be a number of tokens, or 0 for all of them at once")
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
    if converted and model_args.vocab_size % 16 == 0 and model_args.dim % 16 == 0:
        raise ValueError(
            f"{key}: needs the output layer as it is, which model.converters = "
            f"{job_config.model.converters} replaces; use 0, or add 'output' to "
            "quantize.linear.float8.filter_fqns"
        )


def _check_chunked_ffn(job_config: "JobConfig") -> None:
    chunk_tokens = job_config.training.ffn_chunk_tokens
    key, tensor = (
        f"training.ffn_chunk_tokens = {chunk_tokens}",
        job_config.parallelism.tensor_parallel_degree,
    )
    if chunk_tokens < 0:
        raise ValueError(f"{key}: must be a number of tokens, or 0 for all of them at once")
    if tensor > 1:
        raise ValueError(
            f"{key}: needs the whole feed-forward on each rank, which "
            f"parallelism.tensor_parallel_degree = {tensor} splits; use 0"
        )
    if any(name.startswith("quantize.linear") for name in job_config.model.converters):
        raise ValueError(
            f"{key}: needs the feed-forward's layers as they are, which model.converters = "
            f"{job_config.model.converters} replaces; use 0"
        )


def _warn_of_pipeline(job_config: "JobConfig") -> None:
    from torchtitan.tools.logging import logger

    degree = job_config.parallelism.pipeline_parallel_degree
    if degree > 1:
        logger.warning(
            f"parallelism.pipeline_parallel_degree = {degree}: torchtitan 0.2.2 leaves gradients "
            "undivided by the number of tokens there, so grad_norm is that much too large and "
            "clipping cuts them all; such a run is no baseline for one without a pipeline"
        )
