"""The loss curve of a run: what lies in its axes."""

import math
from pathlib import Path

import pytest

from lighthouse import report_plot
from lighthouse.report import summarize
from lighthouse.runs.metrics import Record


@pytest.fixture
def axes_of(tmp_path, monkeypatch):
    """Draws records and gives the axes: of the whole run, then of its boundaries."""
    figures = []
    monkeypatch.setattr(report_plot.plt, "close", figures.append)

    def drawn(records: list[Record]):
        report_plot.plot_loss(records, summarize(records, Path("step-9")), tmp_path / "loss.png")
        return figures[-1].axes

    return drawn


def test_validations_lie_inside(axes_of):
    """Their text is another one, so that their loss may lie below all of training's, or above."""
    records: list[Record] = [{"step": 1, "validation_loss": 99.0}]
    for step in range(1, 121):
        stage = "dense" if step > 110 else "lighthouse"
        records.append({"step": step, "loss": 4 - step / 120, "stage": stage})
    records += [{"step": 110, "validation_loss": 2.0, "validation_dense_loss": 5.0}]
    records += [{"step": 120, "validation_loss": 1.5}, {"step": 120, "validation_loss": math.inf}]
    for axes in axes_of(records):
        low, high = axes.get_ylim()
        assert 1 < low < 1.5 and 5 < high < 5.5  # all but the first, from before what is shown


def test_steps_are_whole_numbers(axes_of):
    records = [{"step": step, "loss": 1.0 + step, "stage": "dense"} for step in (1, 2, 3)]
    (whole,) = axes_of(records)
    assert all(float(tick).is_integer() for tick in whole.get_xticks())
