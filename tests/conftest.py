"""Settings shared by all tests."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.support.processes import start_python

# What is imported and collected stays: it need not be gone through for garbage, now or later.
gc.disable()

# Without a GPU the kernels run under Triton's interpreter, which is chosen when Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples on every run and machine, and no example database in the working tree.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run tests marked thorough, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; see tests/gpu_record.md")
    config.addinivalue_line("markers", "thorough: runs with --thorough alone; see CONTRIBUTING.md")
    # For all processes of pytest-xdist one Python is forked, which imports while they collect.
    if config.getoption("numprocesses", None) and not torch.cuda.is_available():
        start_python()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out_thorough_ones(config, items)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


def leave_out_thorough_ones(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("thorough"):
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        (left_out if item.get_closest_marker("thorough") else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The processes of pytest-xdist have left out the same tests, and its summary has no number."""
    reporter = node.config.pluginmanager.get_plugin("terminalreporter")
    if "deselected" not in reporter.stats:
        left_out = getattr(node, "workeroutput", {}).get("left_out", 0)
        node.config.hook.pytest_deselected(items=[node] * left_out)


@pytest.fixture(autouse=True)
def files_as_they_are() -> Iterator[None]:
    """The trainer lists text files once a process; tests make other ones under the same names."""
    yield
    from lighthouse.titan.data.text_files import forget_files

    forget_files()
