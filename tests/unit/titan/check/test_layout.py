"""Layouts that cannot work are refused while the configuration is parsed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import llama3_args

from lighthouse.titan.check.job import Machine
from tests.support.tiers import tiers

LIGHTHOUSE = "--lighthouse.enable --lighthouse.topk 16 --lighthouse.stratum 8"


def parse(flags: str, processes: int | None = None) -> Any:
    base = "--model.flavor tiny_byte --model.tokenizer byte --training.seq_len 256"
    manager = ConfigManager(machine=Machine("cpu", processes, here=True))
    config = manager.parse_args(f"{base} --training.dataset python {flags}".split())
    assert not dist.is_initialized()
    return config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parallelism.tensor_parallel_degree", "0", "must be at least 1"),
        ("parallelism.tensor_parallel_degree", "8", "must divide the 4 key/value heads"),
        ("parallelism.data_parallel_shard_degree", "0", "-1 to take all"),
        ("parallelism.expert_parallel_degree", "2", "llama3 has no experts; use 1"),
        ("parallelism.expert_tensor_parallel_degree", "2", "llama3 has no experts; use 1"),
        ("parallelism.enable_async_tensor_parallel", "", "needs tensor_parallel_degree > 1"),
        (
            "parallelism.enable_async_tensor_parallel",
            "--parallelism.tensor_parallel_degree 2",
            "compile.enable = true",
        ),
        (
            "parallelism.pipeline_parallel_degree",
            f"2 {LIGHTHOUSE} --lighthouse.dense_from_step 2",
            "use 1, with data or tensor parallelism",
        ),
        ("training.seq_len", "252 --parallelism.tensor_parallel_degree 4", "a multiple of 8"),
        ("training.seq_len", "252 --parallelism.context_parallel_degree 4", "a multiple of 8"),
        ("validation.seq_len", "512 --validation.enable", "use at most that"),
        (
            "validation.seq_len",
            "252 --validation.enable --parallelism.tensor_parallel_degree 4",
            "a multiple of 8",
        ),
        ("training.local_batch_size", "0", "must be at least 1"),
        ("training.task_rate", "1.0", "must be at least 0 and below 1"),
        ("activation_checkpoint.mode", "memory_budget", "compile.enable = true"),
        (
            "activation_checkpoint.mode",
            "memory_budget --compile.enable --compile.components loss",
            "'model' among compile.components",
        ),
        (
            "activation_checkpoint.mode",
            "memory_budget --compile.enable --parallelism.tensor_parallel_degree 2",
            "use 'selective' or 'full'",
        ),
        ("activation_checkpoint.selective_ac_option", "0", "n for every n-th layer"),
        ("activation_checkpoint.selective_ac_option", "ops", "must be 'op'"),
        ("checkpoint.create_seed_checkpoint", "", "needs checkpoint.enable = true"),
        ("model.flavor", "7B", "must be one of"),
    ],
)
def test_refused_by_name(key: str, value: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(f"--{key} {value}")
    assert str(error.value).startswith(f"{key} = ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("processes", "flags", "message"),
    [
        (2, "--parallelism.tensor_parallel_degree 4", "start a multiple of 4"),
        (6, "--parallelism.tensor_parallel_degree 4", "number of processes, 6"),
        (
            1,
            "--parallelism.context_parallel_degree 8",
            "parallelism.context_parallel_degree = 8: the number of processes, 1, is no multiple",
        ),
        (4, "--parallelism.data_parallel_shard_degree 2", "= 2: 2 is not the number of process"),
        (
            2,
            "--parallelism.data_parallel_replicate_degree 2 "
            "--parallelism.data_parallel_shard_degree 2",
            "2 * data_parallel_replicate_degree 2 = 4",
        ),
        (2, "--checkpoint.enable --checkpoint.create_seed_checkpoint", "it by NPROC=1 "),
        (2, "--training.local_batch_size 3 --training.global_batch_size 8", "nearest is 6"),
        (
            4,
            "--training.local_batch_size 3 --training.global_batch_size 10 "
            "--parallelism.tensor_parallel_degree 2",
            "3 * 2; nearest is 12",
        ),
    ],
)
def test_must_fit_the_number_of_processes(
    processes: int, flags: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGPU", "8")
    with pytest.raises(ValueError) as error:
        parse(flags, processes)
    assert message in str(error.value)
    parse("", processes)
    parse(f"{flags} --comm.mode fake_backend", processes)


@pytest.mark.parametrize(
    "flags",
    [
        "--parallelism.tensor_parallel_degree 2 --parallelism.data_parallel_replicate_degree 2",
        "--parallelism.data_parallel_shard_degree 4 --training.global_batch_size 64",
        "--parallelism.pipeline_parallel_degree 4",
        "--training.global_batch_size 24 --training.local_batch_size 3",
        "--activation_checkpoint.mode memory_budget --compile.enable",
        "--activation_checkpoint.mode selective --activation_checkpoint.selective_ac_option 3",
    ],
)
def test_what_works_is_taken(flags: str) -> None:
    parse(flags, processes=4)


@pytest.mark.parametrize("flavor", llama3_args)
def test_lighthouse_takes_the_flavors_under_the_plain_causal_mask(flavor: str) -> None:
    flags = f"{LIGHTHOUSE} --lighthouse.dense_from_step 2 --model.flavor {flavor}"
    if "flex" in flavor or "varlen" in flavor:
        with pytest.raises(ValueError, match=rf"model\.flavor = '{flavor}': .* plain causal mask"):
            parse(flags)
    else:
        parse(flags)


@pytest.mark.parametrize("change", ["attn_mask_type='block_causal'", "attn_type='flex'"])
def test_a_registered_flavor_cannot_bring_a_document_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    (tmp_path / "registers.py").write_text(
        "from dataclasses import replace\n"
        "from torchtitan.models.llama3 import llama3_args\n"
        f"llama3_args['mine'] = replace(llama3_args['tiny_byte'], {change})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(llama3_args, "mine", None)  # so that it is taken out again
    monkeypatch.delitem(sys.modules, "registers", raising=False)
    with pytest.raises(ValueError, match="plain causal mask"):
        parse(f"{LIGHTHOUSE} --experimental.custom_import registers --model.flavor mine")


@pytest.mark.parametrize("told", tiers([None, "", "0", "two"], None, "two"))
@pytest.mark.parametrize("mode", ["fake_backend", "local_tensor"])
def test_processes_that_are_not_there_are_numbered(mode, told, monkeypatch):
    monkeypatch.setenv("NGPU", "2")
    parse(f"--comm.mode {mode}")
    monkeypatch.delenv("NGPU")
    if told is not None:
        monkeypatch.setenv("NGPU", told)
    with pytest.raises(ValueError, match=f"comm.mode = '{mode}': the variable NGPU"):
        parse(f"--comm.mode {mode}")
    parse("--comm.mode default")
