"""The metrics of a run as they are read again: in order, superseded steps left out."""

import json
import math
from pathlib import Path

import pytest

from lighthouse.runs.metrics import METRICS_FILE, join_runs, read_metrics
from lighthouse.titan.run.json_lines import JsonLinesLogger


def logger_of(folder: Path) -> JsonLinesLogger:
    """The trainer's, which writes what is read here."""
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.job.dump_folder = str(folder)
    return JsonLinesLogger(job)


def write(folder: Path, *steps: int, loss: float = 1.0) -> None:
    logger = logger_of(folder)
    for step in steps:
        logger.log({"loss_metrics/global_avg_loss": loss}, step)
    logger.close()


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, "loss": null}',
        '{"step": -2, "loss": 1.0}',
        f'{{"step": {10**30}, "loss": 1.0}}',
        '{"step": 2, "loss": 1.0, "attention": ["dense"]}',
        '{"step": 2, "loss": 1.0, "attention": "other"}',
        '{"step": true, "loss": 1.0}',
    ],
)
def test_a_line_of_no_step_is_passed_over(tmp_path: Path, line: str) -> None:
    write(tmp_path, 1)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write(f"{line}\n")
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_a_value_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    line = '{"step": 1, "loss": "nan", "tokens_per_second": "x", "validation_loss": [], "t": true}'
    (tmp_path / METRICS_FILE).write_text(f"{line}\n")
    (record,) = read_metrics(tmp_path)
    assert record.keys() == {"step", "loss"} and math.isnan(record["loss"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1 / 3])
def test_floats_survive(tmp_path: Path, value: float) -> None:
    write(tmp_path, 1, loss=value)
    line = (tmp_path / METRICS_FILE).read_text()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (record,) = read_metrics(tmp_path)
    assert record["loss"] == pytest.approx(value, rel=0, abs=0, nan_ok=True)


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, 5, loss=1.0)
    write(tmp_path, 3, 4, loss=2.0)
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
        (4, 2.0),
    ]


def test_validation_stands_beside_its_training_step(tmp_path: Path) -> None:
    logger = logger_of(tmp_path)
    for step, value in ((1, 5.0), (2, 4.0), (2, 3.0)):
        logger.log({"loss_metrics/global_avg_loss": value}, step)
        dense = {"validation_metrics/dense_loss": value + 1.5}
        logger.log({"validation_metrics/loss": value + 0.5} | dense, step)
    logger.close()
    records = read_metrics(tmp_path)
    assert [r["validation_dense_loss"] for r in records if "loss" not in r] == [6.5, 4.5]
    assert [(r["step"], r.get("loss"), r.get("validation_loss")) for r in records] == [
        (1, 5.0, None),
        (1, None, 5.5),
        (2, 3.0, None),
        (2, None, 3.5),
    ]


def test_half_a_line_from_a_kill_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text()[:-20])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    write(tmp_path, 2, 3)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "damage",
    [
        *(b"\xff\xfe", b"7\n", b'{"loss": 1.0}\n', b"\x00" * 9),
        *(b'{"step": "3"}\n', b'{"step": null}\n', b'{"step": 3, "loss": "low"}\n'),
    ],
)
def test_what_is_no_record_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, 1, 2)
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(damage)
    write(tmp_path, 3)
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3]


def test_parts_of_a_run_join_by_step(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, 2, 3, 4, loss=1.0)
    write(tmp_path / "b", 3, 4, 5, loss=2.0)
    parts = [tmp_path / "a", tmp_path / "b"]
    assert [r["loss"] for r in join_runs(parts)] == [1.0, 1.0, 2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="begins at step 1, not after"):
        join_runs(parts[::-1])


def test_each_part_is_compared_with_the_one_before_it(tmp_path: Path) -> None:
    for name, step in (("a", 1), ("c", 201), ("b", 101)):
        write(tmp_path / name, step, step + 99)
    with pytest.raises(ValueError, match=r"b begins at step 101, not after .* \(step 201\)"):
        join_runs([tmp_path / name for name in "acb"])


def test_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        read_metrics(tmp_path)
    (tmp_path / METRICS_FILE).touch()
    with pytest.raises(ValueError, match="nothing logged yet"):
        read_metrics(tmp_path)
