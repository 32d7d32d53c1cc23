"""What runs in several layouts share: a text, weights to begin with, and how they are compared."""

import json
import random
from pathlib import Path

from tests.support import ROOT
from tests.support.trainer import Run, train

SEQ_LEN = 512
STEPS = 4
FSDP = "--parallelism.data_parallel_shard_degree=2"
HSDP = "--parallelism.data_parallel_replicate_degree=2"
TP = "--parallelism.tensor_parallel_degree=2"
CP = "--parallelism.context_parallel_degree=2"
ON_ONE_RANK = "--parallelism.fsdp_on_one_rank"


def layout_options(folder: Path, *model: str) -> list[str]:
    """One seed checkpoint of the model and one text for all layouts.

    A document fills a sequence exactly, so two data-parallel ranks, which take every other one,
    together see the batches of one process.
    """
    words = (ROOT / "LICENSE").read_text().split()
    draw = random.Random(0)
    texts = (" ".join(draw.choices(words, k=SEQ_LEN))[: SEQ_LEN - 2] for _ in range(32))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train(folder / "seed", *model, "--checkpoint.enable", "--checkpoint.create_seed_checkpoint")
    return [
        *model,
        *f"--training.dataset local --training.dataset_path {folder / 'text.jsonl'}".split(),
        *f"--training.seq_len {SEQ_LEN} --training.steps {STEPS}".split(),
        "--training.global_batch_size=4",
        *"--lighthouse.enable --lighthouse.dense_from_step 4".split(),
        *"--lighthouse.selection_log_freq 2".split(),
        # A window longer than what a rank owns in a piece.
        *"--lighthouse.window 200 --lighthouse.window_layers 0".split(),
        # As many chunks as two context-parallel ranks own.
        *"--lighthouse.num_chunks 4 --lighthouse.topk 32".split(),
        *"--checkpoint.enable --checkpoint.interval 100 --checkpoint.load_only".split(),
        *f"--checkpoint.initial_load_path {folder / 'seed/checkpoint/step-0'}".split(),
    ]


def columns(run: Run) -> tuple[list[float], list[float]]:
    """Loss and gradient norm of all steps."""
    assert list(run.losses()) == list(range(1, STEPS + 1))
    losses, grad_norms = zip(*run.losses().values(), strict=True)
    return list(losses), list(grad_norms)
