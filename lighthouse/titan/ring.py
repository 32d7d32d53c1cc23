"""How torch's ring attention runs: by the configured method, beside the computation."""

from typing import Any

from torch._inductor import config as inductor
from torch.distributed.tensor.experimental._attention import set_rotate_method


def configure_ring(job_config: Any) -> None:
    """Set what context parallelism takes from global options. To be called before compilation.

    Ring attention sends keys and values while it attends to those at hand. The compiler traces each
    transfer with the wait for it right behind; moved to where the data is used, it overlaps again.
    """
    set_rotate_method(job_config.parallelism.context_parallel_rotate_method)
    inductor.reorder_for_compute_comm_overlap = True
    inductor.reorder_for_compute_comm_overlap_passes = ["sink_waits"]
