"""An end that is said in one sentence: last on the screen, with its exit code, and no traceback.

That is a user's mistake, or a run whose numbers are not finite any more.

A trainer is many processes under a launcher. They all refuse alike, or one alone does; the launcher
is told through a file, so that it can say the sentence once, after everything else. Under Slurm and
in sweeps the launchers of several nodes are below another process, which they tell in the same way.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lighthouse.runs.files import write_atomic

EXIT_CODE = 2
"""Of a process that refused: trying again does the same again."""

FILE_VARIABLE = "LIGHTHOUSE_LAST_WORD"
"""Names the file that the process above reads the sentence from."""

REFUSED = "refused: "
"""Begins a refusal's line."""

DIVERGED = "diverged: "
"""Begins the line of a run whose numbers are not finite any more."""

ENDINGS = {REFUSED: EXIT_CODE, DIVERGED: 3}
"""The exit code of each; after either, trying again does the same again."""

_RANKS_OWN = re.compile(rf"({'|'.join(ENDINGS)})rank \d+: ")
_AFTER_RANK_0 = 5.0  # seconds, in which a rank that says the same is ended by torchrun


class Refusal(ValueError):
    """One sentence that names what the user gave, and says what would do."""


class Diverged(Exception):
    """A run's numbers are not finite any more: one sentence with the step, and what would do."""


class NothingToDo(Exception):
    """What was asked for is done already, in one sentence; no mistake."""


@contextmanager
def refusals() -> Iterator[None]:
    """Inside, a ``ValueError`` is a user's mistake: it leaves as a :class:`Refusal`."""
    try:
        yield
    except Refusal:
        raise
    except ValueError as error:
        raise Refusal(str(error)) from error


def say_last(sentence: str, above: str | None) -> None:
    """Say a sentence, through the process above where there is one.

    Args:
        sentence: of rank 0, or of one rank, whose word gives way to that of rank 0.
        above: the value of `FILE_VARIABLE` that this process was started with.
    """
    if above is not None:
        if _RANKS_OWN.match(sentence) and Path(above).exists():
            return
        with suppress(OSError):  # a folder that can't be written is what is refused, perhaps
            write_atomic(Path(above), sentence)
            return
    print(sentence, file=sys.stderr, flush=True)


def last_word(file: Path) -> str | None:
    """What the processes below have said; it is not there any more then."""
    try:
        said = file.read_text(encoding="utf-8")
    except OSError:
        return None
    file.unlink()
    return said


def one_line(sentence: object) -> str:
    """With escapes for what breaks a line or can't be printed, such as in the name of a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(sentence))


def in_words(error: object) -> str:
    """What a user reads of an error; the system's own for what is another user's says no way on."""
    if isinstance(error, PermissionError) and error.filename:
        named = f"{error.filename} can't be read or written ({error.strerror})"
        return f"{named}; make it yours, or name another"
    return str(error)


def refuse(sentence: object) -> None:
    """End a command with the sentence, or with an error in words. Does not return."""
    print(f"{REFUSED}{one_line(in_words(sentence))}", file=sys.stderr, flush=True)
    sys.exit(EXIT_CODE)


def ending_of(said: str) -> str | None:
    """Which of `ENDINGS` a last word begins with; None for another one."""
    return next((ending for ending in ENDINGS if said.startswith(ending)), None)


def end_in_a_rank(sentence: object, rank: int, ending: str = REFUSED) -> None:
    """End a trainer's process: rank 0 says the sentence, or the one rank that is concerned.

    A rank cannot know whether others end as well. Where rank 0 does, torchrun ends the others
    before they speak. Does not return.

    Args:
        sentence: what is said.
        rank: of this process.
        ending: one of `ENDINGS`.
    """
    sentence = one_line(sentence)
    noted = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if noted:
        # The traceback that torchrun's decorator may have put there.
        Path(noted).unlink(missing_ok=True)
    if rank != 0:
        time.sleep(_AFTER_RANK_0)
        sentence = f"rank {rank}: {sentence}"
    if noted:
        _tell_torchrun(Path(noted), f"{ending}{sentence}")
    say_last(f"{ending}{sentence}", os.environ.get(FILE_VARIABLE))
    sys.stdout.flush()
    # Without the exit handlers of process groups, which wait for ranks that are gone.
    os._exit(ENDINGS[ending])


def _tell_torchrun(noted: Path, sentence: str) -> None:
    """Put a sentence into the report that torchrun's own command ends with.

    The form is that of ``torch.distributed.elastic.multiprocessing.errors``.
    """
    when = {"timestamp": str(int(time.time()))}
    report = {"message": {"message": sentence, "extraInfo": when}}
    with suppress(OSError):  # the disk is full, say; the sentence is on the screen anyway
        write_atomic(noted, json.dumps(report))
