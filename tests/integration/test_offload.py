"""Inputs of blocks in host memory change no bit of a run."""

from pathlib import Path

import pytest

from tests.support.trainer import train

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


@pytest.mark.parametrize("layout", ["autocast", "fsdp, compile"])
def test_a_run_has_the_same_losses(tmp_path: Path, layout: str) -> None:
    file = tmp_path / "stages.toml"
    file.write_text(STAGES)
    args = f"--job.config_file {file} --lighthouse.enable --training.rehearse_stages True".split()
    args += "--activation_checkpoint.mode=full --training.mixed_precision_param=bfloat16".split()
    args += "--validation.enable --validation.freq=2 --validation.steps=1".split()
    args += "--validation.seq_len=256 --validation.dataset=python".split()
    if layout == "fsdp, compile":
        args += "--compile.enable --compile.backend=aot_eager_decomp_partition".split()
    processes = 1 if layout == "autocast" else 2
    plain, offloading = (
        train(tmp_path / folder, *args, *more, processes=processes)
        for folder, more in (("plain", []), ("offload", ["--activation_checkpoint.offload"]))
    )
    assert list(plain.losses()) == [1, 2, 3, 4, 5]
    assert offloading.losses() == plain.losses()


def test_more_than_the_machine_has_is_refused(tmp_path: Path) -> None:
    args = "--activation_checkpoint.mode=full --activation_checkpoint.offload"
    sizes = "--training.seq_len=1048576 --training.local_batch_size=1048576"
    run = train(tmp_path, *f"{args} {sizes}".split(), ok=False)
    assert run.refusal().startswith(
        "activation_checkpoint.offload = true: the inputs of blocks take "
    )
