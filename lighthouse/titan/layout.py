"""How the processes of a job share its work, checked before there are any."""

from math import prod
from typing import Any

from lighthouse.config import nearest_multiple
from lighthouse.cost import Layout

_DEGREES = (
    "data_parallel_replicate_degree",
    "context_parallel_degree",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
)


def layout_of(job_config: Any, gpus: int) -> Layout:
    """The degrees of a job on ``gpus`` processes, as torchtitan will take them.

    Raises:
        ValueError: degrees that do not make up ``gpus``, or a batch that they do not divide; names
            the key, its value and what would do.
    """
    parallel, training = job_config.parallelism, job_config.training
    degrees = {name: getattr(parallel, name) for name in _DEGREES}
    for name, degree in degrees.items():
        if degree < 1:
            raise ValueError(f"parallelism.{name} = {degree}: must be at least 1")
    others, product = prod(degrees.values()), " * ".join(_DEGREES)
    shard = parallel.data_parallel_shard_degree
    if shard < 1 and shard != -1:
        raise ValueError(
            f"parallelism.data_parallel_shard_degree = {shard}: must be at least 1, or -1 for all "
            "processes that the other degrees leave"
        )
    if shard == -1:
        if gpus % others:
            raise ValueError(
                f"{gpus} processes: must be a multiple of {product} = {others}; nearest is "
                f"{nearest_multiple(gpus, others)}"
            )
        shard = gpus // others
    elif shard * others != gpus:
        raise ValueError(
            f"{gpus} processes: must be data_parallel_shard_degree * {product} = {shard} * "
            f"{others} = {shard * others}; start that many, or set "
            "parallelism.data_parallel_shard_degree = -1"
        )
    layout = Layout(
        dp_replicate=parallel.data_parallel_replicate_degree,
        dp_shard=shard,
        cp=parallel.context_parallel_degree,
        tp=parallel.tensor_parallel_degree,
        pp=parallel.pipeline_parallel_degree,
    )
    _check_batch(training.global_batch_size, training.local_batch_size, layout.batch)
    return layout


def accumulation_steps(job_config: Any, layout: Layout) -> int:
    """Micro-batches in a step; ``layout`` is from :func:`layout_of`, so it divides."""
    training = job_config.training
    if training.global_batch_size < 0:
        return 1
    return training.global_batch_size // (training.local_batch_size * layout.batch)


def _check_batch(global_batch: int, local_batch: int, degree: int) -> None:
    if local_batch < 1:
        raise ValueError(f"training.local_batch_size = {local_batch}: must be at least 1")
    together = local_batch * degree
    if global_batch >= 0 and (global_batch == 0 or global_batch % together):
        raise ValueError(
            f"training.global_batch_size = {global_batch}: must be a multiple of local_batch_size "
            f"* data-parallel degree = {local_batch} * {degree} = {together}; nearest is "
            f"{nearest_multiple(global_batch, together)}"
        )
