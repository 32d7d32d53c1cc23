"""What ranks find each for itself, made known to all."""

from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def first_of_ranks(found: str | None) -> str | None:
    """What the lowest rank has found that found something, on all ranks alike; a collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return found
    of_ranks: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, found)
    return next((word for word in of_ranks if word is not None), None)


def from_rank_0(find: Callable[[], Any]) -> Any:
    """What rank 0 alone finds, on all ranks alike; a collective. So is what it raises."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return find()
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = find()
        except (OSError, ValueError) as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]
