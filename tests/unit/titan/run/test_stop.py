"""When a run stops. Two processes that agree are in tests/integration/test_stop.py."""

import os
import signal
from pathlib import Path

import pytest
import torch.distributed as dist

from lighthouse.runs.folder import STOP_FILE
from lighthouse.titan.run.stop import StopRequest


@pytest.fixture
def job(tmp_path: Path):
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.job.dump_folder = str(tmp_path)
    job.training.steps = 10
    asked = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in asked}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield job
    dist.destroy_process_group()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def said(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("lighthouse.titan.run.stop.logger.info", lines.append)
    return lines


def test_nobody_asked(job, said):
    request = StopRequest(job)
    assert not request.check(3)
    request.conclude(10)
    assert said == ["Training completed"]


def test_a_file_asks_and_keeps_the_reason(job, tmp_path, said):
    job.checkpoint.enable = True
    request = StopRequest(job)
    (tmp_path / STOP_FILE).touch()
    assert request.check(3)
    request.conclude(3)
    assert (tmp_path / STOP_FILE).read_text() == "the file STOP\n"
    assert said[0].startswith(f"Stopped by the file STOP after step 3 of 10: saved {tmp_path}")


def test_a_file_older_than_the_process_is_removed(job, tmp_path, monkeypatch):
    (tmp_path / STOP_FILE).touch()
    written = (tmp_path / STOP_FILE).stat().st_mtime
    monkeypatch.setattr("lighthouse.titan.run.stop._PROCESS_STARTED", written - 1)
    assert StopRequest(job).check(3)
    monkeypatch.setattr("lighthouse.titan.run.stop._PROCESS_STARTED", written + 1)
    assert not StopRequest(job).check(3)
    assert not (tmp_path / STOP_FILE).exists()


def test_the_last_step_finishes_the_run(job, tmp_path, said):
    request = StopRequest(job)
    (tmp_path / STOP_FILE).touch()
    assert not request.check(10)
    request.conclude(10)
    assert said == ["Training completed"]
    assert not (tmp_path / STOP_FILE).exists()


@pytest.mark.parametrize("key", ["enable", "load_only"])
def test_a_run_without_checkpoints_says_so(job, said, key):
    setattr(job.checkpoint, key, key == "load_only")
    request = StopRequest(job)
    request.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.check(3)
    request.conclude(3)
    assert "nothing was saved" in said[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_asks_and_a_later_one_kills(job, monkeypatch, number):
    now = 100.0
    raised: list[int] = []
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("signal.raise_signal", raised.append)
    request = StopRequest(job)
    request.listen()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # the same request, passed on by a launcher
    assert request.check(3) and not raised
    now = 200.0
    os.kill(os.getpid(), number)
    assert raised == [number] and signal.getsignal(number) == signal.SIG_DFL


def test_a_faked_process_group_needs_no_agreement(job, monkeypatch):
    job.comm.mode = "fake_backend"
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 64)
    assert not StopRequest(job).check(3)
