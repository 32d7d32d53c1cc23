"""A run's folder: its name, what is written into it, and what it tells about the run.

run.json        who it is: name, identity, overrides, code; written last when it is made
config.toml     the resolved configuration, which the trainer starts from
git.diff        changes of the working tree against the commit in run.json
batch.sh        the batch script that it was last submitted with
attempts.jsonl  two lines an attempt: its start, its end
train.log       all that the attempts printed
metrics.jsonl   the trainer's metrics, and its checkpoints beside them
ALIVE           touched by the worker while an attempt is at work
CANCEL          asks for an end, and not to begin
DONE            finished; written last of all
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lighthouse.runs.files import of_json, open_file, read_json, write_atomic
from lighthouse.runs.folder import (
    DIVERGED_FILE,
    RESOLVED_FILE,
    finished_steps,
    newest_checkpoint,
)
from lighthouse.runs.metrics import METRICS_FILE
from lighthouse.sweep.identity import Values, is_first_versions
from lighthouse.sweep.spec import Point

RUN_FILE = "run.json"
MEMBERS_FILE = "{}.runs.json"
ATTEMPTS_FILE = "attempts.jsonl"
ALIVE_FILE = "ALIVE"
CANCEL_FILE = "CANCEL"
DONE_FILE = "DONE"
LOG_FILE = "train.log"

# Why an attempt ended.
FINISHED = "finished"
PREEMPTED = "preempted"
TIME_LIMIT = "time limit"
CANCELLED = "cancelled"
STOPPED = "stopped"
FAILED = "failed"
DIVERGED = "diverged"
LOST = "lost"

# Keys that say nothing without their section.
_VAGUE = ("enable", "mode", "name")


@dataclass(frozen=True)
class Attempt:
    """One start of the trainer.

    Attributes:
        number: from 1.
        submission: the sweep's submission that it belongs to.
        start, end: Unix seconds.
        host, pid: of the launcher; ``job``: Slurm's ARRAY_TASK, ``None`` without Slurm.
        commit: of the code; "+" behind it if the working tree differed.
        reason: one of the above.
        step: of the newest checkpoint at the end.
        error: of a failure, one line.
    """

    number: int
    submission: int
    start: float
    host: str
    pid: int
    job: str | None
    commit: str | None
    end: float | None = None
    reason: str | None = None
    exit_code: int | None = None
    step: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Run:
    """A run's folder and its ``run.json``.

    Attributes:
        identity: hash of all that decides what is trained.
        steps: the run's last.
        checkpoint_folder: name of the folder of checkpoints in ``folder``.
        gpu_hours: the plan's estimate; ``None`` on CPUs.
        version: of the identity.
    """

    folder: Path
    name: str
    identity: str
    overrides: Point
    processes: int
    steps: int
    checkpoint_folder: str
    gpu_hours: float | None
    commit: str | None
    version: int = 1

    @property
    def done(self) -> bool:
        return (self.folder / DONE_FILE).exists()

    def unreadable(self) -> str | None:
        """What of the run can't be read, and why; None where all can."""
        try:
            for name in (RUN_FILE, ATTEMPTS_FILE, METRICS_FILE, DIVERGED_FILE):
                with suppress(FileNotFoundError):
                    open_file(self.folder / name).close()
            newest_checkpoint(self.folder)
        except FileNotFoundError:  # the folder is not made yet
            return None
        except (ValueError, OSError) as error:  # another user's, say
            return _in_words(error)
        return None

    def checkpoint_step(self) -> int:
        """Step of the newest finished checkpoint, 0 without one."""
        return max(finished_steps(self.folder / self.checkpoint_folder), default=0)

    def attempts(self) -> list[Attempt]:
        """All attempts in order; what a killed process left half written is skipped."""
        path = self.folder / ATTEMPTS_FILE
        records: dict[int, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and type(record.get("number")) is int:
                        records.setdefault(record["number"], {}).update(record)
        found = []
        for _, record in sorted(records.items()):
            with suppress(ValueError):  # its first line is what is broken
                found.append(of_json(Attempt, record, path))
        return found

    def log_attempt(self, record: dict[str, Any]) -> None:
        """Append a line on an attempt; a later one of the same number adds to the earlier."""
        path = self.folder / ATTEMPTS_FILE
        torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run_names(points: Sequence[Point]) -> list[str]:
    """A name for each point, made of its overrides: ``topk=1536,seed=1``.

    Keys that have the same value at all of several points are left out. Keys go without their
    section where that is clear, paths without the folders that all have in common. Characters
    other than letters, digits and ``._+-`` become ``_``, and long values are cut: what tells runs
    apart is their identity.
    """
    keys = {key for point in points for key in point}
    last = Counter(key.rpartition(".")[2] for key in keys)

    def short(key: str) -> str:
        name = key.rpartition(".")[2]
        return key if last[name] > 1 or name in _VAGUE else name

    common = {key: _common_folders([p[key] for p in points if key in p]) for key in keys}

    def text(value: Any, folders: int = 0) -> str:
        if folders and isinstance(value, str):
            value = "/".join(Path(value).parts[folders:])
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list):
            return "+".join(map(text, value)) or "none"
        return re.sub(r"[^A-Za-z0-9._+-]", "_", str(value))[:40]

    varying = {k for k in keys if any(k not in p or p[k] != points[0].get(k) for p in points)}

    def name(point: Point) -> str:
        told = {key: value for key, value in point.items() if key in varying or len(points) == 1}
        parts = (f"{short(key)}={text(value, common[key])}" for key, value in told.items())
        return ",".join(parts) or "base"

    return [name(point)[:150] for point in points]


