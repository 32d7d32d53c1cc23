"""The status as a table, and how far runs have come."""

import json
import time

from rich.console import Console

from lighthouse.sweep.progress import progress_of
from lighthouse.sweep.run_folder import FAILED, PREEMPTED
from lighthouse.sweep.screen import status_table
from lighthouse.sweep.state import run_states
from tests.support.sweeps import log_attempts, log_metrics, make_run


def test_the_status_shows_progress_and_the_error(tmp_path):
    run = make_run(tmp_path, "k=[1]", steps=40)
    log_metrics(run)
    log_attempts(run, PREEMPTED, FAILED)
    run.log_attempt({"number": 2, "error": "ValueError: [red]no[/red]"})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(status_table(run_states([run], {}), "grid"))
    text = captured.get()
    assert "grid: 1 runs: 1 failed" in text
    for part in ("20", "40", "50%", "3.0000", "0:00:07", "ValueError: [red]no[/red]"):
        assert part in text


def test_time_left_of_a_running_run_goes_on_falling(tmp_path):
    run = make_run(tmp_path)
    record = {"step": 1, "time": time.time() - 100, "loss": 1.0, "tokens_per_second": 1.0}
    (run.folder / "metrics.jsonl").write_text(json.dumps(record | {"time_metrics/eta(s)": 300.0}))
    assert progress_of(run, running=False).eta == 300.0
    assert 190 < progress_of(run, running=True).eta <= 200
