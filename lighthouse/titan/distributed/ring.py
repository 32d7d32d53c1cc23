"""What context parallelism needs beyond upstream to run at the speed of one device."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._inductor import config as inductor
from torch.distributed.tensor.experimental._attention import (
    _HeadTailLoadBalancer,
    set_rotate_method,
)

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def configure_ring(job_config: "JobConfig") -> None:
    """Set what context parallelism takes from global options. To be called before compilation.

    Ring attention sends keys and values, and their gradients, beside attention to those at hand.
    The compiler traces a wait right behind each transfer and may then, for less memory, put both
    behind attention, on one rank only: the other rank's transfer holds multiprocessors until then.
    So waits are moved to where the data is used, and transfers to where it is there.
    """
    set_rotate_method(job_config.parallelism.context_parallel_rotate_method)
    inductor.reorder_for_compute_comm_overlap = True
    inductor.reorder_for_compute_comm_overlap_passes = ["sink_waits", "raise_comms"]


class HeadTailLoadBalancer(_HeadTailLoadBalancer):
    """Upstream's order of tokens, made on the device.

    Upstream makes a list of Python integers each step, which the GPU waits for: 60 ms at half a
    million tokens.
    """

    def _generate_indices(self, restore: bool = False) -> Tensor:
        """int32 (1, seq_len): for each rank r of W, chunks r and 2W - 1 - r of 2W."""
        chunks = torch.arange(self.seq_length, dtype=torch.int, device=self.device)
        heads, tails = chunks.view(2, self.world_size, -1)
        order = torch.stack((heads, tails.flip(0)), dim=1).flatten()
        return (torch.argsort(order) if restore else order).unsqueeze(0)
