"""A run of four stages in one process, killed anywhere, in other layouts, compiled, rehearsed."""

import json
import random
import shutil
from pathlib import Path

import pytest
import tomli_w
import torch

from lighthouse.report import main as report
from lighthouse.titan.trained import load_run
from tests.support import ROOT
from tests.support.tiers import tiers
from tests.support.trainer import Run, train

LR = 0.002
BASE = {
    "model": {"flavor": "tiny_byte", "tokenizer": "byte"},
    "training": {
        "dataset": "local",
        "seq_len": 256,
        "local_batch_size": 1,
        "steps": 1000,
        "mixed_precision_param": "float32",
    },
    "lighthouse": {
        "enable": True,
        "topk": 16,
        "stratum": 8,
        "dense_layers": [0],
        "dense_from_step": 500,
    },
    "optimizer": {"lr": LR},
    "lr_scheduler": {"warmup_steps": 2},
    "metrics": {"log_freq": 1},
    "activation_checkpoint": {"mode": "none"},
    "checkpoint": {"interval": 1, "keep_latest_k": 0, "last_save_model_only": False},
    "debug": {"seed": 7},
}
FOUR = {
    "job": {"extends": "base.toml"},
    "lr_scheduler": {"decay_from_stage": 4},
    "stages": [
        {"steps": 2, "attention": "dense", "seq_len": 64, "local_batch_size": 8},
        {"steps": 3, "attention": "lighthouse"},
        {
            **{"steps": 2, "attention": "lighthouse", "seq_len": 128, "global_batch_size": 2},
            **{"topk": 8, "stratum": 4, "lr_factor": 0.5, "warmup_steps": 2},
        },
        {"steps": 2, "attention": "dense"},
    ],
}
TWO = {
    "job": {"extends": "base.toml"},
    "stages": [
        {"steps": 2, "attention": "dense", "seq_len": 64, "global_batch_size": 8},
        {
            "steps": 2,
            "attention": "lighthouse",
            "global_batch_size": 4,
            "num_chunks": 4,
            "stratum": 4,
        },
    ],
}
BY_HAND = [
    # stage, attention, length, learning rate over LR, tokens seen
    (1, "dense", 64, 1 / 2, 512),
    (1, "dense", 64, 1.0, 1024),
    (2, "lighthouse", 256, 1.0, 1280),
    (2, "lighthouse", 256, 1.0, 1536),
    (2, "lighthouse", 256, 1.0, 1792),
    (3, "lighthouse", 128, 3 / 4, 2048),
    (3, "lighthouse", 128, 1 / 2, 2304),
    (4, "dense", 256, 1.0, 2560),
    (4, "dense", 256, 1 / 2, 2816),
]
STAGE_OF = "stage_number attention seq_len lr tokens_seen".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With base.toml, four.toml, two.toml, and a text each of whose documents fills 256 tokens."""
    path = tmp_path_factory.mktemp("stages")
    words = (ROOT / "LICENSE").read_text().split()
    draw = random.Random(0)
    texts = (" ".join(draw.choices(words, k=256))[:254] for _ in range(64))
    (path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    text = {"dataset_path": str(path / "text.jsonl")}
    (path / "base.toml").write_text(tomli_w.dumps(BASE | {"training": BASE["training"] | text}))
    (path / "four.toml").write_text(tomli_w.dumps(FOUR))
    (path / "two.toml").write_text(tomli_w.dumps(TWO))
    return path


def run(
    folder: Path,
    name: str,
    *args: str,
    file: str = "four.toml",
    processes: int = 1,
    ok: bool = True,
) -> Run:
    options = {"job.config_file": folder / file}
    return train(folder / name, *args, base=options, processes=processes, ok=ok)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Run:
    """Checkpoints at each step, validation at a length of its own, and batches read ahead."""
    return run(
        *(folder, "whole", "--checkpoint.enable", "--training.dataloader.num_workers=1"),
        *"--validation.enable --validation.dataset=local --validation.seq_len=256".split(),
        *"--validation.freq=4 --validation.steps=1 --lighthouse.validate_dense".split(),
        f"--validation.dataset_path={folder / 'text.jsonl'}",
        "--lighthouse.selection_log_freq=1",
    )


def stages(run: Run) -> list[tuple[object, ...]]:
    steps = {line["step"]: line for line in run.lines() if "loss" in line}
    return [tuple(line[key] for key in STAGE_OF) for line in steps.values()]


def assert_are(
    got: list[tuple[object, ...]], by_hand: list[tuple[int, str, int, float, int]]
) -> None:
    assert [(*row[:3], row[4]) for row in got] == [(*row[:3], row[4]) for row in by_hand]
    assert [row[3] for row in got] == pytest.approx([row[3] * LR for row in by_hand], rel=1e-12)


def test_each_step_is_its_stages(whole: Run) -> None:
    assert list(whole.losses()) == list(range(1, 10))
    assert_are(stages(whole), BY_HAND)
    active = whole.values("lighthouse/active_layers")
    assert list(active.values()) == [0] * 2 + [3] * 5 + [0] * 2
    assert list(whole.values("validation_loss")) == [1, 4, 8]
    # Nothing is compared across a boundary.
    assert list(whole.values("lighthouse/layer_01/selection_change")) == [4, 5, 7]


def test_rehearsed_and_without_reading_ahead_it_is_the_same(folder: Path, whole: Run) -> None:
    plain = run(folder, "plain", "--training.rehearse_stages=True")
    assert plain.output.count("Rehearsing stage") == 4
    assert plain.output.count("Stage 2 of 4: ") == 1
    assert plain.losses() == whole.losses() and stages(plain) == stages(whole)


def killed_after(whole: Run, step: int) -> Path:
    """A copy of a run's folder as it was after a step."""
    folder = whole.folder.with_name(f"{whole.folder.name}-killed-{step}")
    shutil.copytree(whole.folder, folder, ignore=shutil.ignore_patterns("step-*"))
    shutil.copytree(whole.checkpoint(step), folder / "checkpoint" / f"step-{step}")
    return folder


