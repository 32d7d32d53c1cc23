"""Which W&B run a training run belongs to."""

from pathlib import Path

import pytest

from lighthouse.titan.run.wandb_run import RUN_ID_FILE, run_identity


@pytest.fixture
def job(tmp_path: Path, monkeypatch):
    from torchtitan.config import JobConfig

    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"):
        monkeypatch.delenv(name, raising=False)
    job = JobConfig()
    job.job.dump_folder = str(tmp_path)
    return job


def test_a_restart_has_the_same_id_and_another_folder_another(job, tmp_path):
    first = run_identity(job)
    assert first["resume"] == "allow"
    assert run_identity(job) == first
    assert [path.name for path in tmp_path.iterdir()] == [RUN_ID_FILE]
    job.job.dump_folder = str(tmp_path / "other")
    (tmp_path / "other").mkdir()
    assert run_identity(job)["id"] != first["id"]


def test_an_explicit_id_wins_and_is_not_kept(job, tmp_path, monkeypatch):
    kept = run_identity(job)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("WANDB_RESUME", "must")
    assert run_identity(job) == {"id": "mine", "resume": "must"}
    monkeypatch.delenv("WANDB_RUN_ID")
    assert run_identity(job)["id"] == kept["id"]


@pytest.mark.parametrize("name", ["WANDB_RESUME_FROM", "WANDB_FORK_FROM"])
def test_a_place_in_a_run_excludes_resume(job, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "run?_step=5")
    assert run_identity(job) == {"id": None, "resume": None}
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_all_log_have_runs_of_their_own(job, monkeypatch):
    job.metrics.save_for_all_ranks = True
    ids = []
    for rank in (0, 1, 0):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        ids.append(run_identity(job)["id"])
    assert ids[0] == ids[2] != ids[1]
