"""Times of the stages and the time left, on a clock that the tests set."""

from pathlib import Path

import pytest

from lighthouse.runs.metrics import ETA
from lighthouse.titan.run.json_lines import JsonLinesLogger
from lighthouse.titan.run.stage_clock import ELAPSED, StageClock, console_eta

LIGHTHOUSE, DENSE = ELAPSED["lighthouse"], ELAPSED["dense"]


class HostClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def host(monkeypatch):
    host = HostClock()
    monkeypatch.setattr("time.perf_counter", host)
    return host


@pytest.fixture
def job(tmp_path: Path):
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.job.dump_folder = str(tmp_path)
    job.training.steps = 10
    job.lighthouse.enable = True
    job.lighthouse.dense_from_step = 7
    return job


def run(clock: StageClock, host: HostClock, seconds: dict[int, float]) -> dict[int, dict]:
    """Take steps that last so long, and what each logs at its end."""
    logged = {}
    for step, duration in seconds.items():
        clock.begin_step(step)
        host.now += duration
        logged[step] = clock.metrics(step)
    return logged


def test_each_stage_has_its_time_and_speed(job, host):
    # The first step of a stage compiles.
    steps = {1: 30.0, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 50, 8: 4, 9: 4, 10: 4}
    logged = run(StageClock(job), host, steps)
    assert logged[1] == {LIGHTHOUSE: 30.0}
    assert logged[4] == {LIGHTHOUSE: 33.0, ETA: 6.0}  # dense is not measured yet
    assert logged[7] == {LIGHTHOUSE: 35.0, DENSE: 50.0, ETA: 3.0}
    assert logged[9] == {LIGHTHOUSE: 35.0, DENSE: 58.0, ETA: 4.0}
    assert logged[10] == {LIGHTHOUSE: 35.0, DENSE: 62.0, ETA: 0.0}


def test_both_speeds_count_once_known(job, host):
    clock = StageClock(job)
    run(clock, host, {7: 50.0, 8: 4.0, 9: 4.0})
    # Never so in a run, but it shows both stages left with both speeds known.
    logged = run(clock, host, {1: 30.0, 2: 1.0, 3: 1.0})
    assert logged[3][ETA] == 3 * 1.0 + 4 * 4.0


@pytest.mark.parametrize(
    ("enable", "dense_from_step", "stage"),
    [(False, None, DENSE), (True, None, LIGHTHOUSE), (True, 1, DENSE), (True, 99, LIGHTHOUSE)],
)
def test_a_run_of_one_stage(job, host, enable, dense_from_step, stage):
    job.lighthouse.enable, job.lighthouse.dense_from_step = enable, dense_from_step
    assert run(StageClock(job), host, {1: 9.0, 2: 2.0, 3: 2.0})[3] == {stage: 13.0, ETA: 14.0}


def test_a_restart_counts_on_from_its_checkpoint(job, host):
    logger = JsonLinesLogger(job)
    steps = {1: 30.0, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 50, 8: 4, 9: 4}
    for step, metrics in run(StageClock(job), host, steps).items():
        logger.log(metrics | {"loss_metrics/global_avg_loss": 1.0}, step)
    logger.log({"validation_metrics/loss": 1.0}, 9)
    logger.close()

    host.now = 0.0
    early, late = StageClock(job), StageClock(job)
    early.resume(4)
    assert run(early, host, {5: 20.0})[5] == {LIGHTHOUSE: 53.0}
    late.resume(8)
    assert run(late, host, {9: 20.0})[9] == {LIGHTHOUSE: 35.0, DENSE: 74.0}


def test_nothing_logged_yet(job, host, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    clock = StageClock(job)
    clock.resume(3)
    assert run(clock, host, {4: 2.0})[4] == {LIGHTHOUSE: 2.0}


def test_the_console_shows_hours():
    assert console_eta({ETA: 3 * 3600 + 127.6}) == "  eta: 3:02:08"
    assert console_eta({}) == ""