RESUMED = (
    *"--checkpoint.enable --checkpoint.load_only --training.dataloader.num_workers=1".split(),
)


@pytest.mark.parametrize(
    "step", tiers([1, 2, 4], 2), ids=["before a boundary", "on it", "inside a stage"]
)
def test_killed_it_goes_on(folder: Path, whole: Run, step: int) -> None:
    resumed = run(folder, killed_after(whole, step).name, *RESUMED)
    assert f"Training starts at step {step + 1}" in resumed.output
    assert resumed.losses() == whole.losses() and stages(resumed) == stages(whole)


def test_stages_ahead_may_change(folder: Path, whole: Run) -> None:
    changed = run(
        *(folder, killed_after(whole, 5).name, *RESUMED),
        *"--stages.3.lr-factor=0.25 --stages.4.seq_len 128 --stages.4.local_batch_size 2".split(),
    )
    assert stages(changed)[:5] == stages(whole)[:5]
    ahead = [(3, "lighthouse", 128, 0.625, 2048), (3, "lighthouse", 128, 0.25, 2304)]
    ahead += [(4, "dense", 128, 1.0, 2560), (4, "dense", 128, 0.5, 2816)]
    assert_are(stages(changed)[5:], ahead)
    behind = {step: pair for step, pair in changed.losses().items() if step <= 5}
    assert behind == {step: whole.losses()[step] for step in behind}


@pytest.mark.thorough
def test_compiled_it_goes_on_on_a_boundary(folder: Path) -> None:
    """Of this compiler there is no code to build."""
    options = [
        *"--compile.enable --compile.backend=aot_eager_decomp_partition".split(),
        *"--stages.1.steps=1 --stages.2.steps=1 --stages.2.dense_layers=[]".split(),
        *(f"--stages.{number}.local_batch_size=4" for number in (1, 2)),
        "--checkpoint.enable",
    ]
    compiled = run(folder, "compiled", *options, file="two.toml")
    assert [row[2] for row in stages(compiled)] == [64, 256]
    resumed = run(folder, killed_after(compiled, 1).name, *options, file="two.toml")
    assert "Training starts at step 2" in resumed.output
    assert resumed.losses() == compiled.losses()


def test_a_stage_that_fails_does_so_before_the_first_step(folder: Path) -> None:
    module = "--experimental.custom_import=tests.support.fail_at_length"
    rehearsed = "--training.rehearse_stages=True"
    failed = run(folder, "failed", module, rehearsed, ok=False)
    assert "RuntimeError: 128 tokens are too many" in failed.output
    note = "in the rehearsal of stage 3 (lighthouse attention, sequences of 128 tokens); nothing"
    assert note in failed.output
    assert not (failed.folder / "metrics.jsonl").exists()


def test_the_report_of_a_run_with_stages(whole: Run, capsys: pytest.CaptureFixture[str]) -> None:
    report([str(whole.folder)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:5]]
    assert [row[:5] for row in rows] == [
        ["1", "dense", "64", "1-2", "1,024"],
        ["2", "lighthouse", "256", "3-5", "768"],
        ["3", "lighthouse", "128", "6-7", "512"],
        ["4", "dense", "256", "8-9", "512"],
    ]


def test_the_model_of_a_step_is_in_its_stage(whole: Run) -> None:
    for step, length, layers in ((2, 64, 0), (4, 256, 3), (7, 128, 3), (9, 256, 0)):
        trained = load_run(whole.folder, step, torch.device("cpu"))
        assert trained.job_config.validation.seq_len == length
        assert len(trained.selecting) == layers
        topk = {config.topk for config in trained.selecting}
        assert topk == ({16} if step == 4 else {8} if layers else set())


LAYOUTS = {
    # Two ranks, which take every other document, together see the batches of one process.
    "fsdp": "--parallelism.data_parallel_shard_degree=2",
    "tp": "--parallelism.tensor_parallel_degree=2",
    "cp": "--parallelism.context_parallel_degree=2",
}


def two_stages(folder: Path, whole: Run, name: str, first: int, then: int, *args: str) -> Run:
    """Two stages with so many rows at a time, from the weights that a run began with."""
    return run(
        *(folder, name, "--checkpoint.enable", "--checkpoint.load_only"),
        f"--checkpoint.initial_load_path={whole.checkpoint(1)}",
        *(f"--stages.1.local_batch_size={first}", f"--stages.2.local_batch_size={then}", *args),
        file="two.toml",
        processes=1 if name == "one" else 2,
    )


@pytest.fixture(scope="module")
def one_process(folder: Path, whole: Run) -> Run:
    return two_stages(folder, whole, "one", 8, 2)


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_agree_with_one(folder: Path, whole: Run, one_process: Run, layout: str) -> None:
    if layout == "cp" and torch.cuda.is_available():
        pytest.skip("float32 has no ring on GPUs")
    rehearsed = "--training.rehearse_stages=True"
    two = two_stages(folder, whole, layout, 2, 2, LAYOUTS[layout], rehearsed)
    assert stages(two) == stages(one_process)
    # As for the layouts of a run without stages: test_layouts.py says why.
    for got, expected, tolerance in zip(
        zip(*two.losses().values(), strict=True),
        zip(*one_process.losses().values(), strict=True),
        (5e-5, 5e-4),
        strict=True,
    ):
        assert got == pytest.approx(expected, rel=tolerance)
