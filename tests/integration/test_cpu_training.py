"""Training on CPUs: two processes agree with one, and shards start out distinct.

Of context parallelism test_context_parallel.py has the same.
"""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.support.tiers import tiers
from tests.support.trainer import Run, Sources, train, write_sources

# All arithmetic in float32, so that layouts differ by the order of sums alone.
FLOAT32 = "--training.mixed_precision_param=float32"
CHECKPOINT = "--checkpoint.enable"
SEED_CHECKPOINT = "--checkpoint.create_seed_checkpoint"
LAYOUTS = {
    "fsdp": ["--parallelism.data_parallel_shard_degree=2", "--training.local_batch_size=1"],
    "tp": ["--parallelism.tensor_parallel_degree=2"],
}
STEPS = 4
LENGTH = f"--training.steps={STEPS}"
SEQUENCES = 16
VALIDATE = "--validation.enable --validation.dataset=c4_test --validation.seq_len=128".split()
VALIDATE += "--validation.local_batch_size=2 --validation.steps=-1 --validation.freq=4".split()


def debug_run(folder: Path, sources: Sources, *options: str, processes: int = 1) -> Run:
    """Train upstream's debug model on CPUs."""
    return train(
        folder,
        *options,
        base=sources.debug_model(),
        env=sources.environment(),
        processes=processes,
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> list[str]:
    """Validate on a few sequences, to their end."""
    folder = tmp_path_factory.mktemp("validation")
    lines = (sources.data / "data.json").read_text().splitlines(keepends=True)
    (folder / "data.json").write_text("".join(lines[:SEQUENCES]))
    return [*VALIDATE, f"--validation.dataset_path={folder}"]


@pytest.fixture(scope="module")
def seed_checkpoint(tmp_path_factory: pytest.TempPathFactory, sources: Sources) -> Path:
    """A checkpoint of step 0: layouts draw different random numbers, so they all load this one."""
    folder = tmp_path_factory.mktemp("seed")
    return debug_run(folder, sources, CHECKPOINT, SEED_CHECKPOINT).checkpoint(0)


@pytest.fixture(scope="module")
def one_process(
    tmp_path_factory: pytest.TempPathFactory,
    sources: Sources,
    seed_checkpoint: Path,
    validation: list[str],
) -> Run:
    """The run that the others are compared with; it also writes a profile."""
    folder = tmp_path_factory.mktemp("one")
    load = f"--checkpoint.initial_load_path={seed_checkpoint}"
    profile = ["--profiling.enable_profiling", "--profiling.profile_freq=4"]
    return debug_run(folder, sources, FLOAT32, CHECKPOINT, load, LENGTH, *profile, *validation)


def test_profiler_writes_a_trace(one_process: Run) -> None:
    assert list((one_process.folder / "profile_traces").rglob("rank0_trace.json"))


@pytest.mark.parametrize("layout", tiers(LAYOUTS, "fsdp"))
def test_two_processes_agree_with_one(
    tmp_path: Path,
    sources: Sources,
    seed_checkpoint: Path,
    one_process: Run,
    validation: list[str],
    layout: str,
) -> None:
    load = f"--checkpoint.initial_load_path={seed_checkpoint}"
    options = [FLOAT32, CHECKPOINT, load, LENGTH, *validation]
    if layout == "fsdp":
        options.append(f"--training.dataset_path={sources.split_data}")
        # Of the 16 sequences the last step has four, for one rank and a third of the other.
        options.append("--validation.local_batch_size=3")
    run = debug_run(tmp_path, sources, *options, *LAYOUTS[layout], processes=2)
    for tag, steps, tolerance in (
        ("loss_metrics/global_avg_loss", STEPS, 1e-5),
        ("grad_norm", STEPS, 1e-4),
        ("validation_metrics/loss", 2, 1e-5),
    ):
        expected = one_process.tensorboard(tag)
        assert len(expected) == steps
        assert run.tensorboard(tag) == pytest.approx(expected, rel=tolerance), tag


@pytest.mark.parametrize("layout", tiers(LAYOUTS, "tp"))
def test_shards_draw_distinct_weights(tmp_path: Path, layout: str) -> None:
    options = [CHECKPOINT, "--checkpoint.interval=1", "--training.steps=1", "--optimizer.lr=1e-9"]
    run = train(tmp_path, *LAYOUTS[layout], *options, processes=2)
    dcp_to_torch_save(run.checkpoint(1), tmp_path / "model.pt")
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    first, second = weights["layers.0.attention.wq.weight"].chunk(2)
    assert first.std() == pytest.approx(0.02, rel=0.05)
    assert torch.isclose(first, second).float().mean() < 0.01
