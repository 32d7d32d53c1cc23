"""A healthy start says nothing that looks like a fault, and faults are still said."""

import logging
import warnings

import pytest
from torchtitan.tools.logging import logger

from lighthouse.titan.run.quiet import keep_quiet


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("ENV[TORCH_NCCL_ASYNC_ERROR_HANDLING] = 1 will be overridden to 3", False),
        ("ENV[TORCH_NCCL_DUMP_ON_TIMEOUT] = 1 will be overridden to 0", True),
        ("checkpoint.initial_load_path is provided but the checkpoint.folder exists. It", False),
        ("the disk is full", True),
    ],
)
def test_the_log(message: str, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    keep_quiet()
    keep_quiet()
    with caplog.at_level(logging.WARNING):
        logger.addHandler(caplog.handler)
        logger.warning(message)
        logger.removeHandler(caplog.handler)
    assert (message in caplog.messages) == said


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("In CPU autocast, but the target dtype is not supported. Disabling autocast.", False),
        ("'set_vital' is deprecated, please do not call", False),
        ("another", True),
    ],
)
def test_warnings(message: str, said: bool) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        keep_quiet()
        warnings.warn(message, UserWarning, stacklevel=1)
    assert bool(found) == said
