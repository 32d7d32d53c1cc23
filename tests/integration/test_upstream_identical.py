"""Without a [lighthouse] section, training is bitwise that of the unpatched release."""

from pathlib import Path

import titan_tree
from tests.support import ROOT
from tests.support.trainer import train, write_sources

# Upstream cannot train on a CPU. This is the least that lets it: the device, the barrier's
# argument, and a memory monitor that reports nothing.
UPSTREAM_ON_CPU = """
import runpy
import sys

import torch

torch._utils._get_available_device_type = lambda: "cpu"
barrier = torch.distributed.barrier
torch.distributed.barrier = lambda device_ids: barrier()

from torchtitan.components import metrics


class NoMemoryMonitor:
    device_name = "cpu"
    device_capacity_gib = 0.0

    def __init__(self, device):
        pass

    def get_peak_stats(self):
        return metrics.DeviceMemStats(0, 0, 0, 0, 0, 0)

    def reset_peak_stats(self):
        pass


metrics.DeviceMemoryMonitor = NoMemoryMonitor
runpy.run_module("torchtitan.train", run_name="__main__")
print("imported torchtitan from", sys.modules["torchtitan"].__file__)
assert "lighthouse" not in sys.modules
"""


def test_dense_training_is_bitwise_upstream(tmp_path: Path) -> None:
    upstream = tmp_path / "upstream"
    wheel = titan_tree.pinned_wheel(ROOT, titan_tree.read_upstream(ROOT), None)
    titan_tree.write_files(upstream, titan_tree.unpack_wheel(wheel))
    (upstream / "upstream_on_cpu.py").write_text(UPSTREAM_ON_CPU)
    sources = write_sources(tmp_path)
    # A CPU may compute bfloat16 in software: tokens take it long.
    options = "--training.steps=4 --training.seq_len=32".split()
    options.append("--activation_checkpoint.mode=selective")

    how = {"base": sources.debug_model(), "env": sources.environment()}
    theirs = train(tmp_path / "theirs", *options, module="upstream_on_cpu", path=upstream, **how)
    assert f"imported torchtitan from {upstream}" in theirs.output
    ours = train(tmp_path / "ours", *options, **how)
    for tag in (
        "loss_metrics/global_avg_loss",
        "loss_metrics/global_max_loss",
        "grad_norm",
        "lr",
        "n_tokens_seen",
    ):
        assert len(theirs.tensorboard(tag)) == 4
        assert ours.tensorboard(tag) == theirs.tensorboard(tag), tag
