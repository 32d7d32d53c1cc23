"""A run of a sweep that can't be read: it is shown as such, and the others as ever."""

import pytest
from rich.console import Console

from lighthouse.sweep.collect import collect, markdown
from lighthouse.sweep.plots import plot_sweep
from lighthouse.sweep.run_folder import RUN_FILE, read_runs, write_members
from lighthouse.sweep.screen import status_table
from lighthouse.sweep.state import DONE, NOT_STARTED, UNREADABLE, queued_tasks, run_states
from lighthouse.sweep.submit import unfinished
from tests.support.locked import lock
from tests.support.sweeps import log_metrics, make_run
from tests.support.tiers import tiers


def closed(run, monkeypatch):
    lock(monkeypatch, run.folder)
    return f"{run.folder / RUN_FILE} can't be read (Permission denied)"


def damaged(run, monkeypatch):
    (run.folder / RUN_FILE).write_text("{")
    return f"{run.folder / RUN_FILE} is damaged, no JSON"


def no_file(run, monkeypatch):
    (run.folder / "metrics.jsonl").unlink()
    (run.folder / "metrics.jsonl").mkdir()
    return f"{run.folder / 'metrics.jsonl'} can't be read (Is a directory)"


@pytest.mark.parametrize("sweep", ["grid", None], ids=["by name", "by folder"])
@pytest.mark.parametrize("harm", tiers([closed, damaged, no_file], damaged))
def test_one_run_that_cannot_be_read(tmp_path, monkeypatch, capsys, harm, sweep):
    output = tmp_path / "out"
    runs = [make_run(output, name) for name in ("a", "b", "c")]
    write_members(output, "grid", runs)
    for run in runs[:2]:
        log_metrics(run)
        (run.folder / "DONE").touch()
    said = harm(runs[1], monkeypatch)

    found = read_runs(output, sweep)
    states = run_states(found, queued_tasks(output))
    assert [(s.run.name, s.state) for s in states] == [
        *(("a", DONE), ("b", UNREADABLE)),
        ("c", NOT_STARTED),
    ]
    console = Console(width=400)
    with console.capture() as captured:
        console.print(status_table(states, "grid", 400))
    *_, below = captured.get().splitlines()
    assert below.startswith(f"unreadable b: {said}")

    first, second, third = collect(found)
    assert (first["steps"], second["steps"], third["steps"]) == (20, None, 0)
    assert first["unreadable"] is None and second["unreadable"].startswith(said)
    assert said in markdown([first, second, third])

    assert [state.run.name for state in unfinished(states)] == ["c"]
    assert f"note: b is left out: {said}" in capsys.readouterr().err
    assert len(plot_sweep(found, tmp_path)) == 4
    assert f"note: b is not drawn: {said}" in capsys.readouterr().err
