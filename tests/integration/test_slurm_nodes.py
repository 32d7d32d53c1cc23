"""A run on two nodes of a real Slurm, launched or swept, gives the losses of two local ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lighthouse.sweep.runs import read_runs
from tests.integration.processes import ROOT, run_module
from tests.integration.runs import Run
from tests.integration.slurm_cluster import (
    PATIENCE,
    Cluster,
    needs_slurm,
    slurm_cluster,
    wait_for,
)

pytestmark = needs_slurm

CONFIG = ROOT / "train_configs" / "quickstart.toml"
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
    job = cluster.run(
        *"sbatch --parsable --nodes=2 --time=30".split(),
        *(f"--chdir={ROOT}", f"--output={log}"),
        f"--export=ALL,OMP_NUM_THREADS=1,HOLD_FOLDER={held}",
        *(str(ROOT / "scripts" / "train.sbatch"), str(folder), *command_line()),
        "--experimental.custom_import=tests.integration.held",
    ).strip()
    wait_for((folder / "metrics.jsonl").exists, PATIENCE)
    cluster.set_time_limit(job, 1)
    wait_for(lambda: "Stopped by the file STOP after step 1 of 6" in log.read_text(), PATIENCE)
    cluster.set_time_limit(job, 30)
    (held / str(STEPS)).unlink()
    wait_for(lambda: "Training completed" in log.read_text(), PATIENCE)
    assert "Training starts at step 2" in log.read_text()
    assert Run(folder, 0, "").losses() == two_ranks.losses()


def test_a_sweep_of_runs_on_two_nodes(cluster: Cluster, two_ranks: Run, tmp_path: Path) -> None:
    overrides = "".join(f"{key} = {value}\n" for key, value in OPTIONS.items())
    file, output = tmp_path / "sweep.toml", tmp_path / "out put"
    file.write_text(
        f'base = "{CONFIG}"\noutput = "{output}"\n[overrides]\n{overrides}'
        "[axes]\ndebug.seed = [42]\n[resources]\nnodes = 2\ngpus_per_node = 0\n"
    )
    subprocess.run(
        [sys.executable, "scripts/sweep.py", "submit", str(file)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | cluster.environment,
        check=True,
        timeout=PATIENCE,
    )
    (run,) = read_runs(output)
    wait_for(lambda: run.done, PATIENCE)
    assert run.processes == 2
    assert Run(run.folder, 0, "").losses() == two_ranks.losses()
