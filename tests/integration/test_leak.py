"""The leak of real runs, and of whole small models under either selection."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torchtitan.config import ConfigManager

from lighthouse import leak
from tests.support.models import drawn
from tests.support.trainer import Run, train

OPTIONS = "--lighthouse.enable --lighthouse.dense_from_step 7 --training.steps 8"
OPTIONS += " --lr_scheduler.total_steps 8 --checkpoint.enable --checkpoint.interval 4"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(Path("LICENSE").read_text() * 2)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Run:
    """Six steps of the published selection, two dense ones, with the leak in validation."""
    validation = f"--validation.enable --validation.dataset local --validation.dataset_path {text}"
    validation += " --validation.freq 4 --validation.steps 2 --validation.seq_len 256"
    validation += " --validation.local_batch_size 2"
    measured = "--lighthouse.selection published --lighthouse.validate_leak 3"
    folder = tmp_path_factory.mktemp("run")
    return train(folder, *OPTIONS.split(), *validation.split(), *measured.split())


def test_validation_logs_the_leak_of_the_lighthouse_stage(run: Run) -> None:
    leaks = run.values("validation_leak")
    assert set(leaks) == {1, 4}
    assert all(abs(value) < 1 for value in leaks.values())
    assert set(run.values("validation_metrics/leak_standard_error")) == {1, 4}
    assert "leak:" in run.output


def test_the_command_reports_a_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    leak.main([str(run.folder), "--step", "4", "--positions", "6", "--sequences", "3"])
    report = json.loads((run.folder / "leak-step-4.json").read_text())
    assert report["step"] == 4
    assert report["seq_len"] == 256
    assert report["selections"] == ["published"]
    assert report["own"]["draws"] == 6
    # The validation loss of that step is of the same weights and of the first four sequences.
    validated = run.values("validation_loss")[4]
    assert report["own_everywhere"] == pytest.approx(validated, abs=0.3)
    shown = capsys.readouterr().out
    assert "published" in shown and f"{report['dense']:.4f}" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--step", "8"], "dense stage"),
        (["--step", "5"], "finished are 4, 8"),
        (["--text", "/no/such"], "refused: --text = '/no/such': no such file or folder"),
        (["--positions", "1"], "--positions"),
    ],
)
def test_refusals(run: Run, options: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        leak.main([str(run.folder), *options])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_documents_apart_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by ``validate_leak``: their padding has no loss, and the futures no borders."""
    shutil.copytree(run.folder, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    written = config.read_text()
    assert written.count("document_mask = false") == 1
    config.write_text(written.replace("document_mask = false", "document_mask = true"))
    with pytest.raises(SystemExit) as exit_:
        leak.main([str(tmp_path / "run"), "--step", "4"])
    assert exit_.value.code == 2
    assert "training.document_mask = true: other futures are not cut" in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        leak.main([str(tmp_path)])
    assert "not the folder of a run" in capsys.readouterr().err


def test_a_resume_with_another_selection_is_refused(run: Run) -> None:
    (run.folder / "checkpoint" / "step-8").rename(run.folder / "checkpoint" / "later")
    try:
        again = train(run.folder, *OPTIONS.split(), ok=False)
    finally:
        (run.folder / "checkpoint" / "later").rename(run.folder / "checkpoint" / "step-8")
    assert again.returncode == 2 and "Traceback" not in again.output
    assert again.refusal().startswith("lighthouse.selection = 'causal'")
    assert "set lighthouse.selection = 'published'" in again.refusal()


def build(selection: str) -> torch.nn.Module:
    """A Llama of four layers, two of them Lighthouse ones, in strata of 32 tokens."""
    options = "--model.flavor tiny_byte --model.tokenizer byte --training.seq_len 128"
    options += " --lighthouse.enable --lighthouse.topk 8 --lighthouse.stratum 2"
    options += f" --lighthouse.dense_layers 1 2 --lighthouse.selection {selection}"
    job = ConfigManager().parse_args(options.split())
    return drawn(job).eval()


@pytest.mark.parametrize("selection", ["causal", "published"])
@torch.no_grad()
def test_what_a_whole_model_sees(selection: str) -> None:
    """Only the published selection sees tokens behind the first of a stratum's last entry."""
    model = build(selection)
    draw = torch.Generator().manual_seed(1)
    tokens, others = torch.randint(256, (2, 8, 128), generator=draw)
    before = model(tokens)
    changed = 0
    for end in (32, 64, 96):
        for start in range(end - 3, end):
            after = model(torch.cat((tokens[:, :start], others[:, start:]), dim=1))
            changed += not torch.equal(after[:, :start], before[:, :start])
    assert (changed > 0) == (selection == "published")
