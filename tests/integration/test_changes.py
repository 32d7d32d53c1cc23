"""Changing one's mind in the middle of a run: what it does to the steps, and what it leaves."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.trainer import TINY, Run, train

BASE = {
    **TINY,
    "checkpoint.enable": True,
    "checkpoint.last_save_model_only": False,
    "lr_scheduler.total_steps": 8,
    "lr_scheduler.decay_ratio": 0.0,
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("begun"), "--training.steps=4", base=BASE)


@pytest.fixture
def copy(begun: Run, tmp_path: Path) -> Path:
    return shutil.copytree(begun.folder, tmp_path / "copy")


def test_another_learning_rate_keeps_the_moments(copy: Path, tmp_path: Path) -> None:
    """As a run whose stages have had it so from the first."""
    refused = train(copy, "--training.steps=7", "--optimizer.lr=0.004", base=BASE, ok=False)
    assert refused.refusal().startswith("optimizer.lr = 0.004 (was 0.002): checkpoint ")
    assert "by checkpoint.accept_changes = ['lr_scheduler']" in refused.refusal()
    assert "lr = 0.002\n" in (copy / "config.toml").read_text()

    accepted = train(
        *(copy, "--training.steps=7", "--optimizer.lr=0.004"),
        *("--checkpoint.accept_changes", "lr_scheduler"),
        base=BASE,
    )
    assert "After step 4: optimizer.lr = 0.004 (was 0.002); accepted" in accepted.output
    stages = tmp_path / "stages.toml"
    stages.write_text(
        '[[stages]]\nsteps = 4\nattention = "dense"\n'
        '[[stages]]\nsteps = 4\nattention = "dense"\nlr_factor = 2.0\n'
    )
    whole = train(tmp_path / "whole", base={**BASE, "job.config_file": stages})
    assert accepted.losses() == {step: whole.losses()[step] for step in range(1, 8)}
    assert accepted.values("lr") == {step: whole.values("lr")[step] for step in range(1, 8)}

    kept = sorted(file.name for file in (copy / "configs").iterdir())
    assert kept == ["0001.toml", "0002.toml"]
    record = json.loads((accepted.checkpoint(7) / "resume.json").read_text())
    by = {change["key"]: change["name"] for change in record["changes"]}
    assert by == {"optimizer.lr": "lr_scheduler", "training.steps": None}


def test_other_betas_are_those_of_the_steps_to_come(copy: Path, tmp_path: Path) -> None:
    """Not what the checkpoint says of the groups of weights."""
    options = ("--training.steps=6", "--checkpoint.accept_changes=optimizer")
    one = train(copy, *options, "--optimizer.beta1=0.5", base=BASE)
    shutil.copytree(copy, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "checkpoint" / "step-6")
    same = train(tmp_path / "other", *options, base=BASE)
    assert one.losses()[5] == same.losses()[5] and one.losses()[6] != same.losses()[6]


@pytest.mark.thorough
def test_a_longer_schedule_that_agrees_needs_no_word(copy: Path, tmp_path: Path) -> None:
    longer = train(copy, "--training.steps=6", "--lr_scheduler.total_steps=50", base=BASE)
    assert "lr_scheduler.total_steps = 50 (was 8); no step taken is another" in longer.output
    whole = train(tmp_path / "whole", "--training.steps=6", base=BASE)
    assert longer.losses() == whole.losses()


def test_a_shuffled_order_and_its_seed(tmp_path: Path) -> None:
    """The same seed goes on to the bit; under another one the place means nothing."""
    text = tmp_path / "text"
    text.mkdir()
    for name in "ab":
        lines = [json.dumps({"text": f"{name} {n} " * 40}) + "\n" for n in range(300)]
        (text / f"{name}.jsonl").write_text("".join(lines))
    base = {
        **BASE,
        "training.dataset": "local",
        "training.dataset_path": text,
        "training.dataset_order": "shuffled",
    }
    three, four = "--training.dataset_seed=3", "--training.dataset_seed=4"
    begun = train(tmp_path / "run", "--training.steps=2", three, base=base)
    refused = train(begun.folder, "--training.steps=4", four, base=base, ok=False)
    assert refused.refusal().startswith("training.dataset_seed = 4 (was 3): checkpoint ")
    shutil.copytree(begun.folder, tmp_path / "other")
    more = train(begun.folder, "--training.steps=4", three, base=base)
    whole = train(tmp_path / "whole", "--training.steps=4", three, base=base)
    assert more.losses() == whole.losses()
    accept = "--checkpoint.accept_changes=data"
    other = train(tmp_path / "other", "--training.steps=4", four, accept, base=base)
    assert "The text begins anew: its place in the checkpoint is of another order" in other.output
    assert other.losses()[2] == whole.losses()[2] and other.losses()[3] != whole.losses()[3]


@pytest.mark.thorough
def test_text_behind_the_place_of_each_rank(tmp_path: Path) -> None:
    """Added, it needs no word; touched, it is said to be taken as it was."""
    text = tmp_path / "text"
    text.mkdir()
    for name in "ab":
        line = json.dumps({"text": f"{name} few words " * 40})
        (text / f"{name}.jsonl").write_text(f"{line}\n" * 300)
    base = {**BASE, "training.dataset": "local", "training.dataset_path": text}
    begun = train(tmp_path / "run", "--training.steps=2", base=base, processes=2)
    for name in "cd":
        (text / f"{name}.jsonl").write_text(f"{line}\n" * 300)
    os.utime(text / "a.jsonl", ns=(1, 1))
    more = train(begun.folder, "--training.steps=4", base=base, processes=2)
    assert "new: c.jsonl, d.jsonl; no step taken is another one by it" in more.output
    assert "taken as unchanged by size and samples: a.jsonl" in more.output
    whole = train(tmp_path / "whole", "--training.steps=4", base=base, processes=2)
    assert more.losses() == whole.losses()

    (text / "e.jsonl").write_text(f"{line}\n")
    refused = train(begun.folder, "--training.steps=6", base=base, processes=2, ok=False)
    assert "another share of all files: checkpoint " in refused.refusal()
    accept = "--checkpoint.accept_changes=data"
    accepted = train(begun.folder, "--training.steps=6", accept, base=base, processes=2)
    assert "has other files, from its first file on" in accepted.output
