"""Which code a run is of: git's commit and the changes against it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """The commit, with "+" behind it if tracked files differ from it; None outside git."""
    found = _git("rev-parse", "HEAD")
    changed = bool(_git("status", "--porcelain", "-uno"))
    return None if found is None else found.decode().strip() + "+" * changed


def difference() -> bytes:
    """Changes of tracked files against the commit, and the names of untracked ones.

    Bytes, because a changed file may be in any encoding.
    """
    untracked = _git("ls-files", "--others", "--exclude-standard") or b""
    listed = b"".join(b"# not in git: " + name + b"\n" for name in untracked.splitlines())
    return listed + (_git("diff", "HEAD", "--binary") or b"")


def _git(*arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
