"""What context parallelism needs beyond upstream to run at the speed of one device."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._inductor import config as inductor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.distributed.tensor.experimental._attention import (
    _HeadTailLoadBalancer,
    set_rotate_method,
)
from torch.utils._pytree import tree_flatten

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def configure_ring(job_config: "JobConfig") -> None:
    """Set what context parallelism takes from global options. To be called before compilation.

    Ring attention sends keys and values, and their gradients, beside attention to those at hand.
    The compiler traces a wait right behind each transfer and may then, for less memory, put both
    behind attention, on one rank only: the other rank's transfer holds multiprocessors until then.
    So waits are moved to where the data is used, and transfers to where it is there.

    Backward gathers keys and values as forward does. Both are made one, see :class:`WaitOnce`.
    """
    set_rotate_method(job_config.parallelism.context_parallel_rotate_method)
    inductor.reorder_for_compute_comm_overlap = True
    inductor.reorder_for_compute_comm_overlap_passes = ["sink_waits", "raise_comms"]
    inductor.joint_custom_post_pass = WaitOnce()


_WAIT = torch.ops._c10d_functional.wait_tensor.default


class WaitOnce(CustomGraphPass):
    """In the graph of forward and backward, wait once for what is sent twice.

    The compiler merges equal nodes, so that what a checkpoint marks in forward to be computed again
    is marked in backward too. From torch 2.14 on it leaves out waits. The one of backward then is
    of no checkpoint, and what it waits for is kept from forward on: the keys and values of all
    ranks, in each layer.
    """

    def __call__(self, graph: fx.Graph) -> None:
        first: dict[Any, fx.Node] = {}
        """By what it computes, the first node that does."""
        same: dict[fx.Node, fx.Node] = {}
        for node in list(graph.nodes):
            same[node] = node
            waits = node.target is _WAIT
            if node.op != "call_function" or not (waits or _is_pure(node)):
                continue
            leaves, form = tree_flatten((node.args, node.kwargs))
            values = tuple((type(x), same[x] if isinstance(x, fx.Node) else str(x)) for x in leaves)
            same[node] = first.setdefault((node.target, form, values), node)
            if waits and same[node] is not node:
                # What it waits for has no other use, and goes with it.
                node.replace_all_uses_with(same[node])
                graph.erase_node(node)

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))


def _is_pure(node: fx.Node) -> bool:
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not random and not node.is_impure()


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
