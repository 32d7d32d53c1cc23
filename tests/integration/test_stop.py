"""A run that is stopped, however often and however asked, ends as an undisturbed one does."""

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lighthouse.runs.owner import hold, let_go
from tests.chaos import chaos
from tests.support import ROOT
from tests.support.processes import python
from tests.support.trainer import TINY, Run, flags, train

OPTIONS = (
    *"--checkpoint.enable --training.steps 8 --checkpoint.interval 100".split(),
    *"--lighthouse.enable --lighthouse.dense_from_step 6 --metrics.enable_wandb".split(),
)
STOP = ("--experimental.custom_import", "tests.support.stop_in_step")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Run, ...]:
    """Two processes, stopped three times and then left alone, in one folder."""
    folder = tmp_path_factory.mktemp("stopped")
    offline = {"WANDB_MODE": "offline"}

    def part(how: str, *args: str, ok: bool = True) -> Run:
        env = {"STOP_IN_STEP": how} | offline
        return train(folder, *OPTIONS, *STOP, *args, processes=2, env=env, ok=ok)

    return (
        part("2 1 SIGUSR1", "--checkpoint.async_mode", "async"),
        # torchrun itself reports the signal as a failure.
        part("4 1 launcher SIGTERM", ok=False),
        part("6 1 launcher SIGINT", ok=False),  # as Ctrl-C
        part("9 0 never"),
    )


def test_the_losses_are_those_of_an_undisturbed_run(stopped, tmp_path):
    whole = train(tmp_path, *OPTIONS, processes=2, env={"WANDB_MODE": "disabled"})
    assert list(whole.losses()) == list(range(1, 9))
    assert stopped[-1].losses() == whole.losses()


def test_the_log_says_what_was_saved(stopped):
    reasons = {2: "SIGUSR1", 4: "SIGTERM", 6: "SIGINT"}
    for run, (step, reason) in zip(stopped, reasons.items(), strict=False):
        assert (
            f"Stopped by {reason} after step {step} of 8: saved {run.checkpoint(step)}; "
            "the same command continues from there"
        ) in run.output
        assert "Training completed" not in run.output
    assert "Training starts at step 3" in stopped[1].output
    assert "Training completed" in stopped[3].output


def test_wandb_sees_one_run_offline(stopped):
    parts = sorted((stopped[0].folder / "tb").rglob("*.wandb"))
    run_id = (stopped[0].folder / "wandb_run_id").read_text()
    assert [part.name for part in parts] == [f"run-{run_id}.wandb"] * 4
    steps = [record.history.step.num for part in parts for record in wandb_records(part)]
    assert [step for step in steps if step] == list(range(1, 9))


def test_a_file_stops_a_run_without_checkpoints(tmp_path):
    run = train(*(tmp_path, *STOP, "--training.steps", "8"), env={"STOP_IN_STEP": "2 0 file"})
    assert list(run.losses()) == [1, 2]
    assert "after step 2 of 8: nothing was saved" in run.output
    assert not (tmp_path / "checkpoint").exists()


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    hold(tmp_path, str)
    try:
        run = train(tmp_path, *OPTIONS, ok=False)
    finally:
        let_go()
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    assert run.refusal().startswith(f"job.dump_folder = {str(tmp_path)!r}: {owner} trains there;")
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_that_is_killed_before_its_workers_meet_leaves_nobody_behind(tmp_path):
    """They would wait for it for minutes, and one of them own the folder meanwhile."""
    folder = tmp_path / "run"
    options = [*flags({"job.dump_folder": folder, **TINY}), "--training.steps", "2"]
    command = [python(), "-m", "lighthouse.launch", "--processes", "2", "--", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment)
    wait_until(lambda: len(workers_of(folder)) == 2)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not workers_of(folder))
    run = train(folder, *OPTIONS, env={"WANDB_MODE": "disabled"})
    assert list(run.losses()) == list(range(1, 9))


@pytest.mark.thorough
def test_a_run_that_is_hit_at_random_moments_ends_as_an_undisturbed_one(tmp_path):
    """A short plan of what tests/chaos.py does to a run."""
    found = chaos(tmp_path / "chaos", events=4, seed=2, say=print)
    assert sum(found["events"].values()) == 4
    assert found["runs_ended_as_undisturbed"] >= 1


def workers_of(folder: Path) -> list[int]:
    """Processes of the trainer for a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if {"lighthouse.train", f"--job.dump_folder={folder}"} <= set(
                file.read_bytes().decode(errors="replace").split("\0")
            ):
                found.append(int(file.parent.name))
    return found


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of a W&B transaction log, which is a LevelDB log: blocks of 32 KiB."""
    # Here, since each process of pytest-xdist imports this file, and W&B takes seconds.
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, content = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768  # too short for a header: padding
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(content)
            content = b""
