"""Runs under training.document_mask: each kind of layer, stages, validation, and a resume."""

from pathlib import Path

import pytest

from tests.support.text import write_jsonl
from tests.support.trainer import train

OPTIONS = [
    *("--training.dataset=local", "--training.document_mask", "--lighthouse.enable"),
    *("--training.document_positions=restart", "--training.max_documents=16"),
    *("--lighthouse.dense_layers=0", "--lighthouse.window_layers=1", "--lighthouse.window=32"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_jsonl(folder / "a.jsonl", [f"{i} " + "abc" * (7 * i % 40) for i in range(60)])
    return folder


def test_a_run_of_stages_resumes_exactly(tmp_path: Path, text: Path) -> None:
    """Lighthouse, dense and window layers, and a dense stage, with validation of both."""
    options = [*OPTIONS, f"--training.dataset_path={text}", "--lighthouse.dense_from_step=4"]
    options += ["--checkpoint.enable", "--checkpoint.interval=2", "--lr_scheduler.total_steps=6"]
    options += ["--checkpoint.no-last_save_model_only", "--training.rehearse_stages=True"]
    options += ["--validation.enable", "--validation.dataset=local", "--validation.seq_len=256"]
    options += [f"--validation.dataset_path={text}", "--validation.local_batch_size=2"]
    options += ["--validation.steps=2", "--validation.freq=2", "--lighthouse.validate_dense"]
    options += ["--lighthouse.selection_log_freq=2"]
    whole = train(tmp_path / "whole", *options, "--training.steps=6")
    train(tmp_path / "parts", *options, "--training.steps=2")
    parts = train(tmp_path / "parts", *options, "--training.steps=6")
    assert len(whole.losses()) == 6
    assert parts.losses() == whole.losses()
    assert whole.values("data/padding_tokens")[6] > 0
    left, pairs = (whole.values(f"data/pairs_in_{x}")[6] for x in ("documents", "sequences"))
    assert 0 < left < pairs
    assert len(whole.values("validation_metrics/loss")) == 4
