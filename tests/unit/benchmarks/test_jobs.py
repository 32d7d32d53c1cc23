"""Jobs on the GPUs of one machine: what waits for what, and that all that are named exist."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks import everything
from benchmarks.jobs import Job, run
from benchmarks.training_cases import named

QUICK = ("timeit", "-n1", "-r1")


def told(name: str, code: str = "pass", **settings: object) -> Job:
    return Job(name, (*QUICK, code), **settings)  # type: ignore[arg-type]


def events(printed: str) -> list[str]:
    """What was said, without when and for how long."""
    return [
        line.split("s  ", 1)[1].split(" (")[0].split(" on GPU")[0]
        for line in printed.split("\n")[:-1]
    ]


def test_each_begins_when_what_it_needs_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        told("second", after=("first",)),
        told("first"),
        told("broken", "1 / 0", after=("second",)),
        told("lost", after=("broken",)),
    ]
    run(tmp_path, jobs, gpus=1)
    printed = capsys.readouterr().out
    ended = [line.split(",")[0] for line in events(printed) if not line.startswith("start")]
    assert ended == ["done    first", "done    second", "FAILED  broken", "left out lost"]
    assert "ZeroDivisionError" in (tmp_path / "broken.log").read_text()

    run(tmp_path, [*jobs[:2], told("broken"), jobs[3]], gpus=1)
    assert [e for e in events(capsys.readouterr().out) if e.startswith("start")] == [
        "start   broken",
        "start   lost",
    ]


def test_a_job_of_two_gpus_has_them_to_itself(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    say = f"import os; open({str(seen)!r}, 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + ' ')"
    jobs = [
        told("one", f"{say}; import time; time.sleep(0.3)"),
        told("wide", say, gpus=2),
        told("behind", say),
        told("wider", say, gpus=4),
    ]
    run(tmp_path, jobs, gpus=2)
    assert seen.read_text().split() == ["0", "0,1", "0"]


def test_none_begins_that_may_take_longer_than_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, [told("long", seconds=100.0), told("short", seconds=1.0)], gpus=1, seconds=50.0)
    assert events(capsys.readouterr().out)[-1] == "not begun: long"
    assert (tmp_path / "short.done").exists()


def test_every_measurement_can_be_started() -> None:
    for job in everything.measurements(Path("FOLDER OUT"), Path("A TEXT")):
        assert importlib.util.find_spec(job.command[0]) is not None
        assert job.name != "extend" or job.command[2:] == ("A TEXT", "FOLDER OUT/extend")
        if job.command[0] == "benchmarks.training":
            cases = [named(word)[1] for word in job.command[2:-2]]
            assert max(case.gpus for case in cases) == job.gpus, job.name


def test_jobs_are_chosen_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    found = everything.jobs(tmp_path, Path("text"))
    names = [job.name for job in everything.chosen(found, ["guard", "extend", "65k-moba-1e-3-1"])]
    assert names == [
        "guard",
        "65k-first-1",
        "extend",
        "65k-moba-1e-3-1",
        "65k-moba-1e-3-1-evaluate",
    ]
    assert everything.chosen(found, [""]) and len({j.name for j in found}) == len(found)
    with pytest.raises(ValueError, match="--only nothing: there are"):
        everything.chosen(found, ["nothing"])
