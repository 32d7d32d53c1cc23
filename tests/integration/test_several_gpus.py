"""From a TOML to an exported model on two or more GPUs, and two runs of a sweep side by side."""

import csv
import os
import sys
from pathlib import Path

import pytest
import tomli_w
import torch

from lighthouse.runs.metrics import read_metrics
from lighthouse.sweep.run_folder import read_runs
from tests.support import ROOT, TRAIN_CONFIGS
from tests.support.processes import run, run_module

GPUS = torch.cuda.device_count()

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")]

TINY = TRAIN_CONFIGS / "tiny.toml"
SEQ_LEN = 512


def write_toml(file: Path, values: dict[str, object]) -> Path:
    file.write_text(tomli_w.dumps(values))
    return file


def train_sh(folder: Path, *arguments: str | Path) -> str:
    """What ``scripts/train.sh`` prints, with this Python where there is no ``.venv``."""
    folder.mkdir(exist_ok=True)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    own = {"PATH": f"{folder}:{os.environ['PATH']}", "NPROC": str(GPUS or 2)}
    code, printed = run(["bash", ROOT / "scripts" / "train.sh", *arguments], own)
    assert code == 0, printed
    return printed


def test_stages_on_a_ring_are_exported(tmp_path: Path) -> None:
    """Sharded and context parallel, lengthened by stages, and a plain Llama at the end."""
    job = {
        "job": {"extends": str(TINY), "dump_folder": str(tmp_path / "run")},
        "training": {
            "seq_len": SEQ_LEN,
            "local_batch_size": 2,
            "mixed_precision_param": "bfloat16",
        },
        "parallelism": {"context_parallel_degree": 2},
        "lr_scheduler": {"warmup_steps": 2, "decay_ratio": 0.0},
    }
    stages = [
        {"steps": 4, "attention": "dense", "seq_len": SEQ_LEN // 2},
        {"steps": 4, "attention": "lighthouse"},
        {"steps": 4, "attention": "window", "window": 100},
        {"steps": 2, "attention": "dense"},
    ]
    half = write_toml(tmp_path / "half.toml", job | {"stages": stages[:2]})
    file = write_toml(tmp_path / "job.toml", job | {"stages": stages})
    train_sh(tmp_path / "bin", "--job.config_file", half)
    printed = train_sh(tmp_path / "bin", "--job.config_file", file)
    assert "Training starts at step 9" in printed
    losses = {
        line["step"]: line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line
    }
    assert list(losses) == list(range(1, 15))

    code, output = run_module(
        "lighthouse.titan.export", str(tmp_path / "run"), str(tmp_path / "hf")
    )
    assert code == 0, output
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    tokens = torch.tensor([list(Path(__file__).read_bytes()[:SEQ_LEN])])
    with torch.no_grad():
        loss = model(tokens, labels=tokens).loss.item()
    assert loss < losses[1] - 1


def test_a_sweep_trains_side_by_side(tmp_path: Path) -> None:
    sweep = write_toml(
        tmp_path / "sweep.toml",
        {
            "base": str(TINY),
            "output": str(tmp_path / "out"),
            "overrides": {
                "training": {"seq_len": SEQ_LEN, "local_batch_size": 2, "steps": 4},
                "lighthouse": {"dense_from_step": 3},
                "lr_scheduler": {"warmup_steps": 2},
            },
            "axes": {"lighthouse": {"topk": [16, 32]}},
            "resources": {"gpus_per_node": 1 if GPUS else 0},
        },
    )
    code, output = run_module("lighthouse.sweep", "submit", "--local", "-j", "2", str(sweep))
    assert code == 0, output
    first, second = (run.attempts() for run in read_runs(tmp_path / "out"))
    (first,), (second,) = first, second
    assert max(first.start, second.start) < min(first.end, second.end)
    code, output = run_module("lighthouse.sweep", "collect", str(sweep))
    assert code == 0, output
    with (tmp_path / "out" / "results" / "sweep" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["lighthouse.topk"] for row in rows] == ["16", "32"]
