"""The status as a table, and how far runs have come."""

import json
import time

from rich.console import Console

from lighthouse.slurm import Task
from lighthouse.sweep.progress import progress_of
from lighthouse.sweep.run_folder import DIVERGED, DONE_FILE, FAILED, PREEMPTED
from lighthouse.sweep.screen import status_table
from lighthouse.sweep.state import (
    DONE,
    INTERRUPTED,
    NOT_STARTED,
    QUEUED,
    RUNNING,
    UNKNOWN,
    RunState,
    run_states,
)
from tests.support.sweeps import log_attempts, log_metrics, make_run


def test_the_status_shows_progress_and_the_error(tmp_path):
    run = make_run(tmp_path, "k=[1]", steps=40)
    log_metrics(run)
    log_attempts(run, PREEMPTED, FAILED)
    run.log_attempt({"number": 2, "error": "ValueError: [red]no[/red]"})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(status_table(run_states([run], {}), "grid", 200))
    text = captured.get()
    assert "grid: 1 run: 1 failed" in text
    for part in ("20", "50%", "3.0000", "0:00:07", "ValueError: [red]no[/red]"):
        assert part in text


def many(tmp_path):
    """Of 40 runs two are running, three have failed, ten wait, the others are done."""
    names = [f"scorer=norm,selection=published,topk={i},num_levels=3,seed={i}" for i in range(40)]
    runs = [make_run(tmp_path, name) for name in names]
    for i, run in enumerate(runs):
        if i >= 30:
            continue  # wait
        log_metrics(run)
        if i in (11, 12):
            log_attempts(run, open_end=True)
        elif i in (7, 19, 20):
            log_attempts(run, FAILED)
            run.log_attempt({"number": 1, "error": f"ValueError: {'a word ' * 12}{i // 10}"})
        else:
            (run.folder / DONE_FILE).touch()
    tasks = {runs[i].folder.name: Task("x", "7", i, "RUNNING", "None") for i in (11, 12)}
    return run_states(runs, tasks)


def shown(states, lines: int | None) -> list[str]:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(status_table(states, "grid", 80, lines))
    return captured.get().splitlines()


def test_the_status_fits_a_small_terminal(tmp_path):
    states = many(tmp_path)
    lines = shown(states, 24)
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "grid: 40 runs: 25 done, 10 not started, 3 failed, 2 running" in lines[0]
    for number in (11, 12, 7, 19, 20):
        assert f"topk={number}," in text
    assert "--all lists them" in lines[-1] and "25 done" in lines[-1]
    everything = "\n".join(shown(states, None))
    assert all(f"topk={number}," in everything for number in range(40))
    assert "--all" not in everything


def test_runs_in_many_states_leave_no_line_too_many(tmp_path):
    """Of those that are not shown the last line, which is then two, says how many are in each."""
    kinds = (RUNNING, DONE, QUEUED, FAILED, UNKNOWN, INTERRUPTED, NOT_STARTED, DIVERGED)
    states = [
        RunState(make_run(tmp_path, f"k={number}"), [], kinds[number % len(kinds)], "", None)
        for number in range(160)
    ]
    lines = shown(states, 24)
    assert len(lines) == 24 and max(map(len, lines)) <= 80
    left = " ".join(lines[-2:])
    assert left.startswith("and 20 ") and left.endswith("1 running; --all lists them")


def test_few_runs_are_all_shown_in_their_order(tmp_path):
    states = many(tmp_path)[5:9]
    text = "\n".join(shown(states, 24))
    places = [text.index(f"topk={number},") for number in range(5, 9)]
    assert places == sorted(places) and "--all" not in text


def test_names_break_at_their_commas(tmp_path):
    rows = [line.split()[0] for line in shown(many(tmp_path)[11:13], 24)[2:]]
    assert all(part.endswith(",") or "seed=" in part for part in rows)


def test_time_left_of_a_running_run_goes_on_falling(tmp_path):
    run = make_run(tmp_path)
    record = {"step": 1, "time": time.time() - 100, "loss": 1.0, "tokens_per_second": 1.0}
    (run.folder / "metrics.jsonl").write_text(json.dumps(record | {"time_metrics/eta(s)": 300.0}))
    assert progress_of(run, running=False).eta == 300.0
    assert 190 < progress_of(run, running=True).eta <= 200
