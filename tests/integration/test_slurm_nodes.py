"""A run on two nodes of a real Slurm, launched or swept, gives the losses of two local ranks."""

import os
import subprocess
from pathlib import Path

import pytest

from lighthouse.sweep import run_folder as sweeps
from lighthouse.sweep.run_folder import FAILED
from tests.support import ROOT
from tests.support.processes import python, run_module
from tests.support.slurm_cluster import (
    PATIENCE,
    Cluster,
    needs_slurm,
    slurm_cluster,
    wait_for,
)
from tests.support.trainer import Run

pytestmark = needs_slurm

CONFIG = ROOT / "train_configs" / "tiny.toml"
STEPS = 6
OPTIONS = {
    "training.seq_len": 256,
    "training.local_batch_size": 1,
    "training.steps": STEPS,
    "lighthouse.topk": 8,
    "lighthouse.dense_from_step": 5,
}


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("two_ranks")
    code, output = run_module("torchtitan.train", *command_line(), *dump(folder), ranks=2)
    assert code == 0, output
    return Run(folder, code, output)


def command_line() -> list[str]:
    options = {"job.config_file": CONFIG} | OPTIONS
    return [f"--{key}={value}" for key, value in options.items()]


def dump(folder: Path) -> list[str]:
    return [f"--job.dump_folder={folder}"]


def test_the_launcher_stops_in_time_and_continues(
    cluster: Cluster, two_ranks: Run, tmp_path: Path
) -> None:
    folder, held, log = tmp_path / "a run", tmp_path / "held", tmp_path / "log"
    held.mkdir()
    (held / str(STEPS)).touch()
    job = send(cluster, folder, held, log)
    wait_for((folder / "metrics.jsonl").exists, PATIENCE)
    cluster.set_time_limit(job, 1)
    wait_for(lambda: "Stopped by the file STOP after step 1 of 6" in log.read_text(), PATIENCE)
    cluster.set_time_limit(job, 30)
    (held / str(STEPS)).unlink()
    wait_for(lambda: "Training completed" in log.read_text(), PATIENCE)
    assert "Training starts at step 2" in log.read_text()
    assert Run(folder, 0, "").losses() == two_ranks.losses()


def send(cluster: Cluster, folder: Path, held: Path, log: Path) -> str:
    """Send the script, from a folder of no environment; returns the job's id."""
    path = f"{Path(python()).parent}:{cluster.environment['PATH']}"
    return cluster.run(
        *"sbatch --parsable --nodes=2 --time=30".split(),
        *(f"--chdir={held}", f"--output={log}"),
        f"--export=ALL,OMP_NUM_THREADS=1,HOLD_FOLDER={held},PYTHONPATH={ROOT},PATH={path}",
        *(str(ROOT / "scripts" / "train.sbatch"), str(folder), *command_line()),
        "--experimental.custom_import=tests.support.held",
    ).strip()


def test_a_refusal_on_two_nodes_is_the_last_line(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / f"refuse-{STEPS}").touch()
    job = send(cluster, tmp_path / "a run", tmp_path, log)
    ended = ("scontrol", "-o", "show", "job", job)
    wait_for(lambda: "JobState=FAILED" in cluster.run(*ended), PATIENCE)
    assert " ExitCode=2:0 " in cluster.run(*ended)
    lines = log.read_text().splitlines()
    sentence = f"refused: training.steps = {STEPS}: must be something else"
    assert lines[-1] == sentence and lines.count(sentence) == 1
    assert not (tmp_path / "a run" / "LAST_WORD").exists()


@pytest.mark.thorough
def test_a_sweep_of_runs_on_two_nodes(cluster: Cluster, two_ranks: Run, tmp_path: Path) -> None:
    run = submit(cluster, tmp_path, "")
    wait_for(lambda: run.done, PATIENCE)
    assert run.processes == 2
    assert Run(run.folder, 0, "").losses() == two_ranks.losses()


@pytest.mark.thorough
def test_a_refusal_on_two_nodes_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / f"refuse-{STEPS}").touch()
    run = submit(cluster, tmp_path, 'experimental.custom_import = "tests.support.held"\n')
    wait_for(lambda: [a for a in run.attempts() if a.end is not None], PATIENCE)
    wait_for(lambda: not cluster.run("squeue", "-h", "-o", "%i"), PATIENCE)
    sentence = f"training.steps = {STEPS}: must be something else"
    assert [(a.reason, a.exit_code, a.error) for a in run.attempts()] == [(FAILED, 2, sentence)]


def submit(cluster: Cluster, folder: Path, overrides: str) -> sweeps.Run:
    """Send a sweep of one run on two nodes."""
    overrides += "".join(f"{key} = {value}\n" for key, value in OPTIONS.items())
    file, output = folder / "sweep.toml", folder / "out put"
    file.write_text(
        f'base = "{CONFIG}"\noutput = "{output}"\n[overrides]\n{overrides}'
        "[axes]\ndebug.seed = [42]\n[resources]\nnodes = 2\ngpus_per_node = 0\n"
    )
    environment = {"OMP_NUM_THREADS": "1", "HOLD_FOLDER": str(folder), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [python(), "-m", "lighthouse.sweep", "submit", str(file)],
        cwd=ROOT,
        env=os.environ | environment | cluster.environment,
        check=True,
        timeout=PATIENCE,
    )
    (run,) = sweeps.read_runs(output)
    return run
