"""The device that a command is told to use."""

import torch


def device_of(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        ValueError: there is no such device on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # the latter of a torch without CUDA
        raise ValueError(
            f"--device = {name!r}: this machine has no such device, or torch can't use it; leave "
            "it out for a GPU if there is one, or use 'cpu'"
        ) from None
    return device
