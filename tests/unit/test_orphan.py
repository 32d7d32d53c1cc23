"""What a trainer's process does when its launcher is gone: before its first step, and later."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lighthouse import orphan
from lighthouse.orphan import LAUNCHER_VARIABLE
from lighthouse.runs.folder import OWNER_FILE
from tests.support import ROOT

WORKER = """
import signal, sys, threading, time
from pathlib import Path
from lighthouse import orphan
from lighthouse.runs.owner import hold

orphan.LOOK_SECONDS = 0.02
folder, how = Path(sys.argv[1]), sys.argv[2]
hold(folder, str)
asked = threading.Event()
if how == "trained":
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    orphan.has_trained()
orphan.watch()
(folder / "watches").touch()
# In C code, where no handler of Python's runs, unless it has trained.
asked.wait(60) if how == "trained" else threading.Lock().acquire() and time.sleep(60)
print("saved" if asked.is_set() else "nothing happened")
"""


def environment(**more: str) -> dict[str, str]:
    ours = {"PYTHONPATH": str(ROOT), "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    return os.environ | ours | more


def dead() -> str:
    """The number of a process that is gone."""
    done = subprocess.Popen(["true"])
    done.wait()
    return str(done.pid)


def run(folder: Path, how: str, **more: str) -> subprocess.CompletedProcess[str]:
    worker = [sys.executable, "-c", WORKER, str(folder), how]
    return subprocess.run(
        worker, env=environment(**more), capture_output=True, text=True, timeout=50
    )


def test_one_that_has_trained_no_step_ends_at_once_and_frees_the_folder(tmp_path: Path) -> None:
    """Even where the launcher had gone before the process could ask for its parent."""
    launcher = dead()
    done = run(tmp_path, "new", **{LAUNCHER_VARIABLE: launcher})
    said = f"The launcher, process {launcher}, is gone: this one ends, and has trained no step\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert not (tmp_path / OWNER_FILE).exists()


def test_of_a_node_one_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "new", LOCAL_RANK="1", **{LAUNCHER_VARIABLE: dead()})
    assert (done.returncode, done.stderr) == (1, "")


def test_one_that_has_trained_is_asked_for_a_checkpoint(tmp_path: Path) -> None:
    done = run(tmp_path, "trained", **{LAUNCHER_VARIABLE: dead()})
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr


def test_of_another_torchrun_that_had_gone_before_it_asked(tmp_path: Path) -> None:
    """As a worker that is still importing when its torchrun is killed."""
    worker = [sys.executable, "-c", f"import time; time.sleep(1); {WORKER!s}", str(tmp_path), "new"]
    code = f"import subprocess; subprocess.Popen({worker})"  # and does not wait
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
    )
    assert done.stdout == "The launcher is gone: this one ends, and has trained no step\n"
    assert not (tmp_path / OWNER_FILE).exists()


def test_a_script_between_torchrun_and_worker_is_no_end(tmp_path: Path) -> None:
    """By which a rank is bound to its cores, say."""
    code = "import time; from lighthouse import orphan; orphan.watch(); time.sleep(0.5)"
    script = '"$0" -c "$1"; exit $?'  # a shell that stays
    done = subprocess.run(["sh", "-c", script, sys.executable, code], env=environment(), timeout=50)
    assert done.returncode == 0


@pytest.mark.parametrize("ours", [True, False])
def test_a_launcher_that_is_killed_later(tmp_path: Path, ours: bool) -> None:
    """By its number in the environment, or as the parent under a torchrun that is not ours."""
    worker = [sys.executable, "-c", WORKER, str(tmp_path), "new"]
    told = f", env=os.environ | {{{LAUNCHER_VARIABLE!r}: str(os.getpid())}}" if ours else ""
    code = f"import os, subprocess; subprocess.Popen({worker}{told}).wait()"
    launcher = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 50
    while not (tmp_path / "watches").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.2)
    assert (tmp_path / OWNER_FILE).exists()
    launcher.kill()
    assert launcher.stderr is not None
    assert f"process {launcher.pid}, is gone" in launcher.stderr.read()  # to the worker's end
    launcher.wait()
    assert not (tmp_path / OWNER_FILE).exists()


def test_one_that_no_torchrun_has_started_looks_after_nobody(tmp_path: Path) -> None:
    environment_ = environment(**{LAUNCHER_VARIABLE: dead()})
    del environment_["TORCHELASTIC_RUN_ID"]
    code = "import time; from lighthouse import orphan; orphan.watch(); time.sleep(0.5)"
    done = subprocess.run([sys.executable, "-c", code], env=environment_, timeout=50)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("parent", "error", "found"),
    [(77, PermissionError, 77), (1, PermissionError, 0), (77, FileNotFoundError, 0)],
)
def test_a_parent_that_may_not_be_looked_at_is_the_launcher(
    parent: int, error: type[OSError], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the first process, to which orphans go; and one that is gone is none."""

    def look(_: str) -> str:
        raise error

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(os, "readlink", look)
    assert orphan._launching_parent() == found
