"""Whether a node's memory holds what its ranks offload."""

import os
from pathlib import Path

import pytest
from torchtitan.config import ConfigManager

from lighthouse.titan.check.job import Machine
from lighthouse.titan.plan import host_memory
from lighthouse.titan.plan.host_memory import check_host_memory, memory_of_node

# Of 4 blocks all but the last, in fp32.
ARGS = "--model.flavor tiny_byte --model.tokenizer byte --training.dataset python".split()
ARGS += "--training.seq_len 256 --training.local_batch_size 2".split()
ARGS += "--activation_checkpoint.mode full --training.mixed_precision_param float32".split()


@pytest.mark.parametrize("spare", [0, -1])
def test_ranks_of_a_node_share_its_memory(monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    offload = [*ARGS, "--activation_checkpoint.offload"]
    plain, offloading = (
        ConfigManager(machine=Machine("cpu", 4, here=False)).parse_args(args)
        for args in (ARGS, offload)
    )
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    dim, blocks = 128, 4
    needed = 2 * (blocks - 1) * (2 * 256 * 4 * dim)
    monkeypatch.setattr(host_memory, "memory_of_node", lambda: needed + spare)
    check_host_memory(plain)
    if spare == 0:
        check_host_memory(offloading)
    else:
        with pytest.raises(ValueError, match=r"offload = true: .*with 2 of 4 ranks here"):
            check_host_memory(offloading)


def test_a_cgroup_may_have_less_than_the_machine(tmp_path: Path) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    process = tmp_path / "cgroup"
    assert memory_of_node(tmp_path / "fs", process) == machine
    job = tmp_path / "fs" / "slurm" / "job_1"
    (job / "step_0").mkdir(parents=True)
    process.write_text("0::/slurm/job_1/step_0\n")
    assert memory_of_node(tmp_path / "fs", process) == machine
    (job / "memory.max").write_text("4096\n")
    (job / "step_0" / "memory.max").write_text("max\n")
    assert memory_of_node(tmp_path / "fs", process) == 4096
    (tmp_path / "memory.max").write_text("1\n")  # not of the tree
    assert memory_of_node(tmp_path / "fs", process) == 4096
