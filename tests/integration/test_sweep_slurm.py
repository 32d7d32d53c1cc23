"""A sweep on a real Slurm: preempted, out of time, failing, resumed, its controller killed.

The same sweep, undisturbed and without Slurm, is what all of it must lead to.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lighthouse.sweep.collect import TIMES, collect
from lighthouse.sweep.progress import progress_of
from lighthouse.sweep.runs import FAILED, FINISHED, PREEMPTED, TIME_LIMIT, Run, read_runs
from tests.integration.slurm_cluster import Cluster, missing_programs, slurm_cluster, wait_for

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"Slurm is not installed: no {', '.join(missing_programs())}"
)

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds; the machine may be busy with other tests

# The limit of a minute gives notice within half of it, since Slurm looks only now and then; the
# long run, half a second a step, takes longer than a minute in any case.
SWEEP = """
base = "{root}/train_configs/quickstart.toml"
output = "{output}"

[overrides]
experimental.custom_import = "tests.integration.paced"
training.seq_len = 256
training.local_batch_size = 1
lighthouse.dense_from_step = 9

[axes]
training.steps = [16]
lighthouse.topk = [8, 16]

[[points]]
training.steps = 130
lighthouse.topk = 8

[[points]]
training.steps = 12
lighthouse.topk = 8
training.dataset = "local"
training.dataset_path = "{data}"

[resources]
gpus_per_node = 0
time = "1"
partition = "low"
notice_seconds = 10
max_running = 3
"""
SHORT, LONG, FAILING = ("steps=16,topk=8", "steps=16,topk=16"), "steps=130", "steps=12"


@dataclass
class Swept:
    """A sweep's folder, its runs by name, and what commands printed in between."""

    file: Path
    output: Path
    environment: dict[str, str]
    printed: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str, ok: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, "scripts/sweep.py", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        assert (done.returncode == 0) == ok, done.stdout
        return done.stdout

    def run(self, name: str) -> Run:
        (run,) = (r for r in read_runs(self.output) if r.name.startswith(name))
        return run

    def losses(self, name: str) -> dict[int, tuple[float, float]]:
        lines = (self.run(name).folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return {r["step"]: (r["loss"], r["grad_norm"]) for r in records}

    def table(self) -> list[dict]:
        """What `collect` makes, without measured times."""
        rows = collect(read_runs(self.output, "sweep"))
        return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def write_sweep(folder: Path, data: Path, environment: dict[str, str]) -> Swept:
    sweep = Swept(folder / "sweep.toml", folder / "out put", environment)
    sweep.file.write_text(SWEEP.format(root=ROOT, output=sweep.output, data=data))
    return sweep


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "text"


def preempt_one(cluster: Cluster, sweep: Swept) -> None:
    """Send jobs to the higher partition until a run has given way to one.

    Once may not do: on a busy machine the notice of the time limit can come just before.
    """

    def running() -> list[str]:
        attempts = {name: sweep.run(name).attempts() for name in (*SHORT, LONG)}
        return [name for name, tried in attempts.items() if tried and tried[-1].end is None]

    for _ in range(8):
        wait_for(lambda: bool(running()), PATIENCE)
        interrupted = running()
        cluster.run("sbatch", "-p", "high", "-n", "2", "-o", "/dev/null", "--wrap", "sleep 1")
        wait_for(lambda names=interrupted: not set(names) & set(running()), PATIENCE)
        if any(PREEMPTED in reasons(sweep, name) for name in (*SHORT, LONG)):
            return


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, data: Path, tmp_path_factory) -> Swept:
    environment = cluster.environment | {"PACE_SECONDS": "0.5"}
    sweep = write_sweep(tmp_path_factory.mktemp("slurm"), data, environment)
    file = str(sweep.file)
    sweep.printed["submit"] = sweep.command("submit", file)

    def done(*names: str) -> bool:
        return all(sweep.run(name).done for name in names)

    # At once: a run that has failed for good is sent again, and one is about to.
    sweep.printed["submit again"] = sweep.command("submit", file)
    wait_for((sweep.run(SHORT[0]).folder / "metrics.jsonl").exists, PATIENCE)
    preempt_one(cluster, sweep)
    wait_for(lambda: done(*SHORT), PATIENCE)
    wait_for(lambda: "_3|" not in cluster.run("squeue", "-h", "-r", "-o", "%i|"), PATIENCE)
    sweep.printed["status"] = sweep.command("status", file)

    # It saves its state every 5 s. Killed sooner, it believes for minutes that what ended goes on.
    time.sleep(10)
    cluster.stop("slurmctld", kill=True)
    sweep.printed["status of the dead"] = sweep.command("status", file)
    sweep.printed["submit to the dead"] = sweep.command("submit", file, ok=False)
    cluster.start_controller()

    data.mkdir()
    shutil.copy(ROOT / "LICENSE", data / "a.txt")
    sweep.printed["resume"] = sweep.command("resume", file, FAILING + "*")
    sweep.printed["cancel"] = sweep.command("cancel", file, FAILING + "*")
    wait_for(lambda: "0002" not in cluster.run("squeue", "-h", "-o", "%j"), PATIENCE)
    sweep.printed["status of the cancelled"] = sweep.command("status", file)
    sweep.printed["second resume"] = sweep.command("resume", file, FAILING + "*")
    wait_for(lambda: done(LONG, FAILING), PATIENCE)
    return sweep


