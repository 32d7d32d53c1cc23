"""Shell scripts in the place of commands, which note how they were called."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StandIns:
    """A folder of them, to be put on the PATH; calling it makes one."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()

    def __call__(self, name: str, script: str) -> None:
        """Make the command ``name``; its arguments are noted before the script runs."""
        note = f"printf '%s\\0' \"$@\" >>'{self.folder}/{name}.calls'\n"
        note += f"printf '\\n\\0' >>'{self.folder}/{name}.calls'\n"
        (self.folder / name).write_text(f"#!/bin/bash\n{note}{script}\n")
        (self.folder / name).chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """Arguments of each call of a command."""
        file = self.folder / f"{name}.calls"
        found: list[list[str]] = [[]]
        for word in file.read_text().split("\0")[:-1] if file.exists() else []:
            if word == "\n":
                found.append([])
            else:
                found[-1].append(word)
        return found[:-1]
