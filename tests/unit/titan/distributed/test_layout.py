"""Degrees and batches of a job on a number of processes."""

from typing import Any

from torchtitan.config import JobConfig

from lighthouse.cost.sizes import Layout
from lighthouse.titan.distributed.layout import accumulation_steps, layout_of


def job(**sections: dict[str, int]) -> Any:
    config = JobConfig()
    for section, values in sections.items():
        for key, value in values.items():
            setattr(getattr(config, section), key, value)
    return config


def test_the_shards_are_what_the_other_degrees_leave():
    config = job(
        parallelism={"data_parallel_replicate_degree": 2, "context_parallel_degree": 4},
        training={"local_batch_size": 2, "global_batch_size": 48},
    )
    layout = layout_of(config, 24)
    assert layout == Layout(dp_replicate=2, dp_shard=3, cp=4)
    assert (layout.gpus, layout.batch, layout.fsdp) == (24, 6, 12)
    assert accumulation_steps(config, layout) == 4


def test_without_a_global_batch_there_is_one_micro_batch():
    config = job(training={"local_batch_size": 3})
    assert accumulation_steps(config, layout_of(config, 5)) == 1
