"""What stands in a run's folder, for those who read it without the trainer.

A checkpoint ``step-N`` is finished when its ``.metadata`` exists, which the distributed checkpoint
writer renames into place last, or the index that ends weights in Hugging Face's format.
"""

import os
import re
from pathlib import Path

RESOLVED_FILE = "config.toml"
CONFIGS_FOLDER = "configs"
ASSETS_FOLDER = "assets"
STOP_FILE = "STOP"
LAST_WORD_FILE = "LAST_WORD"
DIVERGED_FILE = "DIVERGED"
OWNER_FILE = "OWNER"

_LAST_WRITTEN = (".metadata", "model.safetensors.index.json")


def is_finished(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a ``step-N`` folder was written to its end.

    Raises:
        ValueError: it can't be read.
    """
    folder = Path(checkpoint)
    try:
        files = [folder / name for name in _LAST_WRITTEN]
        # A folder or a broken link in its place is damage, for those who read it to name.
        return any(file.exists() or file.is_symlink() for file in files)
    except OSError as error:  # another user's, say
        raise ValueError(f"checkpoint {folder} can't be read ({error.strerror})") from error


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder, by its name; None for the name of something else."""
    match = re.fullmatch(r"step-(0|[1-9][0-9]*)", name)  # as it is written: no 007
    return int(match[1]) if match else None


def all_steps(folder: str | os.PathLike[str]) -> list[int]:
    """Steps of the checkpoints under ``folder``, ascending; empty if it doesn't exist.

    Raises:
        ValueError: it can't be read.
    """
    try:
        names = os.listdir(folder) if os.path.isdir(folder) else []
    except OSError as error:
        raise ValueError(f"{folder} can't be read ({error.strerror})") from error
    return sorted(step for name in names if (step := step_of(name)) is not None)


def finished_steps(folder: str | os.PathLike[str]) -> list[int]:
    """Those of `all_steps` whose checkpoint is finished.

    Not those that can't be looked into, where a newer one is finished: that one is what is read.

    Raises:
        ValueError: the folder can't be read, or a checkpoint that would be the newest.
    """
    finished, _, unreadable = _looked_into(folder)
    if max(unreadable, default=-1) > max(finished, default=-1):
        newest = unreadable[max(unreadable)]
        raise ValueError(f"{newest}; make it readable, or move it away to do without it")
    return finished


def unreadable_checkpoints(folder: str | os.PathLike[str]) -> list[str]:
    """What is wrong with each that can't be looked into."""
    return list(_looked_into(folder)[2].values())


def _looked_into(
    folder: str | os.PathLike[str],
) -> tuple[list[int], list[int], dict[int, str]]:
    """All steps: the finished ones, the others, and what is wrong with those that can't be read."""
    finished: list[int] = []
    others: list[int] = []
    unreadable: dict[int, str] = {}
    for step in all_steps(folder):
        try:
            (finished if is_finished(Path(folder, f"step-{step}")) else others).append(step)
        except ValueError as error:
            unreadable[step] = str(error)
    return finished, others, unreadable


def unfinished_steps(folder: str | os.PathLike[str]) -> list[int]:
    """Those behind the newest finished one, which a run that goes on passes over."""
    newest = max(finished_steps(folder), default=-1)
    return [step for step in all_steps(folder) if step > newest]


def newest_checkpoint(folder: Path) -> Path | None:
    """The finished checkpoint of the highest step in any folder of a run's folder."""
    found = [(s, path / f"step-{s}") for path in folder.iterdir() for s in finished_steps(path)]
    return max(found, default=(0, None))[1]


def diverged(folder: Path) -> str | None:
    """At which step a run's numbers were not finite any more, in words; None if they are."""
    file = folder / DIVERGED_FILE
    return file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else None


def stale_checkpoints(folder: str, keep: int) -> tuple[list[str], list[str]]:
    """What to delete so that the newest ``keep`` finished checkpoints stay, and later ones.

    Before the newest there may also be what a killed save or a killed deletion has left.

    Returns:
        Their paths; and what is wrong with those that can't be read, which stay.
    """
    finished, others, unreadable = _looked_into(folder)
    newest = max(finished, default=0)
    stale = sorted([*finished[:-keep], *(step for step in others if step < newest)])
    return [os.path.join(folder, f"step-{step}") for step in stale], list(unreadable.values())
