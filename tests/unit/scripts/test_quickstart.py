"""The quickstart with stand-ins for the environment: what it says of how the training ended."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

FINISH = "mkdir -p outputs/quickstart/checkpoint/step-200\n"
FINISH += "touch outputs/quickstart/checkpoint/step-200/.metadata\n"


@pytest.fixture
def quickstart(tmp_path: Path):
    """The script in a folder of its own, where training is a line of shell."""
    for file in ("scripts/quickstart.sh", "train_configs/quickstart.toml"):
        (tmp_path / file).parent.mkdir()
        shutil.copy(ROOT / file, tmp_path / file)

    def command(path: str, script: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / path).chmod(0o755)

    def run(training: str, *arguments: str) -> tuple[int, str]:
        command("scripts/setup.sh", "")
        command("training", f"echo training >>calls\n{training}")
        command(
            ".venv/bin/python",
            'case "$1 $2" in\n'
            '"-m lighthouse.launch") exec ./training ;;\n'
            '"-m lighthouse.report") exec echo report ;;\n'
            f'*) exec {sys.executable} "$@" ;;\nesac',
        )
        done = subprocess.run(
            ["bash", str(tmp_path / "scripts" / "quickstart.sh"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ,
            start_new_session=True,
            # In the background of a shell it is ignored, and so by all below.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return done.returncode, done.stdout

    return run


def test_a_finished_run_is_reported_and_not_trained_again(quickstart, tmp_path):
    code, printed = quickstart(FINISH)
    assert code == 0 and printed.endswith("report\n")
    code, printed = quickstart("exit 1")
    assert code == 0 and "already done" in printed and printed.endswith("report\n")
    assert (tmp_path / "calls").read_text() == "training\n"
    assert quickstart("exit 1", "--fresh")[0] == 1


def test_a_run_that_another_command_finished_is_reported(quickstart, tmp_path):
    checkpoint = tmp_path / "outputs" / "quickstart" / "checkpoint" / "step-200"
    checkpoint.mkdir(parents=True)
    (checkpoint / ".metadata").touch()
    assert quickstart("exit 1")[0] == 0


def test_a_stopped_run_is_not_done(quickstart):
    code, printed = quickstart("mkdir -p outputs/quickstart/checkpoint/step-200; exit 0")
    assert code == 0 and "report" not in printed
    assert "stopped before step 200; the same command continues" in printed
    code, printed = quickstart(FINISH)
    assert code == 0 and "already done" not in printed and printed.endswith("report\n")


def test_a_failure_shows_the_end_of_the_log(quickstart):
    code, printed = quickstart("echo why; exit 3")
    assert code == 1 and "training failed; the end of" in printed and printed.endswith("why\n")


def test_a_refusal_is_the_last_line(quickstart):
    code, printed = quickstart("echo 'step: 10'; echo 'refused: a.b = 1: must be 2'; exit 2")
    assert code == 2 and printed.endswith("\nrefused: a.b = 1: must be 2\n")
    assert printed.count("refused: ") == 1


@pytest.mark.parametrize("code", [130, 143])
def test_a_stop_by_a_signal_is_no_failure(quickstart, code):
    found, printed = quickstart(f"echo 'Stopped by SIGINT after step 7'; exit {code}")
    assert found == code and "failed" not in printed
    assert printed.endswith(
        "Stopped by SIGINT after step 7\n"
        "quickstart: stopped before step 200; the same command continues\n"
    )


def test_ctrl_c_leaves_the_trainer_time_to_say_what_it_saved(quickstart):
    # As a terminal does, to all of the foreground's processes.
    said = "trap 'sleep 0.3; echo Stopped by SIGINT; exit 130' INT; kill -INT 0; sleep 5"
    code, printed = quickstart(said)
    assert code == 130 and "Stopped by SIGINT\nquickstart: stopped before step 200" in printed
