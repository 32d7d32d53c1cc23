"""What ranks find each for itself, made known to all."""

import torch.distributed as dist


def first_of_ranks(found: str | None) -> str | None:
    """What the lowest rank has found that found something, on all ranks alike; a collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return found
    of_ranks: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, found)
    return next((word for word in of_ranks if word is not None), None)
