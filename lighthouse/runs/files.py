"""Files that are there whole or not at all."""

import json
import os
import socket
from pathlib import Path
from typing import Any


def write_atomic(path: Path, text: str) -> None:
    """Write a file in one move, on the disk before it is there under its name."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """What a file of JSON has.

    Raises:
        ValueError: naming the file, which has something else.
        OSError: it can't be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, no JSON: {error}") from error
