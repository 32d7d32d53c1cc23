"""One trainer at a time in a run's folder, on one host or on several that share a disk.

The file ``OWNER`` says which process trains there. On its own host that process is alive if it is
there and began when the file says; of another folder, from which this one was copied, if it has the
same file there. Elsewhere only its heartbeat tells: a number in the file, which it raises. The
waiting side takes the time of that, by a clock that nobody sets.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lighthouse.runs.files import of_json, read_json, write_atomic
from lighthouse.runs.folder import OWNER_FILE

DEAD_SECONDS = 120.0  # without a beat, several times of what lies between two
BEAT_SECONDS = 20.0
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Owner:
    """A process that trains.

    Attributes:
        token: of this start, as no other has it.
        host: for people; ``machine`` is where process ids mean the same.
        pid, started: which process, and when it began, in the kernel's ticks.
        folder: where it trains, without links; empty in files from before that was written down.
        beat: raised while it lives.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    folder: str = ""
    beat: int = 0

    @classmethod
    def this(cls, folder: Path) -> "Owner":
        """This process, in a folder."""
        pid, token = os.getpid(), uuid.uuid4().hex
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
        where = str(folder.resolve())
        return cls(token, socket.gethostname(), machine, pid, _started(pid) or "", where)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class _Hold:
    """A folder that this process owns, and the thread that says so."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path = path
        self._owner = owner
        self._let_go = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._let_go.set()
        self._thread.join()  # which may be about to write the file
        with suppress(OSError):  # the disk is gone, say; the process is about to be, too
            found = _read(self._path)
            if os.getpid() == self._owner.pid and found and found.token == self._owner.token:
                self._path.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._let_go.wait(BEAT_SECONDS):
            with suppress(OSError):  # the disk is full, say; training may not need it now
                self._beat()

    def _beat(self) -> None:
        found = _read(self._path)
        if found is not None and found.token != self._owner.token:
            # This process was asleep for so long that it was taken for dead.
            print(f"{found} has taken over {self._path.parent}: this one ends", file=sys.stderr)
            os._exit(1)
        self._owner = replace(self._owner, beat=self._owner.beat + 1)
        write_atomic(self._path, _text(self._owner))


_held: _Hold | None = None


def hold(folder: Path, say: Callable[[str], None]) -> None:
    """Own a run's folder from now on, until `let_go` or the end of this process.

    Waits up to `DEAD_SECONDS` for a sign of life of an owner on another host.

    Args:
        folder: that of the run, which exists.
        say: gets a sentence where it waits, and where it takes the folder over.

    Raises:
        ValueError: a living process owns it, or the file can't be read or made.
    """
    global _held
    let_go()
    path = folder / OWNER_FILE
    try:
        own = Owner.this(folder)
        _take(path, own, say)
    except OSError as error:
        raise ValueError(
            f"job.dump_folder = {str(folder)!r}: {path.name} in it, which says who trains there, "
            f"can't be read and written ({error.strerror}); make room, or move it away"
        ) from error
    _held = _Hold(path, own)


def _take(path: Path, own: Owner, say: Callable[[str], None]) -> None:
    """Put the file there as soon as it is nobody else's."""
    folder = path.parent
    while not _create(path, own):
        found = _read(path)
        if found is None:
            if path.is_symlink():  # which would neither be there nor go
                raise ValueError(
                    f"job.dump_folder = {str(folder)!r}: {path.name} in it is a link to nothing "
                    "that is there; remove it"
                )
            time.sleep(LOOK_SECONDS)  # it has just gone
        elif _is_alive(path, found, own, say):
            raise ValueError(
                f"job.dump_folder = {str(folder)!r}: {found} trains there; stop that first, by the "
                "file STOP in the folder, say, or use another folder"
            )
        else:
            gone = "of whose folder it is a copy" if _is_copy(path, found, own) else "which is gone"
            say(f"Taking over {folder} from {found}, {gone}")
            _remove(path, found, own)


def let_go() -> None:
    """Own no folder any more."""
    global _held
    if _held is not None:
        _held.end()
        _held = None


def _is_copy(path: Path, owner: Owner, own: Owner) -> bool:
    """Whether the file was copied from the folder where its owner, of this host, still has it.

    A folder that was moved is not in its old place any more.
    """
    if owner.machine != own.machine or owner.folder in ("", own.folder):
        return False
    original = Path(owner.folder) / path.name
    try:
        there = _read(original)
        return there is not None and there.token == owner.token and not original.samefile(path)
    except OSError:
        return False


def _is_alive(path: Path, owner: Owner, own: Owner, say: Callable[[str], None]) -> bool:
    if owner.machine == own.machine:
        return _started(owner.pid) == owner.started and not _is_copy(path, owner, own)
    say(f"Waiting up to {DEAD_SECONDS:.0f} s for a sign of {owner}, which trained here last")
    since = time.monotonic()
    while time.monotonic() - since < DEAD_SECONDS:
        time.sleep(LOOK_SECONDS)
        if (now := _read(path)) != owner:
            return now is not None
    return False


def _started(pid: int) -> str | None:
    """When a process of this machine began; None if there is none of that number, or a dead one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may have anything in it
    return None if fields[0] in "ZX" else fields[19]


def _create(path: Path, owner: Owner) -> bool:
    """Put the file there in full if there is none."""
    mine = path.with_name(f".{path.name}.{owner.token}")
    write_atomic(mine, _text(owner))
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    finally:
        mine.unlink()
    return True


def _remove(path: Path, dead: Owner, own: Owner) -> None:
    """Take a dead owner's file away, and no file of one who was quicker."""
    aside = path.with_name(f".{path.name}.{own.token}.dead")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        found = _read(aside)
        if found is not None and found.token != dead.token:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _read(path: Path) -> Owner | None:
    """The owner; None where there is no file, and one without a heartbeat where it is broken."""
    try:
        return of_json(Owner, read_json(path), path)
    except FileNotFoundError:
        return None
    except ValueError:
        return Owner(token="", host="an unknown host", machine="", pid=0, started="")


def _text(owner: Owner) -> str:
    return json.dumps(asdict(owner)) + "\n"
