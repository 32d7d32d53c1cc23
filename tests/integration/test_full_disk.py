"""A disk that fills up while a run writes costs no finished checkpoint, and no other losses."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighthouse.runs.metrics import METRICS_FILE
from tests.support.trainer import Run, train

OPTIONS = (
    *"--training.steps 8 --checkpoint.enable --checkpoint.interval 3".split(),
    *"--checkpoint.no-last_save_model_only --lighthouse.enable".split(),
    *"--lighthouse.dense_from_step 6".split(),
)
FILL = ("--experimental.custom_import", "tests.support.fill_disk")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("undisturbed"), *OPTIONS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=128M", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("left", "mode", "noticed"),
    [
        pytest.param(2**20, "disabled", 6, marks=pytest.mark.thorough),
        (2**20, "async", 8),
        pytest.param(0, "disabled", 6, marks=pytest.mark.thorough),
    ],
    ids=["in a save", "in the background", "before a save"],
)
def test_a_disk_fills_up(
    undisturbed: Run,
    small_disk: Path,
    tmp_path_factory: pytest.TempPathFactory,
    left: int,
    mode: str,
    noticed: int,
) -> None:
    # The metrics go elsewhere, or it would depend on their length who finds the disk full first.
    (small_disk / "run").mkdir()
    (small_disk / "run" / METRICS_FILE).symlink_to(tmp_path_factory.mktemp("else") / METRICS_FILE)
    options = (small_disk / "run", *OPTIONS, "--checkpoint.async_mode", mode)
    full = train(*options, *FILL, env={"FILL_DISK": f"6 {left}"}, ok=False)
    assert f"SaveError: step {noticed}: a checkpoint could not be written" in full.output
    assert "the same command continues from step 3" in full.output
    assert not (full.checkpoint(6) / ".metadata").exists()
    (small_disk / "filler").unlink()
    resumed = train(*options)
    assert "Training starts at step 4" in resumed.output
    assert resumed.losses() == undisturbed.losses()
    assert (resumed.checkpoint(6) / ".metadata").exists()
