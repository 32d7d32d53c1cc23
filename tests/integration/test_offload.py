"""Inputs of blocks in host memory change no bit of a run."""

from pathlib import Path

import pytest

from tests.support.trainer import Run, train

STAGES = """
[[stages]]
steps = 2
attention = "dense"
seq_len = 128
local_batch_size = 4
[[stages]]
steps = 3
attention = "lighthouse"
"""


COMMON = "--lighthouse.enable --activation_checkpoint.mode full".split()
# Slow on a CPU, which may compute it in software.
COMMON += "--training.mixed_precision_param bfloat16 --model.args.n_layers 2".split()


def in_both_ways(folder: Path, args: list[str]) -> tuple[Run, Run]:
    """With the inputs on the device, and on its host."""
    offload = "--activation_checkpoint.offload"
    plain = train(folder / "plain", *COMMON, *args)
    return plain, train(folder / "offload", *COMMON, *args, offload)


@pytest.mark.thorough
def test_stages_rehearsed_and_validated_have_the_same_losses(tmp_path: Path) -> None:
    file = tmp_path / "stages.toml"
    file.write_text(STAGES)
    args = f"--job.config_file {file} --training.rehearse_stages True".split()
    args += "--validation.enable --validation.freq=2 --validation.steps=1".split()
    args += "--validation.seq_len=256 --validation.dataset=python".split()
    plain, offloading = in_both_ways(tmp_path, args)
    assert list(plain.losses()) == [1, 2, 3, 4, 5]
    assert offloading.losses() == plain.losses()


@pytest.mark.thorough
def test_a_compiled_and_sharded_run_has_the_same_losses(tmp_path: Path) -> None:
    """One rank is enough to shard for; of several test_layouts.py says that they agree."""
    args = "--compile.enable --compile.backend aot_eager_decomp_partition --training.steps 2"
    args += " --parallelism.fsdp_on_one_rank"
    plain, offloading = in_both_ways(tmp_path, args.split())
    assert list(plain.losses()) == [1, 2]
    assert offloading.losses() == plain.losses()


def test_more_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    args = "--activation_checkpoint.mode=full --activation_checkpoint.offload"
    sizes = "--training.seq_len=1048576 --training.local_batch_size=1024"
    run = train(tmp_path, *f"{args} {sizes}".split(), ok=False)
    assert run.refusal().startswith(
        "activation_checkpoint.offload = true: the inputs of blocks take "
    )
