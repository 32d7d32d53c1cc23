"""Reorder the channels inside heads of a weight whose shards cut heads apart."""

import functools
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

Permute = Callable[..., Tensor]


def on_whole_heads(permute: Permute) -> Permute:
    """Decorate the two permutations of torchtitan's ``Llama3StateDictAdapter``.

    They view rows as heads and channels. Of a DTensor with more shards than heads, such as one
    key/value head on two ranks, that gives other rows than of the whole, without an error.
    """

    @functools.wraps(permute)
    def permuted(adapter: Any, weight: Tensor, heads: int, *sizes: int) -> Tensor:
        if not isinstance(weight, DTensor) or heads % _row_shards(weight) == 0:
            return permute(adapter, weight, heads, *sizes)
        whole = permute(adapter, weight.full_tensor(), heads, *sizes)
        replicas = [Replicate()] * weight.device_mesh.ndim
        everywhere = DTensor.from_local(whole, weight.device_mesh, replicas, run_check=False)
        return everywhere.redistribute(placements=weight.placements)

    return permuted


def _row_shards(weight: DTensor) -> int:
    mesh = weight.device_mesh
    return math.prod(mesh.size(i) for i, p in enumerate(weight.placements) if p.is_shard())
