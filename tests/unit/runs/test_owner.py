"""Who may train in a folder: the living owner, nobody else, and whoever comes after a dead one."""

import errno
import os
import re
import shutil
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


def put(folder: Path, /, **values: object) -> Owner:
    """A file of an owner like this process, but for some values."""
    there = replace(Owner.this(folder), **values)
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


def test_a_copy_of_a_folder_is_nobodys_and_a_moved_one_is_still_its_owners(tmp_path: Path) -> None:
    folder, copy, moved = tmp_path / "run", tmp_path / "copy", tmp_path / "moved"
    folder.mkdir()
    parent = os.getppid()
    there = put(folder, pid=parent, started=owner._started(parent))
    shutil.copytree(folder, copy)
    said: list[str] = []
    hold(copy, said.append)
    assert said == [f"Taking over {copy} from {there}, of whose folder it is a copy"]
    let_go()
    folder.rename(moved)
    (tmp_path / "link").symlink_to(moved)
    for path in (moved, tmp_path / "link"):
        with pytest.raises(ValueError, match=rf"process {parent} on {there.host} trains there"):
            hold(path, said.append)
    put(moved, pid=parent, started=owner._started(parent), folder="")  # an older one
    with pytest.raises(ValueError, match=rf"process {parent} on {there.host} trains there"):
        hold(moved, said.append)


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


@pytest.mark.parametrize(
    "text", ["", "3", "null", "[]", "[" * 9999, '{"pid": "1", "started": null}', "\0"]
)
def test_a_broken_file_is_waited_for_and_taken_over(tmp_path: Path, text: str) -> None:
    (tmp_path / OWNER_FILE).write_text(text)
    said: list[str] = []
    hold(tmp_path, said.append)
    assert "from process 0 on an unknown host, which is gone" in said[-1]


def test_a_link_to_nothing_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).symlink_to("/nowhere/owner")
    with pytest.raises(ValueError, match="OWNER in it is a link to nothing that is there"):
        hold(tmp_path, str)


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
    with pytest.raises(ValueError, match=r"OWNER in it, .* \(Is a directory\); make room"):
        hold(tmp_path, str)


def test_a_disk_without_room_for_it_is_named(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, "write_atomic", full)
    with pytest.raises(ValueError, match=r"\(No space left on device\); make room"):
        hold(tmp_path, str)


ON_A_HOST = """
import pathlib, sys, time
from lighthouse.runs import owner

owner.BEAT_SECONDS, owner.LOOK_SECONDS, owner.DEAD_SECONDS = 0.05, 0.02, float(sys.argv[2])
time.time = lambda: 0.0  # a wall clock that is far off
try:
    owner.hold(pathlib.Path(sys.argv[1]), lambda said: print(said, flush=True))
except ValueError as error:
    print(f"refused: {error}", flush=True)
else:
    print("holds", flush=True)
    sys.stdin.read()
    owner.let_go()
"""


class Host:
    """A process that wants the folder on a host of its own: another name, other process ids."""

    def __init__(self, name: str, folder: Path, dead_seconds: float = 1.0) -> None:
        started = f'hostname {name}; exec "$@"'
        command = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += ["sh", "-c", started, "sh", sys.executable, "-c", ON_A_HOST, str(folder)]
        self.process = subprocess.Popen(
            [*command, str(dead_seconds)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, sudden: bool = False) -> None:
        """As its process lets go, or as the host loses its power."""
        if sudden:
            self.process.kill()
            self.process.wait()  # before its child could see an end of its input
        self.process.communicate()


def _has_hosts() -> bool:
    try:
        done = subprocess.run(["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"])
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not _has_hosts(), reason="namespaces can't be made here")
@pytest.mark.parametrize("touched", [0.0, 1e10], ids=["an old file", "a file of the future"])
def test_a_host_takes_over_from_another_by_its_own_clock(tmp_path: Path, touched: float) -> None:
    a = Host("host-a", tmp_path)
    assert a.says() == "holds"
    refused = Host("host-b", tmp_path, dead_seconds=30)  # a beat comes sooner
    assert re.fullmatch(
        r"Waiting up to 30 s for a sign of process \d+ on host-a, .*", refused.says()
    )
    assert re.match(r"refused: .* process \d+ on host-a trains there; stop that", refused.says())
    refused.end()
    a.end(sudden=True)
    os.utime(tmp_path / OWNER_FILE, (touched, touched))
    began = time.monotonic()
    b = Host("host-b", tmp_path)
    assert b.says().startswith("Waiting up to 1 s for a sign of process ")
    assert re.fullmatch(
        rf"Taking over {tmp_path} from process \d+ on host-a, which is gone", b.says()
    )
    assert b.says() == "holds" and time.monotonic() - began >= 1.0
    b.end()
    # Killed while it wrote a sign, the first may leave half of one.
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
