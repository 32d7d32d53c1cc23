"""Times of the stages and the time left, on a clock that the tests set."""

from pathlib import Path

import pytest

from lighthouse.metrics_log import ETA
from lighthouse.titan.metrics import JsonLinesLogger
from lighthouse.titan.progress import ELAPSED, Progress, console_eta

LIGHTHOUSE, DENSE = ELAPSED["lighthouse"], ELAPSED["dense"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


@pytest.fixture
def job(tmp_path: Path):
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.job.dump_folder = str(tmp_path)
    job.training.steps = 10
    job.lighthouse.enable = True
    job.lighthouse.dense_from_step = 7
    return job


def run(progress: Progress, clock: Clock, seconds: dict[int, float]) -> dict[int, dict]:
    """Take steps that last so long, and what each logs at its end."""
    logged = {}
    for step, duration in seconds.items():
        progress.begin_step(step)
        clock.now += duration
        logged[step] = progress.metrics(step)
    return logged


def test_each_stage_has_its_time_and_speed(job, clock):
    # The first step of a stage compiles.
    steps = {1: 30.0, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 50, 8: 4, 9: 4, 10: 4}
    logged = run(Progress(job), clock, steps)
    assert logged[1] == {LIGHTHOUSE: 30.0}
    assert logged[4] == {LIGHTHOUSE: 33.0, ETA: 6.0}  # dense is not measured yet
    assert logged[7] == {LIGHTHOUSE: 35.0, DENSE: 50.0, ETA: 3.0}
    assert logged[9] == {LIGHTHOUSE: 35.0, DENSE: 58.0, ETA: 4.0}
    assert logged[10] == {LIGHTHOUSE: 35.0, DENSE: 62.0, ETA: 0.0}


def test_both_speeds_count_once_known(job, clock):
    progress = Progress(job)
    run(progress, clock, {7: 50.0, 8: 4.0, 9: 4.0})
    # Never so in a run, but it shows both stages left with both speeds known.
    logged = run(progress, clock, {1: 30.0, 2: 1.0, 3: 1.0})
    assert logged[3][ETA] == 3 * 1.0 + 4 * 4.0


@pytest.mark.parametrize(
    ("enable", "dense_from_step", "stage"),
    [(False, None, DENSE), (True, None, LIGHTHOUSE), (True, 1, DENSE), (True, 99, LIGHTHOUSE)],
)
def test_a_run_of_one_stage(job, clock, enable, dense_from_step, stage):
    job.lighthouse.enable, job.lighthouse.dense_from_step = enable, dense_from_step
    assert run(Progress(job), clock, {1: 9.0, 2: 2.0, 3: 2.0})[3] == {stage: 13.0, ETA: 14.0}


def test_a_restart_counts_on_from_its_checkpoint(job, clock, tmp_path):
    logger = JsonLinesLogger(str(tmp_path))
    steps = {1: 30.0, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 50, 8: 4, 9: 4}
    for step, metrics in run(Progress(job), clock, steps).items():
        logger.log(metrics | {"loss_metrics/global_avg_loss": 1.0}, step)
    logger.log({"validation_metrics/loss": 1.0}, 9)
    logger.close()

    clock.now = 0.0
    early, late = Progress(job), Progress(job)
    early.resume(4)
    assert run(early, clock, {5: 20.0})[5] == {LIGHTHOUSE: 53.0}
    late.resume(8)
    assert run(late, clock, {9: 20.0})[9] == {LIGHTHOUSE: 35.0, DENSE: 74.0}


def test_nothing_logged_yet(job, clock, tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    progress = Progress(job)
    progress.resume(3)
    assert run(progress, clock, {4: 2.0})[4] == {LIGHTHOUSE: 2.0}


def test_the_console_shows_hours():
    assert console_eta({ETA: 3 * 3600 + 127.6}) == "  eta: 3:02:08"
    assert console_eta({}) == ""
