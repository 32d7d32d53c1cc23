"""The layouts of test_layouts.py in bfloat16: as far from one process as rounding takes them."""

from pathlib import Path

import pytest
import torch

from tests.support.layouts import CP, FSDP, HSDP, ON_ONE_RANK, TP, columns, layout_options
from tests.support.trainer import Run, train

BF16 = f"--training.mixed_precision_param=bfloat16 {ON_ONE_RANK}".split()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A window layer and one of Lighthouse: a CPU may compute bfloat16 in software, slowly."""
    small = "--model.args.n_layers=2 --model.args.dim=64 --model.args.ffn_dim=64".split()
    return layout_options(tmp_path_factory.mktemp("sources"), *small)


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Run:
    return train(tmp_path_factory.mktemp("one"), *options, "--training.local_batch_size=4")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Run:
    return train(tmp_path_factory.mktemp("bf16"), *options, *BF16, "--training.local_batch_size=4")


def on_gpus(number: int, *layout: str) -> object:
    """A layout that is tried where there are so many; in float32 CPUs have it, too."""
    few = pytest.mark.skipif(torch.cuda.device_count() < number, reason=f"needs {number} GPUs")
    return pytest.param(number, layout, marks=(pytest.mark.gpu, few))


@pytest.mark.parametrize(
    ("processes", "layout"),
    [
        (2, (FSDP,)),
        pytest.param(2, (TP,), marks=pytest.mark.thorough),
        on_gpus(2, HSDP),
        on_gpus(4, HSDP, FSDP, "--training.local_batch_size=1"),
        on_gpus(4, TP, CP),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_processes_agree_with_one(
    tmp_path: Path,
    options: list[str],
    in_float32: Run,
    one_process: Run,
    processes: int,
    layout: tuple[str, ...],
) -> None:
    """Layouts round in different places.

    So two runs in bfloat16 may be as far from each other as both from float32 together.
    """
    run = train(tmp_path, *options, *BF16, *layout, processes=processes)
    for got, expected, exact in zip(
        columns(run), columns(one_process), columns(in_float32), strict=True
    ):
        assert got != pytest.approx(exact, rel=1e-4), "this was float32"
        rounding = max(abs(a - b) for a, b in zip(expected, exact, strict=True))
        assert got == pytest.approx(expected, abs=2 * rounding)
