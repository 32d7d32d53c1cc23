"""Files that are there whole or not at all."""

import os
import socket
from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """Write a file in one move, on the disk before it is there under its name."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
