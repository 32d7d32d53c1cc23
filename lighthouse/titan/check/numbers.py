"""Numbers of a job's configuration that would train nothing, or end deep inside the trainer."""

import math
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def check_numbers(job_config: "JobConfig") -> None:
    """Refuse numbers without a sense, of the sections in use.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    for key in _at_least_one(job_config):
        value = _value(job_config, key)
        if value < 1:
            raise ValueError(f"{key} = {value}: must be at least 1")
    for key, (is_sound, wanted) in _RANGES.items():
        value = _value(job_config, key)
        if value is not None and not is_sound(value):
            raise ValueError(f"{key} = {value}: must be {wanted}")
    _check_batches(job_config)
    validation = job_config.validation
    if validation.enable and validation.steps != -1 and validation.steps < 1:
        raise ValueError(
            f"validation.steps = {validation.steps}: must be at least 1, or -1 for all of the text"
        )
    if job_config.training.nonfinite == "skip" and job_config.optimizer.early_step_in_backward:
        raise ValueError(
            "training.nonfinite = 'skip': optimizer.early_step_in_backward = true updates weights "
            "before the gradient norm is known; use 'stop', or no early step"
        )
    _check_loaders(job_config)
    checkpoint, profiling = job_config.checkpoint, job_config.profiling
    if checkpoint.enable and checkpoint.keep_latest_k < 2 and checkpoint.keep_latest_k != 0:
        raise ValueError(
            f"checkpoint.keep_latest_k = {checkpoint.keep_latest_k}: must be at least 2, "
            "since one is being written while another is deleted, or 0 to keep all"
        )
    if checkpoint.enable and checkpoint.last_save_in_hf and not checkpoint.last_save_model_only:
        raise ValueError(
            "checkpoint.last_save_in_hf = true: that format has weights alone, and "
            "checkpoint.last_save_model_only = false; set it to true, or export the last "
            "checkpoint by python -m lighthouse.titan.export"
        )
    traced = profiling.profiler_warmup + profiling.profiler_active
    if profiling.enable_profiling and profiling.profile_freq < traced:
        raise ValueError(
            f"profiling.profile_freq = {profiling.profile_freq}: must be at least {traced}, the "
            "steps of profiling.profiler_warmup and profiling.profiler_active"
        )


def check_rate(job_config: "JobConfig") -> None:
    """Refuse a learning rate under which no weight could move, or none be left, in any stage.

    One under which a model merely diverges is not known before it has. One that moves no weight by
    a bit may be meant.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    optimizer, said = job_config.optimizer, f"optimizer.lr = {job_config.optimizer.lr}"
    rate = optimizer.lr
    if job_config.stages:
        factors = [table.get("lr_factor", 1.0) for table in job_config.stages]
        highest = max(factors)
        if highest != 1:
            said += f", times stages.{factors.index(highest) + 1}.lr_factor = {highest}"
            rate *= highest
    if not _LEAST <= rate <= _MOST:
        raise ValueError(
            f"{said}: a step moves a weight by about that, and float32 has no such weights; must "
            f"be at least {_LEAST} and at most {_MOST}, and is usually below 0.01"
        )
    decay = optimizer.weight_decay
    # A decay below 1 is small beside any rate that could train, which is then what is wrong.
    if optimizer.name == "AdamW" and decay >= 1 and decay * rate >= 1:
        raise ValueError(
            f"optimizer.weight_decay = {decay}: at {said} each step takes all of a weight away; "
            f"must be below {1 / rate:g}"
        )
    if decay >= _MOST**0.5:
        raise ValueError(
            f"optimizer.weight_decay = {decay}: is part of the gradients, whose squares float32 "
            f"does not hold then; must be below {_MOST**0.5:g}"
        )


def _value(job_config: "JobConfig", key: str) -> Any:
    return reduce(getattr, key.split("."), job_config)


def _is_below_one(value: float) -> bool:
    return 0 <= value < 1


def _is_share(value: float) -> bool:
    return 0 <= value <= 1


def _is_above_zero(value: float) -> bool:
    return 0 < value < math.inf


def _is_size(value: float) -> bool:
    return 0 <= value < math.inf


# What float32, in which weights and moments are, makes of a number: 0 below the first and infinite
# above the last; Adam takes squares of gradients, to which the one in the middle belongs.
_LEAST, _LEAST_SQUARED, _MOST = 1e-37, 1e-18, 1e38

