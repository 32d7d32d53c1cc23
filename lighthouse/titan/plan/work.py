"""A job in the terms of ``lighthouse/cost/``, and what these do not cover of it."""

from typing import TYPE_CHECKING

from lighthouse.cost.rates import CPU, devices
from lighthouse.cost.sizes import Layout, Model, Work
from lighthouse.titan.check.converters import FLOAT8
from lighthouse.titan.config.section import LayerConfig
from lighthouse.titan.distributed.layout import accumulation_steps
from lighthouse.titan.llama3.description import ffn_dim
from lighthouse.titan.llama3.model_args import model_args_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def work_of(
    job_config: "JobConfig",
    layout: Layout,
    attention: tuple[LayerConfig, ...],
    pairs_left: float | None = None,
) -> Work:
    """A step of a stage, whose configuration this is, with the attention of each layer.

    Args:
        pairs_left: as in :class:`Work`.
    """
    training = job_config.training
    checkpoint = job_config.activation_checkpoint
    selective = checkpoint.mode == "selective"
    element, residual = _activation_bytes(job_config, layout)
    return Work(
        seq_len=training.seq_len,
        attention=attention,
        local_batch=training.local_batch_size,
        accumulation=accumulation_steps(job_config, layout),
        checkpointing=checkpoint.selective_ac_option if selective else checkpoint.mode,
        loss_chunk_tokens=training.loss_chunk_tokens,
        ffn_chunk_tokens=training.ffn_chunk_tokens,
        offload=checkpoint.offload,
        element_bytes=element,
        residual_bytes=residual,
        reshard=job_config.parallelism.fsdp_reshard_after_forward != "never",
        float8=FLOAT8 in job_config.model.converters,
        pairs_left=pairs_left,
    )


def _activation_bytes(job_config: "JobConfig", layout: Layout) -> tuple[int, int]:
    """Of activations, and of the residual stream, as torchtitan's mixed precision has them."""
    if job_config.training.mixed_precision_param == "float32":
        return 4, 4
    if layout.gpus > 1 or job_config.parallelism.fsdp_on_one_rank:
        return 2, 2
    return 2, 4  # autocast


def model_of(job_config: "JobConfig") -> Model:
    """The sizes of a job's llama3."""
    args = model_args_of(job_config)
    return Model(
        dim=args.dim,
        layers=args.n_layers,
        heads=args.n_heads,
        kv_heads=args.n_kv_heads or args.n_heads,
        ffn_dim=ffn_dim(args),
        vocab_size=args.vocab_size,
        tied=args.tied,
    )


def why_not_estimated(job_config: "JobConfig", device: str) -> str | None:
    """The reason, in a sentence; None for a job that is estimated."""
    if device == CPU:
        return "no estimate: there are no rates of CPUs"
    if device not in devices():
        return f"no estimate: there are no rates of {device!r}, only of {', '.join(devices())}"
    not_modelled = {
        "model.name": (job_config.model.name, ("llama3",)),
        "parallelism.pipeline_parallel_degree": (
            job_config.parallelism.pipeline_parallel_degree,
            (1,),
        ),
        "activation_checkpoint.mode": (
            job_config.activation_checkpoint.mode,
            ("none", "selective", "full"),
        ),
    }
    for key, (value, covered) in not_modelled.items():
        if value not in covered:
            return f"no estimate: it does not cover {key} = {value!r}"
    return None


def remarks(job_config: "JobConfig", surveyed: bool = False) -> tuple[str, ...]:
    """What an estimate does not know of the job, a sentence each.

    Args:
        surveyed: whether it is known what documents leave of attention.
    """
    found: list[str] = []
    if job_config.training.document_mask and not surveyed:
        found.append(
            "training.document_mask = true: attention is counted as if each sequence were one "
            "document; --survey says what documents leave of it"
        )
    if not job_config.compile.enable:
        found.append("compile.enable = false: the rates are those of compiled blocks")
    if job_config.training.mixed_precision_param == "float32":
        found.append("training.mixed_precision_param = 'float32': the rates are those of bfloat16")
    others = [name for name in job_config.model.converters if name != FLOAT8]
    if others:
        found.append(f"model.converters = {others}: estimated as if there were none")
    if FLOAT8 in job_config.model.converters:
        found.append(f"model.converters = ['{FLOAT8}']: memory is estimated as without")
    if job_config.training.enable_cpu_offload:
        found.append("training.enable_cpu_offload = true: estimated as if it were false")
    return tuple(found)
