"""Which code a run is of: git's commit and the changes against it."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """The commit, with "+" behind it if tracked files differ from it; None outside git."""
    found = _git("rev-parse", "HEAD")
    return found and found.strip() + "+" * bool(_git("status", "--porcelain", "-uno"))


def difference() -> str:
    """Changes of tracked files against the commit, and the names of untracked ones."""
    untracked = _git("ls-files", "--others", "--exclude-standard") or ""
    listed = "".join(f"# not in git: {name}\n" for name in untracked.splitlines())
    return listed + (_git("diff", "HEAD", "--binary") or "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=60
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
