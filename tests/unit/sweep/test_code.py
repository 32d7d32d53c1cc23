"""Which code a run is of."""

import subprocess

from lighthouse.sweep import code
from lighthouse.sweep.run_folder import write_run
from tests.support.sweeps import make_run


def test_changes_of_any_encoding_are_kept(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x")
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    (tmp_path / "a.txt").write_bytes(b"\xe8\n")
    git("init", "-q")
    git("add", "a.txt")
    git("commit", "-qm", "x")
    monkeypatch.setattr(code, "ROOT", tmp_path)
    assert not str(code.commit()).endswith("+")
    (tmp_path / "a.txt").write_bytes(b"\xe9\r\n")
    (tmp_path / "b.txt").touch()
    assert str(code.commit()).endswith("+")
    run = make_run(tmp_path / "out")
    write_run(run, "", code.difference())
    kept = (run.folder / "git.diff").read_bytes()
    assert b"# not in git: b.txt\n" in kept and b"-\xe8\n+\xe9\r\n" in kept
