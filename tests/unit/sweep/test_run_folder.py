"""The runs of a sweep, of its output folder, and what each sweep calls them."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lighthouse.sweep.collect import collect
from lighthouse.sweep.run_folder import (
    DONE_FILE,
    change_run,
    read_run,
    read_runs,
    run_names,
    write_members,
)
from lighthouse.sweep.submission import read_submissions
from lighthouse.sweep.submit import planned_states
from tests.support.sweeps import log_attempts, make_run, make_submission


def test_runs_of_a_sweep_and_of_its_folder(tmp_path):
    runs = [make_run(tmp_path, name) for name in "cab"]
    write_members(tmp_path, "grid", runs[:2])
    assert [run.name for run in read_runs(tmp_path, "grid")] == ["c", "a"]
    assert [run.name for run in read_runs(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="has no runs of other: submit it first"):
        read_runs(tmp_path, "other")


def test_a_run_that_sweeps_share_is_called_as_each_of_them_calls_it(tmp_path):
    run = make_run(tmp_path)
    (planned,) = planned_states(
        [SimpleNamespace(run=replace(run, name="p=2", overrides={"p": 2}))], {}
    )
    write_members(tmp_path, "first", [run])
    write_members(tmp_path, "second", [planned.run])
    (row,) = collect(read_runs(tmp_path, "second"))
    assert (row["name"], row["overrides"]) == ("p=2", {"p": 2})
    assert read_runs(tmp_path, "first") == read_runs(tmp_path) == [run]
    (tmp_path / "first.runs.json").write_text(json.dumps([run.folder.name]))  # without names
    assert read_runs(tmp_path, "first") == [run]


@pytest.mark.parametrize("text", ["3", "[1]", '{"a": 1}', "", "\0", '{"identity": 1}'])
@pytest.mark.parametrize("name", ["run.json", "submissions/0001/submission.json", "../x.runs.json"])
def test_a_file_with_something_else_in_it_is_named(tmp_path, name, text):
    run = make_run(tmp_path)
    write_members(tmp_path, "x", [run])
    make_submission([run])
    file = {"r": run.folder / name, "s": tmp_path / name, ".": tmp_path / "x.runs.json"}[name[0]]
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        read_runs(tmp_path, "x")
        read_run(run.folder)
        read_submissions(tmp_path)


def test_attempts_that_can_be_read_are(tmp_path):
    run = make_run(tmp_path)
    with (run.folder / "attempts.jsonl").open("wb") as file:
        file.write(b'3\n[1]\n{"a": 1}\n{"number": "1"}\n\xff\n{"number": 1, "end": 5.0}\n')
    log_attempts(run, "", open_end=True)
    assert [attempt.number for attempt in run.attempts()] == [1, 2]


def test_runs_without_their_folder_are_left_out_with_a_note(tmp_path, capsys):
    runs = [make_run(tmp_path, name) for name in "ab"]
    write_members(tmp_path, "grid", runs)
    shutil.rmtree(runs[0].folder)
    assert read_runs(tmp_path, "grid") == runs[1:]
    printed = capsys.readouterr()
    assert printed.err == f"note: {runs[0].folder} is gone; `submit` makes it again\n"
    shutil.rmtree(runs[1].folder)
    with pytest.raises(ValueError, match="submit it first"):
        read_runs(tmp_path, "grid")


def test_names_have_no_character_that_a_shell_or_a_path_would_act_on():
    values = ["a b", "x;id", "$(id)", "`id`", "a/../b", "q'\"", "two\nlines", "100%", "é", "-" * 99]
    names = run_names([{"s.k": value} for value in values])
    for name in names:
        assert set(name) <= set("k=._+-") | set("abcdefghijklmnopqrstuvwxyz0123456789")
        assert len(name) <= 42
    assert run_names([{"s.k": [0, 1, 28]}, {"s.k": []}]) == ["k=0+1+28", "k=none"]


def test_keys_keep_their_section_where_it_is_needed():
    points = [{"a.k": 1, "b.k": True, "c.enable": False, "c.lr": 2e-3}]
    assert run_names(points) == ["a.k=1,b.k=true,c.enable=false,lr=0.002"]


def test_a_run_goes_on_with_another_configuration(tmp_path):
    run = make_run(tmp_path, steps=5)
    (run.folder / "checkpoint" / "step-5").mkdir(parents=True)
    (run.folder / "checkpoint" / "step-5" / ".metadata").touch()
    (run.folder / DONE_FILE).touch()
    change_run(run, 5, "[a]\n")
    assert read_run(run.folder).done and (run.folder / "config.toml").read_text() == "[a]\n"
    change_run(run, 9, "[b]\n")
    assert not read_run(run.folder).done and read_run(run.folder) == replace(run, steps=9)


def test_names_tell_what_varies_alone():
    points = [{"a.k": k, "b.same": 1, "a.path": f"/data/text/{k}/x.jsonl"} for k in "cd"]
    assert run_names(points) == ["k=c,path=c_x.jsonl", "k=d,path=d_x.jsonl"]
    assert run_names([{"a.path": "/data/x"}]) == ["path=x"]
    assert run_names([{"a.k": 1}, {"a.k": 1, "b.l": 2}]) == ["base", "l=2"]
    assert run_names([{"a.model": "org/m"}, {"a.model": "other/m"}]) == [
        "model=org_m",
        "model=other_m",
    ]
