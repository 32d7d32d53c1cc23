"""Context parallelism gives what one device gives with the same number of chunks."""

import random
import string
from pathlib import Path

import pytest
import torch

from tests.support.processes import run_module
from tests.support.text import write_jsonl
from tests.support.tiers import tiers
from tests.support.trainer import train

GPUS = torch.cuda.device_count()
DEGREES = [degree for degree in (2, 4) if not GPUS or degree <= GPUS]


@pytest.mark.parametrize("ranks", tiers(DEGREES, *DEGREES[:1]))
def test_layers_equal_those_of_one_device(ranks: int) -> None:
    """All scorers, windows of any length, documents, grouped-query heads, balanced or not."""
    code, output = run_module("tests.support.ring", "cuda" if GPUS else "cpu", ranks=ranks)
    assert code == 0, output
    for part, cases in (("selection", 12), ("windows", 8), ("documents", 12)):
        assert f"{part}: {cases} cases agree on {ranks} ranks" in output


DOCUMENTS = [
    *("--training.document_mask", "--training.max_documents=32"),
    *("--training.document_positions=restart", "--training.document_end_label=ignore"),
    *("--lighthouse.window_layers=2", "--lighthouse.window=100"),
]


@pytest.mark.parametrize("documents", tiers([[], DOCUMENTS], DOCUMENTS), ids=["", "documents"])
def test_a_run_goes_on_at_any_degree(tmp_path: Path, documents: list[str]) -> None:
    """Two steps each on different numbers of ranks, through the switch, are six steps on one.

    On GPUs the ring is in bfloat16, and may be off by a few times what one rank in bfloat16 is off
    from float32.
    """
    options = [
        *"--training.seq_len 512 --checkpoint.enable --checkpoint.interval 2".split(),
        *"--checkpoint.no-last_save_model_only --lr_scheduler.total_steps 6".split(),
        *"--lighthouse.enable --lighthouse.topk 32 --lighthouse.stratum 4".split(),
        *"--lighthouse.num_chunks 8 --lighthouse.dense_layers 0".split(),
        *"--lighthouse.dense_from_step 6 --lighthouse.selection_log_freq 2".split(),
        *"--validation.enable --validation.dataset python --validation.seq_len 512".split(),
        *"--validation.steps 1 --validation.freq 2 --lighthouse.validate_dense".split(),
        *("--parallelism.fsdp_on_one_rank", *documents),
    ]
    half = "--training.mixed_precision_param=bfloat16"
    precision = [half] if GPUS else []
    if documents:
        # Of a few tokens, and of more than a rank of four has. Letters at random: what repeats has
        # equal norms but for rounding, and is selected otherwise on each number of ranks.
        draw = random.Random(0)
        texts = ["".join(draw.choices(string.printable, k=37 * i % 450)) for i in range(1, 60)]
        write_jsonl(tmp_path / "text.jsonl", texts)
        options += ["--training.dataset=local", f"--training.dataset_path={tmp_path}/text.jsonl"]
    whole = train(tmp_path / "whole", *options, *precision, "--training.steps=6")
    exact = train(tmp_path / "exact", *options, "--training.steps=6") if GPUS else None
    for degree, steps in zip((1, *DEGREES, 1), (2, 4, 6), strict=False):
        layout = [f"--parallelism.context_parallel_degree={degree}", f"--training.steps={steps}"]
        parts = train(tmp_path / "parts", *options, *precision, *layout, processes=degree)

    for key, steps, tolerance in (
        ("loss", range(1, 7), 1e-5),
        ("grad_norm", range(1, 7), 1e-4),
        ("validation_loss", (1, 2, 4, 6), 1e-5),
        ("validation_dense_loss", (1, 2, 4), 1e-5),
        ("lighthouse/layer_01/full_resolution_share", (1, 2, 4), 1e-5),
    ):
        expected = whole.values(key)
        assert list(expected) == list(parts.values(key)) == list(steps), key
        if exact:
            off = (abs(expected[step] / exact.values(key)[step] - 1) for step in steps)
            tolerance = max(tolerance, 4 * max(off))
        assert parts.values(key) == pytest.approx(expected, rel=tolerance), key
    seen = [line["tokens_seen"] for line in parts.lines() if "loss" in line]
    assert seen == [512 * 2 * step for step in range(1, 7)]
    if documents:
        left, pairs = (whole.values(f"data/pairs_in_{x}")[6] for x in ("documents", "sequences"))
        assert 0 < left < 0.8 * pairs
