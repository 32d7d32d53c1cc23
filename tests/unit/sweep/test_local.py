"""Signals to a sweep's runs on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lighthouse.sweep import local
from lighthouse.sweep.local import run_local
from tests.support.sweeps import make_run, make_submission


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_while_a_worker_is_being_started_ends_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    workers: list[subprocess.Popen] = []

    def start(*_: object) -> subprocess.Popen:
        if workers:
            os.kill(os.getpid(), number)  # before anybody has the second one's handle
        wait = [sys.executable, "-c", "import time; time.sleep(20)"]
        workers.append(subprocess.Popen(wait))
        return workers[-1]

    monkeypatch.setattr(local, "_start", start)
    runs = [make_run(tmp_path, f"k={i}") for i in range(3)]
    before = signal.getsignal(number)
    began = time.monotonic()
    run_local(make_submission(runs), 2)
    assert time.monotonic() - began < 15
    # The third was not begun.
    assert [worker.returncode for worker in workers] == [-signal.SIGTERM] * 2
    assert signal.getsignal(number) == before
