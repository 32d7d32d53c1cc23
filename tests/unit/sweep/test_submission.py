"""Submissions: their numbers, what is left of one that was not sent, and long ones."""

import errno
import shutil

import pytest

from lighthouse.slurm import NoAnswer, SlurmError
from lighthouse.sweep.__main__ import main
from lighthouse.sweep.resources import Resources
from lighthouse.sweep.run_folder import (
    ATTEMPTS_FILE,
    CANCEL_FILE,
    CANCELLED,
    FAILED,
    PREEMPTED,
    RUN_FILE,
)
from lighthouse.sweep.spec import Spec
from lighthouse.sweep.state import queued_tasks
from lighthouse.sweep.submission import FOLDER, next_submission, read_submissions
from lighthouse.sweep.submit import run_here, send
from tests.support.commands import StandIns
from tests.support.sweeps import log_attempts, make_run, make_submission


@pytest.mark.parametrize("removed", ["1", "2"])
def test_a_submission_without_its_record_is_in_no_ones_way(tmp_path, removed):
    run = make_run(tmp_path)
    for _ in range(2):
        make_submission([run])
    (tmp_path / "submissions" / f"000{removed}" / "submission.json").unlink()
    assert make_submission([run]).number == 3
    shutil.rmtree(tmp_path / "submissions" / "0001")
    assert make_submission([run]).number == 4


@pytest.fixture
def fake(tmp_path, monkeypatch) -> StandIns:
    """Stand-ins for Slurm's commands, and no others."""
    stand_ins = StandIns(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(stand_ins.folder))
    return stand_ins


def spec_of(output, **resources) -> Spec:
    return Spec(
        "test", output / "base.toml", output, {}, (), Resources(gpus_per_node=0, **resources)
    )


REFUSES = "echo 'sbatch: error: Invalid account' >&2; exit 1"


@pytest.mark.parametrize("sbatch", [None, REFUSES], ids=["not there", "refuses"])
def test_what_was_never_sent_leaves_no_trace(tmp_path, fake, sbatch):
    run = make_run(tmp_path)
    (run.folder / CANCEL_FILE).touch()
    before = sorted(run.folder.iterdir())
    if sbatch:
        fake("sbatch", sbatch)
    with pytest.raises(SlurmError, match=r"^sbatch: "):
        list(send(spec_of(tmp_path), [run.folder]))
    assert not (tmp_path / FOLDER).exists()
    assert sorted(run.folder.iterdir()) == before
    assert queued_tasks(tmp_path) == {}  # without asking Slurm


@pytest.mark.parametrize("slurm", [True, False])
def test_what_could_not_be_written_leaves_no_trace(tmp_path, fake, monkeypatch, slurm):
    run = make_run(tmp_path)
    (run.folder / CANCEL_FILE).touch()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lighthouse.sweep.submission.write_atomic", full)
    spec = spec_of(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        if slurm:
            list(send(spec, [run.folder]))
        else:
            run_here(next_submission(tmp_path, "test", spec.resources, [run.folder], False), 1)
    assert not (tmp_path / FOLDER).exists()
    assert (run.folder / CANCEL_FILE).exists()


def test_what_a_disk_has_is_named(tmp_path, capsys):
    run = make_run(tmp_path)
    (run.folder / ATTEMPTS_FILE).mkdir()
    for end in (lambda: None, lambda: (run.folder / RUN_FILE).write_text("{")):
        end()
        main(["status", str(tmp_path)])
        assert "1 run: 1 unreadable" in capsys.readouterr().out
    (tmp_path / "x.runs.json").mkdir()
    (tmp_path / "x.toml").write_text(f"name = 'x'\nbase = 'b.toml'\noutput = '{tmp_path}'\n")
    (tmp_path / "b.toml").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["status", str(tmp_path / "x.toml")])
    said = capsys.readouterr().err
    assert said == f"sweep: [Errno 21] Is a directory: '{tmp_path / 'x.runs.json'}'\n"


def test_what_may_have_been_sent_is_believed(tmp_path, fake):
    run = make_run(tmp_path)
    fake("sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(NoAnswer):
        list(send(spec_of(tmp_path), [run.folder]))
    with pytest.raises(SlurmError, match=r"squeue: not found.*submissions/0001.*remove these"):
        queued_tasks(tmp_path)


def test_without_slurm_a_local_run_follows_what_slurm_has_ended(tmp_path, fake):
    runs = [make_run(tmp_path, f"k={i}") for i in range(2)]
    make_submission(runs, slurm=True, retries=0)
    log_attempts(runs[0], CANCELLED)
    log_attempts(runs[1], PREEMPTED)
    with pytest.raises(SlurmError, match="submissions/0001"):
        queued_tasks(tmp_path)  # the second has gone back into the queue
    log_attempts(runs[1], PREEMPTED, FAILED)
    assert queued_tasks(tmp_path) == {}
    (runs[0].folder / RUN_FILE).write_text("{")
    with pytest.raises(SlurmError, match="submissions/0001"):
        queued_tasks(tmp_path)  # as it is not known how the first has ended


@pytest.mark.parametrize("throttle", [None, 4])
def test_an_array_is_split_where_the_cluster_has_shorter_ones(tmp_path, fake, throttle):
    runs = [make_run(tmp_path, f"k={i}") for i in range(7)]
    fake("scontrol", "echo 'MaxArraySize            = 3'")
    fake("sbatch", f"/bin/cat >> '{tmp_path}/got'; echo 4")
    folders = [run.folder for run in runs]
    sent = list(send(spec_of(tmp_path, max_running=throttle), folders))
    assert [number for _, number in sent] == [3, 3, 1]
    assert [len(s.runs) for s in read_submissions(tmp_path)] == [3, 3, 1]
    script = (tmp_path / "got").read_text()
    assert [line for line in script.splitlines() if "--array" in line] == [
        f"#SBATCH --array=0-{last}{'' if throttle is None else f'%{throttle}'}"
        for last in (2, 2, 0)
    ]
    # Slurm counts what is at work array by array.
    assert script.count("--dependency=afterany:4") == (0 if throttle is None else 2)
    assert len({s.job_name for s in read_submissions(tmp_path)}) == 3


def test_a_cluster_that_does_not_tell_has_slurms_own_limit(tmp_path, fake):
    fake("scontrol", "exit 1")
    fake("sbatch", "/bin/cat > /dev/null; echo 1")
    run = make_run(tmp_path)
    sent = list(send(spec_of(tmp_path), [run.folder] * 1102))
    assert [number for _, number in sent] == [1001, 101]
