"""Who may train in a folder: the living owner, nobody else, and whoever comes after a dead one."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lighthouse.runs import owner
from lighthouse.runs.folder import OWNER_FILE
from lighthouse.runs.owner import Owner, hold, let_go
from tests.support import ROOT


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(owner, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(owner, "DEAD_SECONDS", 0.4)
    yield
    let_go()


def put(folder: Path, **values: object) -> Owner:
    """A file of an owner like this process, but for some values."""
    there = replace(Owner.this(), **values)
    (folder / OWNER_FILE).write_text(owner._text(there))
    return there


def test_a_living_process_of_this_host_is_named(tmp_path: Path) -> None:
    parent = os.getppid()
    there = put(tmp_path, pid=parent, started=owner._started(parent))
    said: list[str] = []
    with pytest.raises(ValueError, match=rf"process {parent} on {there.host} trains there; stop"):
        hold(tmp_path, said.append)
    assert said == [] and owner._read(tmp_path / OWNER_FILE) == there


def test_a_dead_one_is_taken_over_with_a_word(tmp_path: Path) -> None:
    done = subprocess.Popen(["true"])
    time.sleep(0.1)
    for gone in ({"pid": done.pid}, {"started": "1"}):  # a zombie; another process of the number
        there = put(tmp_path, **({"started": owner._started(done.pid) or "7"} | gone))
        said: list[str] = []
        hold(tmp_path, said.append)
        assert said == [f"Taking over {tmp_path} from {there}, which is gone"]
        assert owner._read(tmp_path / OWNER_FILE).pid == os.getpid()
        let_go()
        assert list(tmp_path.iterdir()) == []
    done.wait()


def test_on_another_host_the_heartbeat_tells(tmp_path: Path) -> None:
    there = put(tmp_path, machine="elsewhere", host="node7")
    alive = threading.Timer(0.2, put, [tmp_path], {**vars(there), "beat": 1})
    alive.start()
    said: list[str] = []
    with pytest.raises(ValueError, match=rf"process {there.pid} on node7 trains there"):
        hold(tmp_path, said.append)
    alive.join()
    assert said == [f"Waiting up to 0 s for a sign of {there}, which trained here last"]
    began = time.monotonic()
    hold(tmp_path, said.append)
    assert time.monotonic() - began > owner.DEAD_SECONDS
    assert said[-1] == f"Taking over {tmp_path} from {there}, which is gone"


def test_one_of_another_host_that_ends_meanwhile_is_no_obstacle(tmp_path: Path) -> None:
    put(tmp_path, machine="elsewhere")
    threading.Timer(0.1, (tmp_path / OWNER_FILE).unlink).start()
    began = time.monotonic()
    hold(tmp_path, str)
    assert time.monotonic() - began < owner.DEAD_SECONDS


def test_a_broken_file_is_waited_for_and_taken_over(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).touch()
    said: list[str] = []
    hold(tmp_path, said.append)
    assert "from process 0 on an unknown host, which is gone" in said[-1]


def test_of_many_at_a_time_one_takes_over(tmp_path: Path) -> None:
    put(tmp_path, started="1")
    code = (
        "import sys, time, pathlib; from lighthouse.runs.owner import hold\n"
        "try: hold(pathlib.Path(sys.argv[1]), str)\n"
        "except ValueError: print('refused')\n"
        "else: print('holds', flush=True); sys.stdin.read()\n"
    )
    tries = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.stdout.readline().strip() for process in tries]
    for process in tries:
        process.communicate()
    assert sorted(said) == ["holds", *["refused"] * 3]


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_living_one_beats_and_ends_if_it_was_taken_for_dead(tmp_path: Path, monkeypatch) -> None:
    ended: list[int] = []

    def exit_(code: int) -> None:
        ended.append(code)
        sys.exit(code)  # the thread alone

    monkeypatch.setattr(owner, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr("os._exit", exit_)
    hold(tmp_path, str)
    wait_until(lambda: owner._read(tmp_path / OWNER_FILE).beat > 1)
    assert ended == []

    def is_taken_over() -> bool:
        put(tmp_path, token="another's")  # again: a beat in between may have replaced it
        return ended == [1]

    wait_until(is_taken_over)
    let_go()
    assert owner._read(tmp_path / OWNER_FILE).token == "another's"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        hold(tmp_path, str)
