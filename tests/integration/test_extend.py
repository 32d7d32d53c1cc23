"""The recipe of docs/extend.md, on a small random Llama: train, evaluate, export."""

import json
from pathlib import Path

import pytest
import torch

from lighthouse.evaluate.__main__ import main as evaluate
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.export import main as export
from tests.support import TRAIN_CONFIGS
from tests.support.llamas import save_llama
from tests.support.trainer import train

SHRUNKEN = """
    --training.dataset local --training.seq_len 512 --training.global_batch_size 2
    --training.loss_chunk_tokens 100 --training.mixed_precision_param float32
    --stages.1.steps 1 --stages.2.steps 2 --stages.2.window 64 --stages.3.steps 1
    --stages.1.seq_len 256 --stages.1.global_batch_size 4 --lr_scheduler.warmup_steps 1
    --parallelism.context_parallel_degree 1 --compile.no-enable --optimizer.lr 1e-3
"""


def test_from_8k_to_128k_in_small(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_llama(tmp_path / "hf", {"rope_theta": 5e5}, torch.bfloat16)
    ByteTokenizer().save_pretrained(tmp_path / "hf")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("A document that is long enough. " * 400)
    run = train(
        tmp_path / "run",
        *SHRUNKEN.split(),
        base={
            "job.config_file": TRAIN_CONFIGS / "extend_hf.toml",
            "model.hf_assets_path": tmp_path / "hf",
            "training.dataset_path": tmp_path / "text",
        },
    )
    assert "model.args.rope_theta = 8000000.0, on purpose: config.json has 500000.0" in run.output
    lines = [line for line in run.lines() if "loss" in line]
    assert [(line["attention"], line["seq_len"]) for line in lines] == [
        *(("dense", 256), ("window", 512), ("window", 512), ("dense", 512)),
    ]
    assert lines[-1]["loss"] < lines[0]["loss"]

    measures = "--measures needle --lengths 400 --trials 1 --device cpu".split()
    evaluate([str(run.folder), *measures])
    found = json.loads((run.folder / "evaluate-step-4.json").read_text())
    assert found["longest"] == 512

    export([str(run.folder), str(tmp_path / "out")])
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.max_position_embeddings == 512 and config.dtype == torch.bfloat16
    assert config.rope_parameters["rope_theta"] == 8e6
    evaluate([str(tmp_path / "out"), *measures])