@pytest.fixture(scope="module")
def undisturbed(disturbed: Swept, data: Path, tmp_path_factory) -> Swept:
    sweep = write_sweep(tmp_path_factory.mktemp("local"), data, {})
    sweep.printed["submit"] = sweep.command("submit", "--local", "-j", "2", str(sweep.file))
    return sweep


def reasons(sweep: Swept, name: str) -> list[str | None]:
    return [attempt.reason for attempt in sweep.run(name).attempts()]


def test_one_array_is_sent_and_not_sent_again(disturbed: Swept) -> None:
    assert "sent 4 runs as job" in disturbed.printed["submit"]
    assert "nothing to send" in disturbed.printed["submit again"]


def test_a_preempted_run_continues(disturbed: Swept) -> None:
    preempted = [n for n in (*SHORT, LONG) if PREEMPTED in reasons(disturbed, n)]
    assert preempted
    for name in preempted:
        attempts = disturbed.run(name).attempts()
        assert attempts[-1].reason == FINISHED
        assert len({attempt.job for attempt in attempts}) == 1


def test_a_run_out_of_time_continues(disturbed: Swept) -> None:
    attempts = disturbed.run(LONG).attempts()
    assert TIME_LIMIT in [attempt.reason for attempt in attempts]
    steps = [attempt.step for attempt in attempts]
    assert steps == sorted(steps) and steps[-1] == 130


def test_a_failing_run_stops_and_shows_why(disturbed: Swept) -> None:
    status = disturbed.printed["status"]
    (line,) = (line for line in status.splitlines() if line.startswith(FAILING))
    assert "failed" in line and "ValueError: training.dataset_path" in line
    assert reasons(disturbed, FAILING)[:2] == [FAILED, FAILED]
    assert "sent 1 runs" in disturbed.printed["resume"]
    assert reasons(disturbed, FAILING)[-1] == FINISHED


def test_a_cancelled_run_leaves_the_queue_until_it_is_resumed(disturbed: Swept) -> None:
    assert "1 runs cancelled" in disturbed.printed["cancel"]
    assert "1 cancelled" in disturbed.printed["status of the cancelled"]
    assert "sent 1 runs" in disturbed.printed["second resume"]


def test_a_dead_controller_is_named_and_nothing_is_sent(disturbed: Swept) -> None:
    status = disturbed.printed["status of the dead"]
    assert "squeue: " in status and "states are from the run folders alone" in status
    assert status.count(" done ") >= 2
    assert "sweep: squeue: " in disturbed.printed["submit to the dead"]
    assert len(list(disturbed.output.glob("submissions/*"))) == 3


def test_losses_are_those_of_undisturbed_runs(disturbed: Swept, undisturbed: Swept) -> None:
    assert progress_of(undisturbed.run(LONG), running=False).eta == 0
    for name in (*SHORT, LONG, FAILING):
        assert disturbed.losses(name) == undisturbed.losses(name)


def test_tables_agree_but_for_times(disturbed: Swept, undisturbed: Swept) -> None:
    table = disturbed.table()
    assert table == undisturbed.table()
    assert [row["steps"] for row in table] == [16, 16, 130, 12]
    assert all(row["done"] and row["spike"] is not None for row in table)
