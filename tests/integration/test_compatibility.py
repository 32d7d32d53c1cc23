"""Runs, sweeps and TOML keys of commit 5dd501d, in tests/data/v1, keep working."""

import json
import os
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import llama3_args

from lighthouse.toml_types import under_dotted_keys
from tests.support import ROOT, processes
from tests.support.processes import python, run_module
from tests.support.tiers import tiers
from tests.support.trainer import Run

DATA = ROOT / "tests" / "data" / "v1"
MADE_IN = "/tmp/lighthouse-v1"  # by make.sh

STOPPED, LAST = 20, 40

# Other processors and releases of torch round otherwise: by 1e-7 under the instruction sets of one
# processor. A switch one step late makes 1e-3, a fresh optimizer or loader 1e-2.
ROUNDING = 1e-4


@pytest.fixture
def v1(tmp_path) -> Path:
    """A copy of the folder, as if it had been made there."""
    folder = tmp_path / "v1"
    shutil.copytree(DATA, folder)
    shutil.unpack_archive(folder / "run" / "checkpoint.tar.gz", folder / "run")
    for name in ("config.toml", "submission.json"):
        for file in folder.rglob(name):
            file.write_text(file.read_text().replace(MADE_IN, str(folder)))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """For processes in the folder: its modules and the present code, and no GPU."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


def sweep(folder: Path, *arguments: str) -> str:
    """What a command of sweeps prints in the folder."""
    command = [python(), ROOT / "scripts" / "sweep.py", *arguments]
    code, printed = processes.run(command, environment(folder), path=folder)
    assert code == 0, printed
    return printed


def settings(file: Path) -> dict[str, Any]:
    """What a TOML says, under dotted keys."""
    return under_dotted_keys(tomllib.loads(file.read_text()))


def test_a_stopped_run_goes_on_through_the_switch_as_if_never_stopped(v1):
    """It says now what it did then: there was no other selection than the published one."""
    code, output = run_module(
        *("torchtitan.train", "--job.config_file", "run.toml"),
        *("--lighthouse.selection", "published"),
        ranks=1,
        environment=environment(v1),
        path=v1,
    )
    assert code == 0, output
    assert f"Training starts at step {STOPPED + 1}" in output
    whole, resumed = (
        [line for line in Run(folder, 0, "").lines() if line["step"] > STOPPED]
        for folder in (DATA / "whole", v1 / "run")
    )
    assert len(whole) == LAST - STOPPED + 3  # validations
    for key in ("step", "tokens_seen", "lr", "n_tokens_seen", "lighthouse/active_layers"):
        assert [line.get(key) for line in resumed] == [line.get(key) for line in whole], key
    # Validations say it too by now.
    pairs = zip(whole, resumed, strict=True)
    stages = [(was["stage"], now["stage"]) for was, now in pairs if "stage" in was]
    assert len(stages) == LAST - STOPPED and all(was == now for was, now in stages)
    for key in ("loss", "grad_norm", "validation_loss", "validation_dense_loss"):
        before, now = ([line[key] for line in lines if key in line] for lines in (whole, resumed))
        assert now == pytest.approx(before, rel=ROUNDING), key
    keys_before, keys_now = ({key for line in lines for key in line} for lines in (whole, resumed))
    assert {line.get("mfu(%)") for line in whole} <= {None, "nan"}  # of a CPU
    assert keys_before - {"mfu(%)"} <= keys_now
    before, now = settings(DATA / "run" / "config.toml"), settings(v1 / "run" / "config.toml")
    assert {key: now.get(key) for key in before} == before


def test_a_stopped_run_does_not_go_on_with_the_new_default(v1):
    code, output = run_module(
        *("torchtitan.train", "--job.config_file", "run.toml"),
        ranks=1,
        environment=environment(v1),
        path=v1,
    )
    assert code != 0
    assert "set lighthouse.selection = 'published' to go on as it began" in output


@pytest.mark.parametrize("run", ["run", "whole", "sweep/topk=4,seed=3@230770c7"])
def test_every_key_of_a_resolved_configuration_is_read(v1, run, monkeypatch):
    monkeypatch.chdir(v1)
    monkeypatch.syspath_prepend(v1)
    # What the imported module adds is gone afterwards.
    monkeypatch.setitem(llama3_args, "small_byte", None)
    monkeypatch.delitem(sys.modules, "small_model", raising=False)
    before = settings(v1 / run / "config.toml")
    config = ConfigManager().parse_args(["--job.config_file", f"{run}/config.toml"])
    now = under_dotted_keys(config.to_dict())
    assert {key: now.get(key) for key in before} == before


@pytest.mark.parametrize("run", tiers(["run", "whole"], "run"))
def test_a_report(v1, run):
    (v1 / run / "report.json").unlink()
    code, printed = run_module("lighthouse.report", run, environment=environment(v1), path=v1)
    assert code == 0, printed
    lines = iter(printed.splitlines())
    assert all(line in lines for line in (DATA / run / "report.txt").read_text().splitlines())
    before, now = (json.loads((folder / run / "report.json").read_text()) for folder in (DATA, v1))
    assert before.items() <= now.items()
    assert (v1 / run / "loss.png").exists()


def test_runs_of_a_finished_sweep_are_done(v1):
    folders = sorted((v1 / "sweep").rglob("*"))
    assert "sweep: 2 runs: 2 done\n" in sweep(v1, "status", "sweep.toml")
    assert "nothing to send" in sweep(v1, "submit", "--local", "sweep.toml")
    assert "nothing to send" in sweep(v1, "resume", "--local", "sweep.toml")
    assert sorted((v1 / "sweep").rglob("*")) == folders


def test_the_table_of_a_sweep(v1):
    results = Path("sweep", "results", "sweep")
    shutil.rmtree(v1 / results)
    printed = sweep(v1, "collect", "sweep.toml")
    assert (DATA / results / "results.md").read_text() in printed
    for kind in ("csv", "json", "md"):
        name = results / f"results.{kind}"
        assert (v1 / name).read_bytes() == (DATA / name).read_bytes()
