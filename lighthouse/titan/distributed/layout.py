"""How a job's processes are laid out: degrees of parallelism, and the batch they share."""

import math
from typing import TYPE_CHECKING

from lighthouse.config import nearest_multiple
from lighthouse.cost.sizes import Layout

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

DEGREES = (
    "data_parallel_replicate_degree",
    "context_parallel_degree",
    "tensor_parallel_degree",
    "pipeline_parallel_degree",
)
"""With ``data_parallel_shard_degree``, what the number of processes is the product of."""

EXPERT_DEGREES = ("expert_parallel_degree", "expert_tensor_parallel_degree")


def layout_of(job_config: "JobConfig", processes: int) -> Layout:
    """The degrees of a job on a number of processes, as torchtitan will take them.

    Args:
        job_config: torchtitan's ``JobConfig``, which passed ``check_layout``.
        processes: all of the job's, on all machines.

    Raises:
        ValueError: degrees that do not make up ``processes``, or a batch that they do not divide;
            names the key, its value and what would do.
    """
    section = job_config.parallelism
    degrees = {key: getattr(section, key) for key in DEGREES}
    others = math.prod(degrees.values())
    shard = section.data_parallel_shard_degree
    if shard == -1:
        if processes % others:
            given = [f"parallelism.{key} = {n}" for key, n in degrees.items() if n > 1]
            raise ValueError(
                f"{', '.join(given)}: the number of processes, {processes}, is no multiple of "
                f"{others}; start a multiple of {others}, or use smaller degrees"
            )
        shard = processes // others
    if shard * others != processes:
        named = "".join(f" * {key} {degree}" for key, degree in degrees.items() if degree > 1)
        product = f"{shard}{named} = " if named else ""
        raise ValueError(
            f"parallelism.data_parallel_shard_degree = {section.data_parallel_shard_degree}: "
            f"{product}{shard * others} is not the number of processes, {processes}; "
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
    if wanted > 0 and wanted % together:
        raise ValueError(
            f"training.global_batch_size = {wanted}: must be a multiple of "
            f"training.local_batch_size * data-parallel ranks = {training.local_batch_size} * "
            f"{layout.batch}; nearest is {nearest_multiple(wanted, together)}"
        )
    return layout


def accumulation_steps(job_config: "JobConfig", layout: Layout) -> int:
    """Micro-batches in a step; ``layout`` is from :func:`layout_of`, so it divides."""
    return accumulation_of(job_config, layout.batch)


def accumulation_of(job_config: "JobConfig", batch_degree: int) -> int:
    """Micro-batches in a step where so many ranks read text of their own."""
    training = job_config.training
    if training.global_batch_size < 0:
        return 1
    return training.global_batch_size // (training.local_batch_size * batch_degree)
