"""A folder that another user has closed, as a test that may run as root sees none."""

import errno
import os
from pathlib import Path

import pytest


def lock(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Let nothing in a folder, nor the folder itself, be read by :mod:`pathlib`."""

    def refused(method, at):
        def wrapped(path: Path, *args, **more):
            if closed in (path.parents if at == "inside" else (path, *path.parents)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return method(path, *args, **more)

        return wrapped

    for name, at in (("stat", "inside"), ("open", "inside"), ("iterdir", "itself, too")):
        monkeypatch.setattr(Path, name, refused(getattr(Path, name), at))
