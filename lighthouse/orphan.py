"""A trainer's process that has lost its launcher ends: nobody else would ever end it.

Such a process would keep the run's folder, and others would wait for it.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from lighthouse.runs.owner import let_go

LAUNCHER_VARIABLE = "LIGHTHOUSE_LAUNCHER"
"""The launcher's process id, for the processes that it starts: it may be gone when they ask."""

LOOK_SECONDS = 1.0

_watches = False
_has_trained = False


def watch() -> None:
    """Look after the launcher from now on, in a thread; only where torchrun is the launcher.

    Before the first step there is nothing to save, and the process ends at once, even in a call
    that waits for others. Later it gets SIGTERM, which asks for a checkpoint.
    """
    global _watches
    if "TORCHELASTIC_RUN_ID" not in os.environ or _watches:
        return
    _watches = True
    launcher = int(os.environ.pop(LAUNCHER_VARIABLE, 0)) or _launching_parent()
    threading.Thread(target=_look, args=(launcher,), daemon=True).start()


def has_trained() -> None:
    """This process has trained a step: from now on an end must save a checkpoint."""
    global _has_trained
    _has_trained = True


def _launching_parent() -> int:
    """The parent's process id, under a torchrun that is not ours; 0 if that has gone before.

    Whoever takes in orphans is no Python, and has not what torchrun gave to this process, as a
    script in between would have.
    """
    parent = os.getppid()
    given = f"TORCHELASTIC_RUN_ID={os.environ['TORCHELASTIC_RUN_ID']}".encode()
    try:
        program = os.path.basename(os.readlink(f"/proc/{parent}/exe"))
        passed_on = given in Path(f"/proc/{parent}/environ").read_bytes().split(b"\0")
    except FileNotFoundError:
        return 0
    except PermissionError:  # another user's; the one that takes in orphans is the first process
        return 0 if parent == 1 else parent
    return parent if program.startswith("python") or passed_on else 0


def _look(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOK_SECONDS)
    if _has_trained:
        os.kill(os.getpid(), signal.SIGTERM)
        return
    try:
        if os.environ.get("LOCAL_RANK") == "0":
            with suppress(OSError):  # the screen may be gone with the launcher
                which = f"The launcher, process {launcher}," if launcher else "The launcher"
                said = "is gone: this one ends, and has trained no step"
                print(f"{which} {said}", file=sys.stderr, flush=True)
        let_go()
    finally:
        os._exit(1)