_SHARE = (_is_share, "at least 0 and at most 1")
_SIZE = (_is_size, "a finite number, zero or more")
_ABOVE_ZERO = (_is_above_zero, "a finite number above 0")
_SECONDS = (lambda count: 1 <= count < 1 << 31, "at least 1 and below 2 ** 31 seconds")
_WORKERS = (lambda count: 0 <= count <= 1024, "at least 0 and at most 1,024 processes of a rank")
# What torch's generators take of any sign, and numbers that mean "random" elsewhere.
_SEED = (lambda seed: 0 <= seed < 1 << 63, "at least 0 and below 2 ** 63")
_BELOW_ONE = (_is_below_one, "at least 0 and below 1")

# NaN is in none of them. A key that is not set is not asked.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "training.task_rate": _BELOW_ONE,
    "training.max_norm": (
        lambda norm: norm >= _LEAST_SQUARED,
        f"at least {_LEAST_SQUARED}, since Adam takes the squares of what is left as 0 below; inf "
        "is for no clipping",
    ),
    "training.global_batch_size": (
        lambda size: size == -1 or size > 0,
        "at least 1, or -1 for training.local_batch_size on each rank",
    ),
    "optimizer.lr": _ABOVE_ZERO,
    "optimizer.beta1": _BELOW_ONE,
    "optimizer.beta2": _BELOW_ONE,
    # Beside Adam's root of a mean of squares, which it keeps from being 0.
    "optimizer.eps": (
        lambda eps: _LEAST <= eps <= 1,
        f"at least {_LEAST}, below which float32 has 0, and at most 1",
    ),
    "optimizer.weight_decay": _SIZE,
    "lr_scheduler.warmup_steps": _SIZE,
    "lr_scheduler.decay_ratio": _SHARE,
    "lr_scheduler.min_lr_factor": _SHARE,
    "training.dataloader.num_workers": _WORKERS,
    "validation.dataloader.num_workers": _WORKERS,
    "profiling.profiler_warmup": _SIZE,
    "activation_checkpoint.memory_budget": _SHARE,
    "comm.init_timeout_seconds": _SECONDS,
    "comm.train_timeout_seconds": _SECONDS,
    "comm.trace_buf_size": (lambda size: 0 <= size < 1 << 31, "at least 0 and below 2 ** 31"),
    "training.dataset_seed": _SEED,
    "debug.seed": _SEED,
}


def _at_least_one(job_config: "JobConfig") -> list[str]:
    keys = ["training.steps", "training.seq_len", "training.local_batch_size", "training.gc_freq"]
    keys.append("metrics.log_freq")
    if job_config.profiling.enable_profiling:
        keys.append("profiling.profiler_active")
    if job_config.profiling.enable_memory_snapshot:
        keys.append("profiling.profile_freq")
    if job_config.checkpoint.enable and not job_config.checkpoint.load_only:
        keys.append("checkpoint.interval")
    if job_config.validation.enable:
        keys += ["validation.freq", "validation.seq_len", "validation.local_batch_size"]
    return keys


_MOST_TOKENS = 1 << 31
"""Of a batch on a rank: kernels count them in 32 bits."""


def _check_batches(job_config: "JobConfig") -> None:
    """Batches that can be put together: what no memory holds would be read without an end."""
    sections: list[tuple[str, Any]] = [("training", job_config.training)]
    if job_config.validation.enable:
        sections.append(("validation", job_config.validation))
    for name, section in sections:
        size, tokens = section.local_batch_size, section.local_batch_size * section.seq_len
        if tokens >= _MOST_TOKENS:
            raise ValueError(
                f"{name}.local_batch_size = {size}: with {name}.seq_len = {section.seq_len} a "
                f"rank's batch has {tokens:,} tokens, and must have less than {_MOST_TOKENS:,}"
            )
    whole = job_config.training.global_batch_size
    if whole >= _MOST_TOKENS:
        raise ValueError(
            f"training.global_batch_size = {whole}: must be below {_MOST_TOKENS:,} sequences a step"
        )


def _check_loaders(job_config: "JobConfig") -> None:
    for name, section in (("training", job_config.training), ("validation", job_config.validation)):
        loader, key = section.dataloader, f"{name}.dataloader.prefetch_factor"
        ahead = loader.prefetch_factor
        if ahead is not None and ahead < 1:
            raise ValueError(f"{key} = {ahead}: must be at least 1; leave it out for torch's own")
        if loader.persistent_workers and loader.num_workers == 0:
            raise ValueError(
                f"{name}.dataloader.persistent_workers = true: there are no workers; set "
                f"{name}.dataloader.num_workers, or leave it out"
            )
        if ahead is not None and loader.num_workers == 0:
            raise ValueError(
                f"{key} = {ahead}: nothing is read ahead without workers; set "
                f"{name}.dataloader.num_workers, or leave it out"
            )
