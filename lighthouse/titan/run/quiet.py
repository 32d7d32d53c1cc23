"""What upstream and its libraries say of a healthy start, and nobody could act on."""

import logging
import warnings

_LOGGED = (
    # torchrun sets it, and torchtitan sets it otherwise: the user has done neither.
    "ENV[TORCH_NCCL_ASYNC_ERROR_HANDLING]",
    # So it is at each restart of a run that began with other weights.
    "checkpoint.initial_load_path is provided but the checkpoint.folder exists",
    "checkpoint.initial_load_in_hf is True but the checkpoint.folder exists",
)
_WARNED = (
    r"In \w+ autocast, but the target dtype is not supported",  # that is float32, as was asked for
    r"'set_vital' is deprecated",  # torchdata's to change
)


def keep_quiet() -> None:
    """Leave these out of the log from now on; all else is said as before."""
    from torchtitan.tools.logging import logger

    if _is_worth_saying not in logger.filters:
        logger.addFilter(_is_worth_saying)
    for pattern in _WARNED:
        warnings.filterwarnings("ignore", message=pattern)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LOGGED)
