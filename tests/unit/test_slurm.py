"""Slurm's commands when they are missing, slow or refuse; and the way back into the queue."""

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from lighthouse import slurm
from lighthouse.slurm import Notice, SlurmError, Task, go_back_into_the_queue, own_task
from lighthouse.sweep.state import queued_tasks
from tests.support.commands import StandIns
from tests.support.sweeps import make_run, make_submission


@pytest.fixture
def fake(tmp_path, monkeypatch) -> StandIns:
    """Stand-ins for Slurm's commands."""
    stand_ins = StandIns(tmp_path / "bin")
    # Nothing else, so that a Slurm that is installed is not found.
    monkeypatch.setenv("PATH", str(stand_ins.folder))
    return stand_ins


def test_without_slurm_the_error_says_so(fake):
    with pytest.raises(SlurmError, match="squeue: not found"):
        slurm.queue()


def test_a_command_without_an_answer_times_out(fake, monkeypatch):
    fake("squeue", "exec /bin/sleep 60")
    monkeypatch.setattr(slurm, "QUERY_SECONDS", 0.2)
    with pytest.raises(SlurmError, match=r"squeue: no answer from Slurm within 0.2 s"):
        slurm.queue()


def test_a_refusal_is_quoted(fake):
    fake("sbatch", "echo 'error: Invalid account' >&2; exit 1")
    with pytest.raises(SlurmError, match="sbatch: error: Invalid account"):
        slurm.submit("")


def test_sbatch_gets_the_script_and_returns_the_id(fake, tmp_path):
    fake("sbatch", f"/bin/cat > '{tmp_path}/got'; echo '12;cluster'")
    assert slurm.submit("the script") == "12"
    assert (tmp_path / "got").read_text() == "the script"


def test_words_of_a_site_are_no_id(fake):
    fake("sbatch", "echo 'sbatch: warning: 3 jobs'; echo 'Your balance:'; echo 40 GPU; echo 12")
    assert slurm.submit("") == "12"
    fake("sbatch", "echo 'Submitted, see 12'")
    with pytest.raises(slurm.NoAnswer, match="no job's id in what it says, 'Submitted, see 12'"):
        slurm.submit("")
    fake("squeue", r"printf 'squeue: warning\n7|0|RUNNING|None|s-0001-x\n'")
    assert [task.index for task in slurm.queue()] == [0]


def test_what_fails_after_it_was_sent_may_be_in_the_queue(fake):
    fake("sbatch", "echo 12; echo 'sbatch: error: epilog plugin failed' >&2; exit 1")
    with pytest.raises(slurm.NoAnswer, match="epilog plugin failed"):
        slurm.submit("")


def test_the_queue_has_what_waits_and_runs(fake):
    fake(
        "squeue",
        r"""printf '7|0|RUNNING|None|s-0001-x\n7|1|PENDING|BeginTime|s-0001-x\n'
        printf '7|2|TIMEOUT|TimeLimit|s-0001-x\n8|N/A|RUNNING|None|other\n'
        printf '7|3|COMPLETING|None|s-0001-x\n'""",
    )
    assert slurm.queue() == [
        Task("s-0001-x", "7", 0, "RUNNING", "None"),
        Task("s-0001-x", "7", 1, "PENDING", "BeginTime"),
        Task("s-0001-x", "7", 3, "COMPLETING", "None"),
    ]


def test_another_jobs_name_may_have_any_character(fake):
    fake("squeue", "echo '8|0|RUNNING|None|eval|x|y'")
    assert slurm.queue() == [Task("eval|x|y", "8", 0, "RUNNING", "None")]


def test_tasks_are_found_by_the_name_of_their_submission(fake, tmp_path):
    runs = [make_run(tmp_path / "out", f"k={i}") for i in range(2)]
    assert queued_tasks(tmp_path / "out") == {}  # Slurm is not asked
    make_submission(runs)
    name = make_submission(runs[::-1], slurm=True).job_name
    fake("squeue", f"echo '7|0|PENDING|None|{name}'; echo '8|1|PENDING|None|x-0001-012345'")
    tasks = queued_tasks(tmp_path / "out")
    assert {folder: task.array for folder, task in tasks.items()} == {runs[1].folder.name: "7"}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_notice_is_one_of_three_signals(number):
    notified = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    before = {n: signal.getsignal(n) for n in notified}
    try:
        notice = Notice()
        assert not notice.given
        os.kill(os.getpid(), number)
        assert notice.given
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_a_task_of_an_array_has_the_arrays_id(monkeypatch):
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert own_task() == "17"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert own_task() == "12_3"


@pytest.fixture
def waits(monkeypatch) -> Iterator[list[float]]:
    """How long was slept, each time."""
    slept: list[float] = []
    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=slept.append))
    before = signal.getsignal(signal.SIGTERM)
    yield slept
    signal.signal(signal.SIGTERM, before)


def test_back_into_the_queue_and_then_it_waits_for_slurm(fake, waits):
    fake("scontrol", "echo JobId=7 JobState=RUNNING")
    assert go_back_into_the_queue("7_0")
    assert fake.calls("scontrol") == [["-o", "show", "job", "7_0"], ["requeue", "7_0"]]
    assert waits == [0, 300]
    # By which Slurm ends it.
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING"])
def test_what_slurm_has_decided_stays(fake, waits, state):
    fake("scontrol", f"echo JobId=7 JobState={state}")
    assert not go_back_into_the_queue("7")
    assert len(fake.calls("scontrol")) == 1 and waits == [0]


def test_a_controller_that_is_away_is_asked_again(fake, waits, capsys):
    fake(
        "scontrol",
        '[ "$1" = requeue ] && exit; [ -e "$0.up" ] || { >"$0.up"; exit 1; }; '
        "echo JobState=RUNNING",
    )
    assert go_back_into_the_queue("7")
    assert waits == [*slurm.REQUEUE_WAITS[:2], 300]
    assert "back into the queue: scontrol: exit code 1" in capsys.readouterr().out


def test_a_dead_controller_is_given_up(fake, waits, capsys):
    fake("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert not go_back_into_the_queue("7")
    assert waits == list(slurm.REQUEUE_WAITS)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(waits) + 1 and printed[-1] == "not back in the queue"
    assert "Unable to contact slurm controller" in printed[0]
