"""Curves of a sweep's runs."""

import pytest

from lighthouse.sweep.plots import plot_sweep
from lighthouse.sweep.run_folder import PREEMPTED
from tests.support.sweeps import log_attempts, log_metrics, make_run


def test_plots(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a", "b", "not begun")]
    for run in runs[:2]:
        log_metrics(run)
        log_attempts(run, PREEMPTED)
    paths = plot_sweep(runs, tmp_path)
    assert [path.name for path in paths] == [
        *("loss_over_steps.png", "loss_over_tokens.png", "loss_over_gpu_hours.png"),
        "loss_against_cost.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    with pytest.raises(ValueError, match="no run has logged a step"):
        plot_sweep(runs[2:], tmp_path)