def _common_folders(values: Sequence[Any]) -> int:
    """How many folders all values begin with, where all are paths."""
    paths = [Path(value).parts for value in values if isinstance(value, str) and "/" in value]
    if len(paths) != len(values):
        return 0
    shortest = min(len(path) for path in paths) - 1
    differing = (i for i in range(shortest) if len({path[i] for path in paths}) > 1)
    return next(differing, shortest)


def folder_of(
    output: Path, name: str, key: str, values: Values, processes: int, named: Collection[str]
) -> Path:
    """The folder of a run, under whatever name it was made: sweeps of one output share runs.

    Args:
        key: the run's identity; the other arguments are as in :mod:`lighthouse.sweep.identity`.
    """
    for folder in sorted(output.glob(f"*@{key}")):
        return folder
    for folder in sorted(file.parent for file in output.glob(f"*/{RUN_FILE}")):
        record = read_json(folder / RUN_FILE)
        if is_first_versions(folder, record, values, processes, named):
            return folder
    return output / f"{name}@{key}"


def write_run(run: Run, config_toml: str, diff: bytes) -> None:
    """Make a run's folder, ``run.json`` last."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(run.folder / RESOLVED_FILE, config_toml)
    (run.folder / "git.diff").write_bytes(diff)
    record = {key: value for key, value in asdict(run).items() if key != "folder"}
    write_atomic(run.folder / RUN_FILE, json.dumps(record, indent=2) + "\n")


def change_run(run: Run, steps: int, config_toml: str) -> None:
    """Let a run that has begun, and is not at work, go on with another configuration.

    One that was done is not any more, if it has more steps now.
    """
    write_atomic(run.folder / RESOLVED_FILE, config_toml)
    record = read_json(run.folder / RUN_FILE) | {"steps": steps}
    write_atomic(run.folder / RUN_FILE, json.dumps(record, indent=2) + "\n")
    if run.checkpoint_step() < steps:
        (run.folder / DONE_FILE).unlink(missing_ok=True)


def read_run(folder: Path) -> Run:
    """The run of a folder that `write_run` made.

    Raises:
        ValueError: its ``run.json`` is damaged.
        OSError: it can't be read.
    """
    record = read_json(folder / RUN_FILE)
    return of_json(Run, record, folder / RUN_FILE, folder=folder)


@dataclass(frozen=True)
class _Unreadable(Run):
    """A run of which nothing is known, since its ``run.json`` can't be read."""

    why: str = ""

    def unreadable(self) -> str:
        return self.why


def read_if_there(folder: Path) -> Run | None:
    """The run of a folder, if it has one; where it can't be read one that says so."""
    if not _has_run(folder):
        return None
    try:
        return read_run(folder)
    except (ValueError, OSError) as error:
        name, _, identity = folder.name.rpartition("@")
        return _Unreadable(folder, name, identity, {}, 0, 0, "", None, None, why=_in_words(error))


def _in_words(error: ValueError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename} can't be read ({error.strerror})"
    return str(error)


@dataclass(frozen=True)
class _Member:
    """A run of a sweep, and what the sweep calls it."""

    folder: str
    name: str | None = None
    overrides: Point | None = None


def write_members(output: Path, sweep: str, runs: Sequence[Run]) -> None:
    """Note which runs a sweep consists of, as of now and in order, and what it calls them."""
    members = [{"folder": r.folder.name, "name": r.name, "overrides": r.overrides} for r in runs]
    write_atomic(output / MEMBERS_FILE.format(sweep), json.dumps(members, indent=2) + "\n")


def read_runs(output: Path, sweep: str | None = None) -> list[Run]:
    """The runs of a sweep in its order and by its names, or all that its output folder has.

    Runs of the sweep whose folder is gone are left out, with a note on the standard error. Those
    that can't be read are among them, and say so by `Run.unreadable`.

    Raises:
        ValueError: there are none.
    """
    if sweep is None:
        found = map(read_if_there, sorted(output.iterdir()))
        runs = [run for run in found if run is not None]
    else:
        file = output / MEMBERS_FILE.format(sweep)
        members = read_json(file) if file.exists() else []
        if not isinstance(members, list):
            raise ValueError(f"{file} is damaged: it has no list")
        runs = []
        for member in members:
            # Older files have folders alone. A run that sweeps share is called otherwise in each.
            own = of_json(_Member, {"folder": member} if isinstance(member, str) else member, file)
            folder = output / own.folder
            if (run := read_if_there(folder)) is not None:
                overrides = run.overrides if own.overrides is None else own.overrides
                runs.append(replace(run, name=own.name or run.name, overrides=overrides))
            else:
                print(f"note: {folder} is gone; `submit` makes it again", file=sys.stderr)
    if not runs:
        raise ValueError(f"{output} has no runs{f' of {sweep}' if sweep else ''}: submit it first")
    return runs


def _has_run(folder: Path) -> bool:
    """Whether a run was made there, as far as can be told."""
    try:
        return (folder / RUN_FILE).exists()
    except OSError:  # another user's: its name tells
        return "@" in folder.name


def active_seconds(attempts: Iterable[Attempt], until: float) -> float:
    """Time spent in attempts up to a moment, Unix seconds; an unended one counts up to then."""
    spans = ((a.start, until if a.end is None else min(a.end, until)) for a in attempts)
    return sum(max(0.0, end - start) for start, end in spans)
