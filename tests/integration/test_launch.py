"""What the trainer refuses, and a finished run, through the launcher and under bare torchrun."""

import re
from pathlib import Path

import pytest

import titan_tree
from tests.support import ROOT
from tests.support.processes import python, run
from tests.support.tiers import tiers
from tests.support.trainer import TINY, Run, flags, train

TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node=2 -m torchtitan.train"
LAUNCHERS = {
    "launcher": "-m lighthouse.launch --processes 2 --".split(),
    "torchrun": TORCHRUN.split(),
}
SAVES = "--checkpoint.enable --checkpoint.no-last_save_model_only --training.steps 2".split()
EACH_LAUNCHER = pytest.mark.parametrize("launcher", LAUNCHERS)
TORCHRUN_TOO = pytest.mark.parametrize("launcher", tiers(LAUNCHERS, "launcher"))


def launch(launcher: str, *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and the lines on the screen."""
    code, printed = run([python(), *LAUNCHERS[launcher], *arguments])
    return code, printed.splitlines()


def options(folder: Path, *more: str) -> list[str]:
    return [*flags({"job.dump_folder": folder, **TINY}), *SAVES, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("finished"), *SAVES, processes=2)


def assert_refused(launcher: str, code: int, lines: list[str], sentence: str) -> None:
    """By the launcher once, last, and with exit code 2; in the report that torchrun ends with."""
    (said,) = (line for line in lines if line.startswith("refused: "))
    assert said.startswith(f"refused: {sentence}")
    # Of the rank that refuses there is no traceback, nor of its loader's worker.
    assert not any(re.search(r"\bRefusal\b", line) for line in lines)
    if launcher == "launcher":
        assert code == 2 and lines[-1] == said
    else:
        assert code == 1
        assert any("exitcode  : 2" in line for line in lines)
        assert [line for line in lines[-15:] if line.endswith(f" : {said}")]


@TORCHRUN_TOO
def test_a_missing_file_is_refused_by_its_key(launcher: str) -> None:
    code, lines = launch(launcher, "--job.config_file", "nowhere.toml")
    sentence = "job.config_file = 'nowhere.toml': can't be read"
    assert_refused(launcher, code, lines, sentence)
    assert not any("Traceback" in line for line in lines) or launcher == "torchrun"


@TORCHRUN_TOO
def test_an_unknown_flag_is_refused(launcher: str, tmp_path: Path) -> None:
    code, lines = launch(launcher, *options(tmp_path, "--lighthouse.top_k", "3"))
    assert_refused(launcher, code, lines, "Unrecognized options: --lighthouse.top_k, 3; perhaps ")
    assert not any("│" in line for line in lines)


@EACH_LAUNCHER
def test_a_checkpoint_of_another_job_is_refused(launcher: str, finished: Run) -> None:
    """Deep in the trainer, when process groups exist."""
    more = ("--training.steps", "4", "--optimizer.lr", "0.5")
    code, lines = launch(launcher, *options(finished.folder, *more))
    assert_refused(launcher, code, lines, "optimizer.lr = 0.5 (was 0.002): checkpoint ")
    assert not any("Traceback" in line for line in lines) or launcher == "torchrun"


@TORCHRUN_TOO
def test_text_that_is_too_short_for_one_rank_is_refused(launcher: str, tmp_path: Path) -> None:
    """By that rank alone, while the other one waits for it; and from a loader's worker."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x" * 2000)
    text = f"--training.dataset local --training.dataset_path {tmp_path / 'text'}"
    text += " --training.dataloader.num_workers 1"
    code, lines = launch(launcher, *options(tmp_path / "run", *text.split()))
    sentence = "rank 1: no text for data-parallel rank 1 of 2: use a dataset with at least"
    assert_refused(launcher, code, lines, sentence)


@TORCHRUN_TOO
def test_a_finished_run_has_nothing_left_to_train(launcher: str, finished: Run) -> None:
    before = finished.lines()
    code, lines = launch(launcher, *options(finished.folder))
    assert code == 0
    (said,) = (line for line in lines if line.startswith("nothing is left to train: "))
    assert f"checkpoint {finished.checkpoint(2)} is at step 2" in said
    if launcher == "launcher":
        assert lines[-1] == said
    assert not any("Traceback" in line for line in lines)
    assert finished.lines() == before
    release = titan_tree.read_upstream(ROOT).version
    assert any(line.endswith(f"torchtitan version: {release}, patched") for line in lines)
