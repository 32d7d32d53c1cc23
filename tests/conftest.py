"""Settings shared by all tests."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# What is imported and collected stays: it need not be gone through for garbage, now or later.
gc.disable()

# Without a GPU the kernels run under Triton's interpreter, which is chosen when Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples on every run and machine, and no example database in the working tree.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; see tests/gpu_record.md")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def files_as_they_are() -> Iterator[None]:
    """The trainer lists text files once a process; tests make other ones under the same names."""
    yield
    from lighthouse.titan.data.text_files import forget_files

    forget_files()
