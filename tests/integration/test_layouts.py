"""Lighthouse layers in two processes give the losses of one, through the switch to dense."""

import json
import random
from pathlib import Path

import pytest

from tests.integration.runs import Run, train

SEQ_LEN = 256
STEPS = 4
LAYOUTS = {
    "fsdp": ["--parallelism.data_parallel_shard_degree=2", "--training.local_batch_size=1"],
    "tp": ["--parallelism.tensor_parallel_degree=2"],
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One seed checkpoint and one text for all layouts.

    A document fills a sequence exactly, so two data-parallel ranks, which take every other one,
    together see the batches of one process.
    """
    folder = tmp_path_factory.mktemp("sources")
    words = Path(__file__).read_text().split()
    draw = random.Random(0)
    texts = (" ".join(draw.choices(words, k=SEQ_LEN))[: SEQ_LEN - 2] for _ in range(32))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train(folder / "seed", "--checkpoint.enable", "--checkpoint.create_seed_checkpoint")
    return [
        *f"--training.dataset local --training.dataset_path {folder / 'text.jsonl'}".split(),
        *f"--training.seq_len {SEQ_LEN} --training.steps {STEPS}".split(),
        *"--lighthouse.enable --lighthouse.dense_layers 0 --lighthouse.dense_from_step 4".split(),
        *"--lighthouse.selection_log_freq 2".split(),
        *"--checkpoint.enable --checkpoint.interval 100 --checkpoint.load_only".split(),
        *f"--checkpoint.initial_load_path {folder / 'seed/checkpoint/step-0'}".split(),
    ]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Run:
    return train(tmp_path_factory.mktemp("one"), *options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_agree_with_one(
    tmp_path: Path, options: list[str], one_process: Run, layout: str
) -> None:
    run = train(tmp_path, *options, *LAYOUTS[layout], processes=2)
    assert list(run.losses()) == list(range(1, STEPS + 1))
    for step, (loss, grad_norm) in one_process.losses().items():
        assert run.losses()[step][0] == pytest.approx(loss, rel=1e-5)
        assert run.losses()[step][1] == pytest.approx(grad_norm, rel=1e-4)
    # 3 layers; step 1 has nothing to compare its selection with.
    assert len(statistics(run)) == 3 * (9 + 10)
    assert statistics(run) == pytest.approx(statistics(one_process), rel=1e-4)


def statistics(run: Run) -> dict[tuple[int, str], float]:
    """What was observed of the selection, by step and name."""
    return {
        (line["step"], name): value
        for line in run.lines()
        for name, value in line.items()
        if name.startswith("lighthouse/layer_")
    }
