"""A sweep on a real Slurm: preempted, out of time, failing, refused, its controller killed.

The same sweep, undisturbed and without Slurm, is what all of it must lead to.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lighthouse.sweep.collect import TIMES, collect
from lighthouse.sweep.progress import progress_of
from lighthouse.sweep.run_folder import FAILED, FINISHED, PREEMPTED, TIME_LIMIT, Run, read_runs
from tests.support import ROOT, processes
from tests.support.processes import python
from tests.support.slurm_cluster import (
    PATIENCE,
    Cluster,
    needs_slurm,
    slurm_cluster,
    wait_for,
)

pytestmark = needs_slurm


SWEEP = """
base = "{root}/train_configs/tiny.toml"
output = "{output}"

[overrides]
experimental.custom_import = "tests.support.held"
training.seq_len = 256
training.local_batch_size = 1
lighthouse.dense_from_step = 9

[axes]
training.steps = [16]
lighthouse.topk = [8, 16]

[[points]]
training.steps = 24
lighthouse.topk = 8

[[points]]
training.steps = 12
lighthouse.topk = 8

[[points]]
training.steps = 10
lighthouse.topk = 8
training.dataset = "local"
training.dataset_path = "{data}"

[resources]
gpus_per_node = 0
time = "30"
partition = "low"
notice_seconds = 50
max_running = 3
"""
SHORT, LONG = ("steps=16,topk=8", "steps=16,topk=16"), "steps=24"
FAILING, REFUSED = "steps=12", "steps=10"


@dataclass
class Swept:
    """A sweep's folder, its runs by name, and what commands printed in between."""

    file: Path
    output: Path
    held: Path
    environment: dict[str, str]
    printed: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str, ok: bool = True) -> str:
        command = [python(), "-m", "lighthouse.sweep", *arguments]
        environment = {"PYTHONPATH": str(ROOT)} | self.environment
        code, printed = processes.run(command, environment, timeout=PATIENCE)
        assert (code == 0) == ok, printed
        return printed

    def run(self, name: str) -> Run:
        (run,) = (r for r in read_runs(self.output) if r.name.startswith(name))
        return run

    def under_way(self, name: str) -> bool:
        attempts = self.run(name).attempts()
        return bool(attempts) and attempts[-1].end is None

    def losses(self, name: str) -> dict[int, tuple[float, float]]:
        lines = (self.run(name).folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return {r["step"]: (r["loss"], r["grad_norm"]) for r in records}

    def table(self) -> list[dict]:
        """What `collect` makes, without measured times."""
        rows = collect(read_runs(self.output, "sweep"))
        return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def write_sweep(folder: Path, data: Path, environment: dict[str, str]) -> Swept:
    held = folder / "held"
    held.mkdir()
    environment = environment | {"HOLD_FOLDER": str(held)}
    sweep = Swept(folder / "sweep.toml", folder / "out put", held, environment)
    sweep.file.write_text(SWEEP.format(root=ROOT, output=sweep.output, data=data))
    return sweep


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A text, which is not there while the disturbed sweep begins."""
    folder = tmp_path_factory.mktemp("data") / "text"
    folder.mkdir()
    shutil.copy(ROOT / "LICENSE", folder / "a.txt")
    return folder


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, data: Path, tmp_path_factory) -> Swept:
    sweep = write_sweep(tmp_path_factory.mktemp("slurm"), data, cluster.environment)
    file = str(sweep.file)
    hold_short, hold_long, fail = (sweep.held / name for name in ("16", "24", "fail-12"))
    for file_ in (hold_short, hold_long, fail):
        file_.touch()
    sweep.printed["submit"] = sweep.command("submit", file)
    # At once: a run that has failed for good is sent again, and one is about to.
    sweep.printed["submit again"] = sweep.command("submit", file)
    # Three runs at a time are held, and the others begin later.
    away = data.rename(data.with_name("away"))

    # Three of four CPUs are taken, and this asks for two.
    for name in (*SHORT, LONG):
        wait_for((sweep.run(name).folder / "metrics.jsonl").exists, PATIENCE)
    cluster.run("sbatch", "-p", "high", "-n", "2", "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: any(PREEMPTED in reasons(sweep, name) for name in (*SHORT, LONG)), PATIENCE)

    wait_for(lambda: sweep.under_way(LONG), PATIENCE)
    task = str(sweep.run(LONG).attempts()[-1].job)
    cluster.set_time_limit(task, 1)
    wait_for(lambda: TIME_LIMIT in reasons(sweep, LONG), PATIENCE)
    cluster.set_time_limit(task, 30)

    hold_short.unlink()
    wait_for(lambda: all(sweep.run(name).done for name in SHORT), PATIENCE)
    wait_for(lambda: reasons(sweep, FAILING) == [FAILED, FAILED], PATIENCE)
    wait_for(lambda: reasons(sweep, REFUSED) == [FAILED], PATIENCE)
    for name in (FAILING, REFUSED):
        ended = f"{sweep.run(name).attempts()[-1].job}|"
        wait_for(lambda e=ended: e not in cluster.run("squeue", "-h", "-r", "-o", "%i|"), PATIENCE)
    wait_for(lambda: sweep.under_way(LONG), PATIENCE)
    sweep.printed["status"] = sweep.command("status", file)
    away.rename(data)
    fail.unlink()

    cluster.save_state(task)
    cluster.stop("slurmctld", kill=True)
    sweep.printed["status of the dead"] = sweep.command("status", file)
    sweep.printed["submit to the dead"] = sweep.command("submit", file, ok=False)
    cluster.start_controller()

    sweep.printed["resume the refused"] = sweep.command("resume", file, REFUSED + "*")
    sweep.printed["resume"] = sweep.command("resume", file, FAILING + "*")
    sweep.printed["cancel"] = sweep.command("cancel", file, FAILING + "*")
    wait_for(lambda: "0003" not in cluster.run("squeue", "-h", "-o", "%j"), PATIENCE)
    sweep.printed["status of the cancelled"] = sweep.command("status", file)
    sweep.printed["second resume"] = sweep.command("resume", file, FAILING + "*")
    hold_long.unlink()
    for name in (LONG, FAILING, REFUSED):
        wait_for(lambda n=name: sweep.run(n).done, PATIENCE)
    return sweep


@pytest.fixture(scope="module")
def undisturbed(disturbed: Swept, data: Path, tmp_path_factory) -> Swept:
    sweep = write_sweep(tmp_path_factory.mktemp("local"), data, {})
    sweep.printed["submit"] = sweep.command("submit", "--local", "-j", "2", str(sweep.file))
    return sweep


def reasons(sweep: Swept, name: str) -> list[str | None]:
    return [attempt.reason for attempt in sweep.run(name).attempts()]


def test_one_array_is_sent_and_not_sent_again(disturbed: Swept) -> None:
    assert "sent 5 runs as job" in disturbed.printed["submit"]
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
    assert steps == sorted(steps) and steps[-1] == 24


def test_a_failing_run_stops_and_shows_why(disturbed: Swept) -> None:
    status = " ".join(disturbed.printed["status"].split())
    assert (
        f"failed {disturbed.run(FAILING).name}: RuntimeError: runs of 12 steps are to fail"
        in status
    )
    assert reasons(disturbed, FAILING)[:2] == [FAILED, FAILED]
    assert "sent 1 run as" in disturbed.printed["resume"]
    assert reasons(disturbed, FAILING)[-1] == FINISHED


def test_a_refused_run_is_not_tried_again_and_shows_why(disturbed: Swept) -> None:
    status = " ".join(disturbed.printed["status"].split())
    assert f"failed {disturbed.run(REFUSED).name}: training.dataset_path = " in status
    assert "sent 1 run as" in disturbed.printed["resume the refused"]
    assert reasons(disturbed, REFUSED) == [FAILED, FINISHED]
    refused, finished = disturbed.run(REFUSED).attempts()
    assert (refused.exit_code, finished.exit_code) == (2, 0)
    assert str(refused.error).startswith("training.dataset_path = ")
    assert "no such file" in str(refused.error)


def test_a_cancelled_run_leaves_the_queue_until_it_is_resumed(disturbed: Swept) -> None:
    assert "1 run cancelled" in disturbed.printed["cancel"]
    assert "1 cancelled" in disturbed.printed["status of the cancelled"]
    assert "sent 1 run as" in disturbed.printed["second resume"]


def test_a_dead_controller_is_named_and_nothing_is_sent(disturbed: Swept) -> None:
    status = disturbed.printed["status of the dead"]
    assert "squeue: " in status and "states are from the run folders alone" in status
    assert status.count(" done ") >= 2
    assert "sweep: squeue: " in disturbed.printed["submit to the dead"]
    assert len(list(disturbed.output.glob("submissions/*"))) == 4


def test_losses_are_those_of_undisturbed_runs(disturbed: Swept, undisturbed: Swept) -> None:
    assert progress_of(undisturbed.run(LONG), running=False).eta == 0
    for name in (*SHORT, LONG, FAILING, REFUSED):
        assert disturbed.losses(name) == undisturbed.losses(name)


def test_tables_agree_but_for_times(disturbed: Swept, undisturbed: Swept) -> None:
    table = disturbed.table()
    assert table == undisturbed.table()
    assert [row["steps"] for row in table] == [16, 16, 24, 12, 10]
    assert all(row["done"] and row["spike"] is not None for row in table)
