"""Whether a node's memory holds what its ranks offload."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lighthouse.cost.memory import GIB, host_memory
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.distributed.layout import layout_of
from lighthouse.titan.plan.work import model_of, work_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

_CGROUPS = Path("/sys/fs/cgroup")
_OF_PROCESS = Path("/proc/self/cgroup")


def check_host_memory(job_config: "JobConfig") -> None:
    """Refuse to offload more than fits, of this node's processes in their largest stage.

    Raises:
        ValueError: naming the key, what it takes and what there is.
    """
    if not job_config.activation_checkpoint.offload:
        return
    model = model_of(job_config)
    layout = layout_of(job_config, int(os.environ.get("WORLD_SIZE", "1")))
    jobs = [stage.job(job_config) for stage in Stages.of(job_config)]
    of_a_rank = max(host_memory(model, layout, work_of(job, layout, ())) for job in jobs)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, there = ranks * of_a_rank, memory_of_node()
    if needed > there:
        raise ValueError(
            f"activation_checkpoint.offload = true: the inputs of blocks take {needed / GIB:.1f} "
            f"GiB of this node's memory, with {ranks} of {layout.gpus} ranks here, and it has "
            f"{there / GIB:.1f}; use a shorter training.seq_len, or more nodes"
        )


def memory_of_node(cgroups: Path = _CGROUPS, of_process: Path = _OF_PROCESS) -> int:
    """Bytes that this process and those beside it may have: the machine's, or their cgroup's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in of_process.read_text().splitlines() if of_process.exists() else []:
        _, _, path = line.partition("0::/")  # of version 2
        for folder in (cgroups / path, *(cgroups / path).parents):
            file = folder / "memory.max"
            if folder.is_relative_to(cgroups) and file.exists():
                limit = file.read_text().strip()
                limits += [int(limit)] if limit.isdecimal() else []
    return min(limits)
