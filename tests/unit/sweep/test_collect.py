"""The results of a sweep as tables."""

import csv
import json
import math

import pytest

from lighthouse.runs.folder import DIVERGED_FILE
from lighthouse.sweep.collect import collect, markdown, write_results
from lighthouse.sweep.progress import Progress, progress_of
from lighthouse.sweep.run_folder import FAILED, PREEMPTED, Attempt, active_seconds
from tests.support.sweeps import log_attempts, log_metrics, make_run


def test_active_time_is_that_of_attempts():
    def attempt(start, end):
        return Attempt(1, 1, start, "h", 1, None, None, end)

    attempts = [attempt(0.0, 10.0), attempt(20.0, 30.0), attempt(50.0, None)]
    assert [active_seconds(attempts, t) for t in (5, 15, 25, 40, 60)] == [5, 10, 15, 20, 30]


def test_a_row_of_the_table(tmp_path):
    run = make_run(tmp_path)
    log_metrics(run, loss=lambda step: 9.0 if step == 15 else 3.0)
    log_attempts(run, PREEMPTED, FAILED)
    (row,) = collect([run])
    assert row | {"identity": "0123abcd"} == {
        "name": "k=1",
        "identity": "0123abcd",
        "overrides": {"lighthouse.topk": 1},
        "done": False,
        "steps": 20,
        "tokens": 200,
        "processes": 1,
        "attempts": 2,
        "gpu_hours": pytest.approx(200 / 3600),
        "lighthouse_tokens_per_second": 50.0,
        "dense_tokens_per_second": 50.0,
        "loss_before_switch": 3.0,
        "spike": 9.0,
        "steps_to_recover": None,
        "final_loss": 4.0,  # of six dense steps, the spike among them
        "validation_loss": 2.5,
    }


def test_diverged_runs_are_told_apart_where_there_are_any(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a=1", "b=2")]
    assert "diverged" not in collect(runs)[0]
    (runs[1].folder / DIVERGED_FILE).write_text("step 3: the loss is not finite\n")
    assert [row["diverged"] for row in collect(runs)] == [False, True]


def test_metrics_without_times_and_tokens(tmp_path):
    run = make_run(tmp_path)
    (run.folder / "metrics.jsonl").write_text('{"step": 3, "loss": 2.0, "tokens_seen": "nan"}\n')
    (row,) = collect([run])
    assert (row["steps"], row["tokens"], row["final_loss"]) == (3, None, 2.0)
    assert progress_of(run, running=True) == Progress(3, 2.0)


def test_a_run_that_has_not_begun_has_an_empty_row(tmp_path):
    (row,) = collect([make_run(tmp_path)])
    assert (row["steps"], row["final_loss"], row["gpu_hours"]) == (0, None, 0.0)


def test_a_run_has_come_to_its_newest_checkpoint(tmp_path):
    """Which may be of a later step than the last one that was logged."""
    run = make_run(tmp_path, steps=2)

    def save(step):
        (run.folder / f"checkpoint/step-{step}").mkdir(parents=True)
        (run.folder / f"checkpoint/step-{step}/.metadata").touch()

    save(1)
    assert progress_of(run, running=True) == Progress(1)
    assert collect([run])[0]["steps"] == 1
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    save(2)
    assert progress_of(run, running=False) == Progress(2, 3.0)
    assert collect([run])[0]["steps"] == 2
    save(30)  # of which nothing is logged, nor of the next
    (run.folder / "checkpoint/step-40").mkdir()
    assert progress_of(run, running=False).step == 30


def test_results_in_three_forms(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a=1", "b=2,c=x")]
    log_metrics(runs[0], loss=lambda step: math.nan if step == 20 else 3.0)
    rows = collect(runs)
    table, as_json, text = (path.read_text() for path in write_results(rows, tmp_path))
    assert json.loads(as_json)[0]["final_loss"] == "nan"
    (first, second) = csv.DictReader(table.splitlines())
    assert first["lighthouse.topk"] == "1" and first["tokens"] == "200"
    assert second["name"] == "b=2,c=x" and second["final_loss"] == ""
    lines = text.splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines} == {lines[0].count("|")}
    assert text == markdown(rows)
