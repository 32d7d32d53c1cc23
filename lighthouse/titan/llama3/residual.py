"""What a compiled block keeps for backward: the sum that its output adds to (docs/speed.md).

A block's output is ``h + f(norm(h))``, with ``h`` its input and what attention adds. To a compiler
``h`` costs nothing to add up again, so it keeps the second summand, and reads both wherever ``h``
is wanted: in the output's sum, in the norm's backward, and in the kernel of the other norm, where
it puts this one's weight gradient, as that has both at hand. Kept instead, ``h`` takes the same
memory, and four tensors of its size fewer are read. It is rounded as in eager mode.
"""

from typing import TYPE_CHECKING

import torch
import torch._inductor.config as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def keep_residual_sums(job_config: "JobConfig") -> None:
    """Have it so in a run that compiles blocks and computes nothing again."""
    again = job_config.activation_checkpoint.mode != "none"
    if job_config.compile.enable and not again:
        inductor.joint_custom_pre_pass = KeepResidualSum()


class KeepResidualSum(CustomGraphPass):
    """For inductor, on a graph of forward and backward before it is cut into the two."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Mark a sum of two that the first output is a sum with."""
        add = torch.ops.aten.add.Tensor
        for output in graph.output_node().all_input_nodes[:1]:
            for summand in output.all_input_nodes if output.target is add else ():
                if summand.target is add:
                    summand.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> bytes:
        """What inductor's cache knows this by."""
        return get_hash_for_files((__file__,))
