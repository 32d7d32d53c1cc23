"""Degrees and batch against a number of GPUs, before there is a process group."""

import pytest

from lighthouse.cost import Layout
from lighthouse.titan.layout import accumulation_steps, layout_of
from lighthouse.titan.plan import parse

TOY = "--model.flavor tiny_byte --model.tokenizer byte --training.seq_len 256".split()


def job(*args: str):
    return parse([*TOY, *args])


def test_the_shards_are_what_the_other_degrees_leave():
    config = job(
        *"--parallelism.data_parallel_replicate_degree 2".split(),
        *"--parallelism.context_parallel_degree 4".split(),
        *"--training.local_batch_size 2 --training.global_batch_size 48".split(),
    )
    layout = layout_of(config, 24)
    assert layout == Layout(dp_replicate=2, dp_shard=3, cp=4)
    assert (layout.gpus, layout.batch, layout.fsdp) == (24, 6, 12)
    assert accumulation_steps(config, layout) == 4


def test_without_a_global_batch_there_is_one_micro_batch():
    config = job("--training.local_batch_size", "3")
    assert accumulation_steps(config, layout_of(config, 5)) == 1


@pytest.mark.parametrize(
    ("args", "gpus", "message"),
    [
        (
            "--parallelism.context_parallel_degree 4",
            6,
            r"6 processes: must be a multiple of .*context_parallel_degree.* = 4; nearest is 4",
        ),
        (
            "--parallelism.data_parallel_shard_degree 4 --parallelism.tensor_parallel_degree 2",
            4,
            r"4 processes: must be data_parallel_shard_degree \* .* = 4 \* 2 = 8",
        ),
        (
            "--parallelism.tensor_parallel_degree 0",
            4,
            r"parallelism\.tensor_parallel_degree = 0: must be at least 1",
        ),
        (
            "--parallelism.data_parallel_shard_degree 0",
            4,
            r"parallelism\.data_parallel_shard_degree = 0: must be at least 1, or -1",
        ),
        (
            "--training.local_batch_size 2 --training.global_batch_size 30",
            8,
            r"training\.global_batch_size = 30: .* = 2 \* 8 = 16; nearest is 32",
        ),
        (
            "--training.local_batch_size 2 --training.global_batch_size 0",
            1,
            r"training\.global_batch_size = 0: .*nearest is 2",
        ),
        (
            "--training.local_batch_size 0",
            1,
            r"training\.local_batch_size = 0: must be at least 1",
        ),
    ],
)
def test_what_does_not_divide_is_refused(args, gpus, message):
    with pytest.raises(ValueError, match=message):
        layout_of(job(*args.split()), gpus)


def test_a_started_job_is_checked_against_its_processes(monkeypatch):
    from torchtitan.config import ConfigManager

    args = [*TOY, "--parallelism.tensor_parallel_degree", "2"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    ConfigManager().parse_args(args)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes: must be a multiple of"):
        ConfigManager().parse_args(args)
