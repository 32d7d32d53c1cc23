"""Lines of metrics as the trainer writes them."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from torchtitan.config import JobConfig

from lighthouse.runs.metrics import METRICS_FILE, read_metrics
from lighthouse.titan.run.json_lines import JsonLinesLogger

TRAINING = {
    "loss_metrics/global_avg_loss": 0.1 + 0.2,
    "grad_norm": 1.5,
    "throughput(tps)": 1234.5,
    "memory/max_reserved(GiB)": 2.0,
    "n_tokens_seen": 98304,
    "lr": 1e-3,
}


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    """A run of both stages, the second one from step 8 on."""
    job = JobConfig()
    job.job.dump_folder = str(tmp_path / "run")
    job.training.steps, job.training.seq_len = 10, 4096
    job.lighthouse.enable, job.lighthouse.dense_from_step = True, 8
    return job


def records(job: JobConfig) -> list[dict]:
    return read_metrics(Path(job.job.dump_folder))


def test_a_line_has_short_names_and_upstreams(job: JobConfig, tmp_path: Path) -> None:
    logger = JsonLinesLogger(job)
    logger.log(TRAINING | {"lighthouse/active_layers": 26}, 7)
    # Flushed: readable while the run goes on.
    (line,) = (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    record = json.loads(line)
    logger.close()
    assert record.pop("time") > 1.7e9
    assert record == TRAINING | {
        "step": 7,
        "attention": "lighthouse",
        "seq_len": 4096,
        "loss": 0.1 + 0.2,
        "tokens_per_second": 1234.5,
        "memory_gib": 2.0,
        "tokens_seen": 98304,
        "lighthouse/active_layers": 26,
        "stage": "lighthouse",
    }


def test_every_line_says_the_attention_of_its_step(job: JobConfig) -> None:
    logger = JsonLinesLogger(job)
    for step in (7, 8):
        logger.log(TRAINING, step)
        logger.log({"validation_metrics/loss": 1.0}, step)
    logger.close()
    for key in ("attention", "stage"):
        assert [r[key] for r in records(job)] == ["lighthouse"] * 2 + ["dense"] * 2
    assert {r["seq_len"] for r in records(job)} == {4096}


def test_a_model_that_is_never_but_dense_has_no_stage(job: JobConfig) -> None:
    job.lighthouse.enable = False
    logger = JsonLinesLogger(job)
    logger.log(TRAINING, 1)
    logger.close()
    (record,) = records(job)
    assert record["attention"] == "dense" and "stage" not in record


def test_nothing_logged_writes_nothing(job: JobConfig, tmp_path: Path) -> None:
    JsonLinesLogger(job).close()
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_named(
    job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = JsonLinesLogger(job)
    monkeypatch.setattr(logger, "_open", lambda: SimpleNamespace(write=full))
    with pytest.raises(
        OSError, match=f"No space left on device: '{tmp_path / 'run' / METRICS_FILE}'"
    ):
        logger.log(TRAINING, 1)
