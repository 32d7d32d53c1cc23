"""Every bad value in a job's TOML is refused by name while the configuration is parsed.

Parsing builds neither a model nor a process group, so passing here means failing early there.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
import torch.distributed as dist

from lighthouse.refusal import Refusal
from lighthouse.titan.check.job import Machine
from lighthouse.titan.config.section import Lighthouse, num_chunks
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.toml_types import spelled

GOOD = {
    "model": {"name": "llama3", "flavor": "tiny_byte", "tokenizer": "byte"},
    "training": {"dataset": "python", "seq_len": 256, "steps": 10},
    "lighthouse": {"enable": True, "topk": 16, "stratum": 8, "dense_from_step": 5},
    "checkpoint": {"enable": True, "last_save_model_only": False},
}


CPU = Machine("cpu", None, here=True)
GPU = Machine("cuda", None, here=True)
GPUS_ELSEWHERE = Machine("cuda", None, here=False)


@pytest.fixture
def parse(tmp_path: Path):
    from torchtitan.config import ConfigManager

    def run(changes: dict[str, object], *args: str, machine: Machine = CPU):
        values = {section: dict(entries) for section, entries in GOOD.items()}
        for key, value in changes.items():
            section, name = key.split(".")
            values.setdefault(section, {})[name] = value
        file = tmp_path / "job.toml"
        file.write_text(tomli_w.dumps(values))
        arguments = ["--job.config_file", str(file), *args]
        return ConfigManager(machine=machine).parse_args(arguments)

    yield run
    assert not dist.is_initialized()


def test_good_values_are_taken(parse):
    config = parse({"lighthouse.dense_layers": [0, 3], "optimizer.lr": 1})
    assert config.lighthouse.topk == 16
    assert config.lighthouse.dense_layers == [0, 3]
    assert config.lighthouse.dense_from_step == 5


def test_without_the_section_nothing_is_asked(parse):
    config = parse({"lighthouse.enable": False, "lighthouse.topk": 17})
    assert not config.lighthouse.enable


def test_a_run_that_stays_in_the_lighthouse_stage_needs_the_whole_schedule(parse, monkeypatch):
    section = {k: v for k, v in GOOD["lighthouse"].items() if k != "dense_from_step"}
    monkeypatch.setitem(GOOD, "lighthouse", section)
    with pytest.raises(Refusal, match=r"lr_scheduler\.total_steps is not set: .* both stages"):
        parse({})
    assert parse({"lr_scheduler.total_steps": 20}).lighthouse.dense_from_step is None


def test_clipping_may_be_turned_off(parse):
    assert parse({"training.max_norm": float("inf")}).training.max_norm == float("inf")


@pytest.mark.parametrize(("balancer", "chunks"), [("headtail", 4), ("none", 2)])
def test_context_parallel_ranks_own_chunks(parse, balancer, chunks):
    config = parse(
        {
            "parallelism.context_parallel_degree": 2,
            "parallelism.context_parallel_load_balancer": balancer,
            "lighthouse.topk": 32,
            "training.seq_len": 512,
        }
    )
    assert num_chunks(config.lighthouse, config.parallelism) == chunks


def test_every_key_is_a_flag(parse):
    config = parse(
        {},
        *"--lighthouse.num_levels 2 --lighthouse.pooling_factor 2 --lighthouse.topk 32".split(),
        *"--lighthouse.scorer dilated --lighthouse.dilation 2 --lighthouse.stratum 16".split(),
        *"--lighthouse.no-cover_prefix --lighthouse.dense_layers 0 3".split(),
        *"--lighthouse.dense_from_step 7 --lighthouse.impl reference".split(),
        *"--validation.enable --validation.seq_len 256 --lighthouse.validate_dense".split(),
        *"--lighthouse.selection_log_freq 30".split(),
        *"--lighthouse.num_chunks 2".split(),
        *("--lighthouse.layer_overrides", "1:topk=64,2:scorer=gla num_levels=3"),
    )
    section = config.lighthouse
    expected = Lighthouse(
        enable=True,
        num_levels=2,
        pooling_factor=2,
        topk=32,
        scorer="dilated",
        dilation=2,
        stratum=16,
        cover_prefix=False,
        dense_layers=[0, 3],
        dense_from_step=7,
        num_chunks=2,
        impl="reference",
        validate_dense=True,
        selection_log_freq=30,
        layer_overrides=["1:topk=64", "2:scorer=gla num_levels=3"],
    )
    assert vars(section) == vars(expected)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("comm.init_timeout_seconds", -1, "at least 1"),
        ("comm.init_timeout_seconds", 10**20, "below"),
        ("comm.trace_buf_size", 10**20, "below"),
        ("comm.train_timeout_seconds", 0, "at least 1"),
        ("profiling.profiler_active", 0, "at least 1"),
        ("profiling.profiler_warmup", -1, "zero or more"),
        ("training.dataloader.num_workers", -1, "at least 0"),
        ("validation.dataloader.num_workers", -1, "at least 0"),
    ],
)
def test_numbers_that_torch_would_refuse_late(parse, key, value, wanted):
    with pytest.raises(Refusal, match=rf"{key} = {value}: must be .*{wanted}"):
        parse({}, f"--{key}", str(value), "--profiling.enable_profiling")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--optimizer.lr 0", "optimizer.lr = 0.0: must be a finite number above 0"),
        ("--training.global_batch_size -5", "training.global_batch_size = -5: must be at least 1"),
        ("--debug.seed -1", "debug.seed = -1: must be at least 0 and below 2 ** 63"),
        ("--training.dataset_seed -1", "training.dataset_seed = -1: must be at least 0 and below"),
        (
            "--job.dump_folder a\udcff",
            r"job.dump_folder = 'a\udcff': is not UTF-8, which the run's",
        ),
        ("--debug.seed 18446744073709551616", "debug.seed = 18446744073709551616: must be"),
        (
            "--lr_scheduler.warmup_steps 21 --lr_scheduler.total_steps 20",
            "lr_scheduler.warmup_steps = 21: the schedule ends before, at lr_scheduler.total_steps",
        ),
        (
            "--lr_scheduler.warmup_steps 6 --lr_scheduler.decay_ratio 0.5",
            "lr_scheduler.warmup_steps = 6: lr_scheduler.decay_ratio = 0.5 of 10 steps begins the "
            "decay behind step 5, within the warmup; use 5 or fewer, or a smaller ratio",
        ),
        (
            "--lr_scheduler.warmup_steps 16 --lr_scheduler.decay_ratio 0.25 "
            "--lr_scheduler.total_steps 20",
            "lr_scheduler.warmup_steps = 16: lr_scheduler.decay_ratio = 0.25 of 20 steps begins",
        ),
        (
            "--training.steps 210 --lr_scheduler.decay_ratio 0.2",
            "lr_scheduler.warmup_steps = 200 (the default): lr_scheduler.decay_ratio = 0.2 of 210",
        ),
        (
            "--training.dataloader.num_workers 1000000",
            "training.dataloader.num_workers = 1000000: must be at least 0 and at most 1,024",
        ),
        (
            "--training.dataloader.persistent_workers",
            "training.dataloader.persistent_workers = true: there are no workers",
        ),
        (
            "--training.dataloader.prefetch_factor 2",
            "training.dataloader.prefetch_factor = 2: nothing is read ahead without workers",
        ),
        (
            "--validation.dataloader.prefetch_factor 0 --validation.dataloader.num_workers 1",
            "validation.dataloader.prefetch_factor = 0: must be at least 1",
        ),
        (
            "--checkpoint.last_save_in_hf --checkpoint.no-last_save_model_only",
            "checkpoint.last_save_in_hf = true: that format has weights alone",
        ),
        ("--activation_checkpoint.memory_budget nan", "activation_checkpoint.memory_budget = nan"),
        (
            "--activation_checkpoint.determinism_check always",
            "activation_checkpoint.determinism_check = 'always': must be one of 'default', 'none'",
        ),
        ("--compile.components [model,los]", "compile.components = ['model', 'los']: there is no"),
        ("--compile.enable --compile.components []", "compile.components = []: compile.enable"),
        ("--model.converters [float9]", "model.converters = ['float9']: there is no 'float9'"),
        ("--comm.trace_buf_size -1", "comm.trace_buf_size = -1: must be"),
        ("--fault_tolerance.enable", "fault_tolerance.enable = true: is of another trainer"),
        ("--fault_tolerance.group_size -1", "fault_tolerance.group_size = -1: is of another"),
        ("--memory_estimation.enable", "memory_estimation.enable = true: is of a script"),
        ("--experimental.custom_args_module x", "experimental.custom_args_module = 'x': is read"),
        ("--job.custom_config_module", "--job.custom_config_module: needs a value behind it"),
        (
            "--model.tokenizer hf --model.hf_assets_path old/tokenizer.model",
            "model.hf_assets_path = 'old/tokenizer.model': there is no such folder, with one of",
        ),
        ("--job.custom_config_module nowhere", "job.custom_config_module = 'nowhere': No module"),
        ("--job.custom_config_module json", "job.custom_config_module = 'json': has no dataclass"),
        ("--job.dump_folder ", "job.dump_folder = '': must name a folder"),
        ("--job.dump_folder ~/runs", "job.dump_folder = '~/runs': ~ is a name like any other"),
        (
            "--lighthouse.no-enable --parallelism.pipeline_parallel_degree 2 "
            "--parallelism.pipeline_parallel_schedule 1F2B",
            "parallelism.pipeline_parallel_schedule = '1F2B': there is no such schedule",
        ),
        (
            "--lighthouse.no-enable --parallelism.pipeline_parallel_degree 2 "
            "--parallelism.pipeline_parallel_microbatch_size 0",
            "parallelism.pipeline_parallel_microbatch_size = 0: must be at least 1",
        ),
        (
            "--lighthouse.no-enable --parallelism.pipeline_parallel_degree 2 "
            "--parallelism.pipeline_parallel_microbatch_size 3",
            "parallelism.pipeline_parallel_microbatch_size = 3: must divide",
        ),
        (
            "--lighthouse.no-enable --parallelism.pipeline_parallel_degree 2 "
            "--parallelism.pipeline_parallel_last_stage_less_layers -1",
            "parallelism.pipeline_parallel_last_stage_less_layers = -1: must not be negative",
        ),
    ],
)
def test_what_would_train_nothing_or_be_passed_over(parse, arguments, sentence):
    with pytest.raises(Refusal) as error:
        parse({}, *arguments.split(" "))
    assert str(error.value).startswith(sentence)


def test_a_path_of_assets_that_are_not_read_is_no_mistake(parse):
    parse({}, "--model.hf_assets_path", "old/tokenizer.model")


def test_a_warmup_gives_way_in_a_short_try(parse):
    parse({"training.steps": 10, "lr_scheduler.warmup_steps": 2000})
    parse({"training.steps": 10, "lr_scheduler.decay_ratio": 0.2})


@pytest.mark.parametrize(("warmup", "ratio"), [(5, 0.5), (5, 1.0)])
def test_a_warmup_and_a_decay_that_fit(parse, warmup, ratio):
    """A decay over all steps begins behind the warmup."""
    parse({"lr_scheduler.warmup_steps": warmup, "lr_scheduler.decay_ratio": ratio})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lighthouse.enable", "yes"),
        ("lighthouse.enable", 1),
        ("lighthouse.num_levels", "3"),
        ("lighthouse.num_levels", 3.0),
        ("lighthouse.pooling_factor", True),
        ("lighthouse.topk", 16.5),
        ("lighthouse.scorer", "bogus"),
        ("lighthouse.scorer", 3),
        ("lighthouse.dilation", [4]),
        ("lighthouse.stratum", "8"),
        ("lighthouse.cover_prefix", "on"),
        ("lighthouse.dense_layers", 3),
        ("lighthouse.dense_layers", ["0"]),
        ("lighthouse.dense_layers", [0.0]),
        ("lighthouse.dense_from_step", "5"),
        ("lighthouse.dense_from_step", False),
        ("lighthouse.impl", "fast"),
        ("lighthouse.validate_dense", "no"),
        ("lighthouse.selection_log_freq", 0.5),
        ("lighthouse.layer_overrides", "1:topk=16"),
        ("lighthouse.layer_overrides", [1]),
        ("model.tokenizer", "bytes"),
        ("training.seq_len", "abc"),
        ("training.steps", 10.5),
        ("optimizer.lr", "2e-3"),
        ("checkpoint.enable", "no"),
        ("checkpoint.exclude_from_loading", "optimizer"),
    ],
)
def test_wrong_type_names_key_and_value(parse, key, value):
    with pytest.raises(ValueError) as error:
        parse({key: value})
    assert str(error.value).startswith(f"{key} = {spelled(value)}: must be ")


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"lighthouse.num_levels": 1}, "lighthouse.num_levels = 1", "use 2"),
        ({"lighthouse.pooling_factor": 1}, "lighthouse.pooling_factor = 1", "use 2"),
        ({"lighthouse.topk": 12}, "lighthouse.topk = 12", "nearest is 8"),
        ({"lighthouse.topk": 32}, "lighthouse.topk = 32", "nearest is 16"),
        ({"lighthouse.stratum": 5}, "lighthouse.stratum = 5", "nearest is 6"),
        (
            {"lighthouse.scorer": "dilated", "lighthouse.dilation": 5},
            "lighthouse.dilation = 5",
            "nearest is 4",
        ),
        ({"training.seq_len": 250}, "training.seq_len = 250", "nearest is 256"),
        ({"lighthouse.dense_layers": [4]}, "lighthouse.dense_layers = [4]", "layers 0..3"),
        ({"lighthouse.dense_layers": [-1]}, "lighthouse.dense_layers = [-1]", "layers 0..3"),
        ({"lighthouse.window_layers": [4]}, "lighthouse.window_layers = [4]", "layers 0..3"),
        (
            {"lighthouse.window_layers": [1]},
            "lighthouse.window_layers = [1]: layer 1 has no window",
            "set lighthouse.window",
        ),
        (
            {
                "lighthouse.window_layers": [1, 2],
                "lighthouse.window": 8,
                "lighthouse.dense_layers": [2, 3],
            },
            "lighthouse.window_layers = [1, 2]: layer 2",
            "lighthouse.dense_layers = [2, 3]",
        ),
        (
            {"lighthouse.window_layers": [1], "lighthouse.window": 0},
            "lighthouse.window = 0",
            "at least 1",
        ),
        (
            {"lighthouse.layer_overrides": ["1:window=8"], "lighthouse.window_layers": [2, 3]},
            "lighthouse.layer_overrides = '1:window=8': none of its layers",
            "lighthouse.window_layers = [2, 3]",
        ),
        (
            {"lighthouse.window_layers": [1], "lighthouse.layer_overrides": ["1:window=0"]},
            "layer_overrides = '1:window=0': lighthouse.window = 0",
            "at least 1",
        ),
        ({"lighthouse.dense_from_step": 0}, "lighthouse.dense_from_step = 0", "steps 1 to 10"),
        ({"lighthouse.layer_overrides": ["x"]}, "layer_overrides = 'x'", "LAYER:key=value"),
        ({"lighthouse.layer_overrides": ["9:topk=8"]}, "layer_overrides = '9:topk=8'", "0..3"),
        ({"lighthouse.layer_overrides": ["2-1:topk=8"]}, "layer_overrides", "no such layers"),
        ({"lighthouse.layer_overrides": ["1:top=8"]}, "layer_overrides", "unknown key 'top'"),
        ({"lighthouse.layer_overrides": ["1:topk=8 topk=16"]}, "topk=16'", "topk is given twice"),
        ({"lighthouse.layer_overrides": ["1:topk=x"]}, "layer_overrides", "whole number"),
        ({"lighthouse.layer_overrides": ["1:topk=9"]}, "topk = 9", "nearest is 8"),
        ({"model.flavor": "7B"}, "model.flavor = '7B'", "tiny_byte"),
        (
            {"model.flavor": "debugmodel_flex_attn"},
            "model.flavor = 'debugmodel_flex_attn'",
            "plain causal mask",
        ),
        ({"model.flavor": "debugmodel_varlen_attn"}, "model.flavor", "plain causal mask"),
        (
            {"profiling.enable_memory_snapshot": True},
            "profiling.enable_memory_snapshot = true",
            "set it to false",
        ),
        (
            {"training.enable_cpu_offload": True},
            "training.enable_cpu_offload = true",
            "use false",
        ),
        (
            {"model.name": "deepseek_v3", "lighthouse.enable": False},
            "model.tokenizer = 'byte'",
            "use 'hf'",
        ),
        ({"model.name": "deepseek_v3"}, "model.name = 'deepseek_v3'", "llama3"),
        (
            {"parallelism.context_parallel_degree": 2},
            "lighthouse.topk = 16",
            "num_chunks * stratum = 4 * 8 = 32; nearest is 32",
        ),
        (
            {"parallelism.context_parallel_degree": 3, "lighthouse.topk": 48},
            "training.seq_len = 256",
            "nearest is 258",
        ),
        (
            {"parallelism.context_parallel_degree": 4, "lighthouse.num_chunks": 4},
            "lighthouse.num_chunks = 4",
            "multiple of 8",
        ),
        ({"lighthouse.num_chunks": 0}, "lighthouse.num_chunks = 0", "nearest is 1"),
        (
            {
                "parallelism.context_parallel_degree": 2,
                "parallelism.context_parallel_load_balancer": "ptrr",
            },
            "parallelism.context_parallel_load_balancer = 'ptrr'",
            "'headtail'",
        ),
        ({"training.loss_chunk_tokens": -1}, "training.loss_chunk_tokens = -1", "or 0"),
        (
            {"training.loss_chunk_tokens": 64, "parallelism.tensor_parallel_degree": 2},
            "training.loss_chunk_tokens = 64",
            "parallelism.tensor_parallel_degree = 2 splits",
        ),
        ({"training.ffn_chunk_tokens": -1}, "training.ffn_chunk_tokens = -1", "or 0"),
        (
            {"training.ffn_chunk_tokens": 64, "parallelism.tensor_parallel_degree": 2},
            "training.ffn_chunk_tokens = 64",
            "parallelism.tensor_parallel_degree = 2 splits",
        ),
        (
            {"activation_checkpoint.offload": True},
            "activation_checkpoint.offload = true",
            "activation_checkpoint.mode = 'full' keeps, and the mode is 'selective'",
        ),
        (
            {
                "activation_checkpoint.mode": "full",
                "activation_checkpoint.offload": True,
                "parallelism.tensor_parallel_degree": 2,
            },
            "activation_checkpoint.offload = true",
            "parallelism.tensor_parallel_degree = 2 leaves",
        ),
        (
            {
                "activation_checkpoint.mode": "full",
                "activation_checkpoint.offload": True,
                "parallelism.pipeline_parallel_degree": 2,
                "lighthouse.enable": False,
            },
            "activation_checkpoint.offload = true",
            "parallelism.pipeline_parallel_degree = 2 runs",
        ),
        (
            {"validation.enable": True, "validation.seq_len": 100},
            "validation.seq_len = 100",
            "nearest is 256",
        ),
        (
            {"validation.enable": True, "validation.seq_len": 512},
            "validation.seq_len = 512",
            "training.seq_len = 256",
        ),
        (
            {"lighthouse.validate_dense": True},
            "lighthouse.validate_dense = true",
            "set validation.enable = true",
        ),
        (
            {"lighthouse.selection_log_freq": 25},
            "lighthouse.selection_log_freq = 25",
            "nearest is 20",
        ),
        (
            {"lighthouse.selection_log_freq": -10},
            "lighthouse.selection_log_freq = -10",
            "nearest is 0",
        ),
        (
            {
                "lighthouse.dense_from_step": 11,
                "lr_scheduler.total_steps": 20,
                "checkpoint.last_save_model_only": True,
            },
            "checkpoint.last_save_model_only = true",
            "set it to false",
        ),
        ({"training.steps": 0}, "training.steps = 0", "at least 1"),
        ({"training.seq_len": -256}, "training.seq_len = -256", "at least 1"),
        ({"training.gc_freq": 0}, "training.gc_freq = 0", "at least 1"),
        ({"metrics.log_freq": 0}, "metrics.log_freq = 0", "at least 1"),
        ({"checkpoint.interval": 0}, "checkpoint.interval = 0", "at least 1"),
        ({"checkpoint.keep_latest_k": 1}, "checkpoint.keep_latest_k = 1", "at least 2"),
        ({"validation.enable": True, "validation.freq": 0}, "validation.freq = 0", "at least 1"),
        (
            {"profiling.enable_profiling": True, "profiling.profile_freq": 1},
            "profiling.profile_freq = 1",
            "at least 4",
        ),
        ({"checkpoint.keep_latest_k": -2}, "checkpoint.keep_latest_k = -2", "at least 2"),
        ({"training.max_norm": 0.0}, "training.max_norm = 0.0", "inf is for no clipping"),
        ({"training.max_norm": -1}, "training.max_norm = -1", "at least 1e-18"),
        ({"training.max_norm": float("nan")}, "training.max_norm = nan", "at least 1e-18"),
        ({"optimizer.beta1": 1.0}, "optimizer.beta1 = 1.0", "below 1"),
        ({"optimizer.beta2": 95.0}, "optimizer.beta2 = 95.0", "below 1"),
        ({"optimizer.eps": 0.0}, "optimizer.eps = 0.0", "at least 1e-37"),
        ({"optimizer.eps": 1e308}, "optimizer.eps = 1e+308", "at most 1"),
        ({"optimizer.eps": 1e-300}, "optimizer.eps = 1e-300", "at least 1e-37"),
        ({"training.max_norm": 1e-300}, "training.max_norm = 1e-300", "inf is for no clipping"),
        ({"optimizer.lr": 1e308}, "optimizer.lr = 1e+308", "usually below 0.01"),
        ({"optimizer.lr": 1e-300}, "optimizer.lr = 1e-300", "at least 1e-37"),
        (
            {"optimizer.lr": 0.004, "optimizer.weight_decay": 1e30},
            "optimizer.weight_decay = 1e+30: at optimizer.lr = 0.004 ",
            "must be below 250",
        ),
        (
            {"optimizer.name": "Adam", "optimizer.weight_decay": 1e30},
            "optimizer.weight_decay = 1e+30",
            "must be below 1e+19",
        ),
        ({"training.local_batch_size": 10**20}, "training.local_batch_size = 1", "less than"),
        ({"training.global_batch_size": 10**20}, "training.global_batch_size = 1", "below"),
        ({"model.args": {"norm_eps": 1e308}}, "model.args.norm_eps = 1e+308", "at most 1.0"),
        ({"model.args": {"rope_theta": 1e308}}, "model.args.rope_theta = 1e+308", "at most 1e+30"),
        ({"lighthouse.num_levels": 10**9}, "lighthouse.num_levels = 1000000000", "fewer levels"),
        ({"checkpoint.folder": ""}, "checkpoint.folder = ''", "such as 'checkpoint'"),
        ({"checkpoint.folder": ".."}, "checkpoint.folder = '..'", "such as 'checkpoint'"),
        ({"checkpoint.folder": "/tmp/x"}, "checkpoint.folder = '/tmp/x'", "such as 'checkpoint'"),
        ({"optimizer.weight_decay": -0.1}, "optimizer.weight_decay = -0.1", "zero or more"),
        ({"lr_scheduler.min_lr_factor": 10.0}, "lr_scheduler.min_lr_factor = 10.0", "at most 1"),
        ({"lr_scheduler.min_lr_factor": -1.0}, "lr_scheduler.min_lr_factor = -1.0", "at least 0"),
        ({"lr_scheduler.decay_ratio": -0.2}, "lr_scheduler.decay_ratio = -0.2", "at least 0"),
        ({"lr_scheduler.decay_ratio": 20.0}, "lr_scheduler.decay_ratio = 20.0", "at most 1"),
        (
            {"lr_scheduler.decay_ratio": float("nan")},
            "lr_scheduler.decay_ratio = nan",
            "at least 0",
        ),
        ({"validation.enable": True, "validation.steps": 0}, "validation.steps = 0", "-1 for all"),
        (
            {"validation.enable": True, "validation.steps": -2},
            "validation.steps = -2",
            "-1 for all",
        ),
        (
            {"checkpoint.async_mode": "async_with_pinned_mem"},
            "checkpoint.async_mode = 'async_with_pinned_mem'",
            "'async' or 'disabled'",
        ),
        (
            {"lighthouse.dense_from_step": 11},
            "lighthouse.dense_from_step = 11",
            "steps 1 to 10, where training.steps ends",
        ),
        (
            {"lighthouse.dense_from_step": 101, "lr_scheduler.total_steps": 100},
            "lighthouse.dense_from_step = 101",
            "steps 1 to 100, where lr_scheduler.total_steps ends",
        ),
        (
            {"training.nonfinite": "skip", "optimizer.early_step_in_backward": True},
            "training.nonfinite = 'skip'",
            "or no early step",
        ),
        ({"optimizer.lr": float("nan")}, "optimizer.lr = nan", "finite"),
        ({"optimizer.lr": float("inf")}, "optimizer.lr = inf", "finite"),
        ({"optimizer.lr": -1.0}, "optimizer.lr = -1.0", "above 0"),
        ({"optimizer.name": "SGD"}, "optimizer.name = 'SGD'", "Adam, AdamW"),
        ({"lr_scheduler.warmup_steps": -1}, "lr_scheduler.warmup_steps = -1", "zero or more"),
        ({"lr_scheduler.total_steps": 9}, "lr_scheduler.total_steps = 9", "use 10 or more"),
        (
            {"compile.enable": True, "compile.backend": "inducter"},
            "compile.backend = 'inducter'",
            "inductor",
        ),
        (
            {
                "lighthouse.enable": False,
                "parallelism.context_parallel_degree": 2,
                "parallelism.context_parallel_load_balancer": "tailhead",
            },
            "parallelism.context_parallel_load_balancer = 'tailhead'",
            "'headtail', 'none'",
        ),
        ({"training.max_documents": 3}, "training.max_documents = 3", "document_mask = true"),
        (
            {"training.document_positions": "restart"},
            "training.document_positions = 'restart'",
            "document_mask = true",
        ),
        (
            {"training.document_mask": True, "training.max_documents": 0},
            "training.max_documents = 0",
            "at most training.seq_len = 256",
        ),
        (
            {
                "training.document_mask": True,
                "lighthouse.enable": False,
                "model.flavor": "debugmodel_flex_attn",
            },
            "model.flavor = 'debugmodel_flex_attn'",
            "training.document_mask needs sdpa",
        ),
        (
            {"training.document_mask": True, "lighthouse.scorer": "dilated"},
            "lighthouse.scorer = 'dilated'",
            "'norm'",
        ),
        (
            {
                "training.document_mask": True,
                "lighthouse.validate_leak": 1,
                "validation.enable": True,
                "validation.seq_len": 256,
            },
            "lighthouse.validate_leak = 1",
            "use 0",
        ),
        ({"training.dataset": "c5"}, "training.dataset = 'c5'", "'python'"),
        ({"training.dataset": "local"}, "training.dataset_path is not set", "folder or a file"),
        (
            {"training.dataset": "local", "training.dataset_path": "/nowhere"},
            "training.dataset_path = '/nowhere'",
            "no such file",
        ),
        (
            {"validation.enable": True, "validation.seq_len": 256, "validation.dataset": "c5"},
            "validation.dataset = 'c5'",
            "'python'",
        ),
        (
            {"training.dataset": "local", "training.dataset_path": ""},
            "training.dataset_path = ''",
            "must name a folder or a file",
        ),
        ({"experimental.custom_import": "nowhere"}, "experimental.custom_import = 'nowhere'", ""),
        (
            {"checkpoint.exclude_from_loading": ["scheduler"]},
            "checkpoint.exclude_from_loading = ['scheduler']",
            "lr_scheduler, dataloader",
        ),
        (
            {"checkpoint.exclude_from_loading": ["lr_scheduler"]},
            "checkpoint.exclude_from_loading = ['lr_scheduler']",
            "both or none",
        ),
    ],
)
def test_constraint_names_key_value_and_way_out(parse, changes, key, hint):
    with pytest.raises(ValueError) as error:
        parse(changes)
    assert key in str(error.value)
    assert hint in str(error.value)


def test_byte_tokenizer_needs_the_vocabulary(parse, monkeypatch):
    from torchtitan.models.llama3 import llama3_args

    monkeypatch.setitem(llama3_args, "small", replace(llama3_args["tiny_byte"], vocab_size=200))
    with pytest.raises(ValueError, match=r"model\.flavor = 'small': .*264"):
        parse({"model.flavor": "small"})


def test_what_a_gpu_has_is_taken_there(parse):
    for key in ("profiling.enable_memory_snapshot", "training.enable_cpu_offload"):
        parse({key: True}, machine=GPU)


def test_kernels_need_a_gpu(parse, monkeypatch):
    from lighthouse.ops import triton

    monkeypatch.setattr(triton, "INTERPRETED", False)
    with pytest.raises(
        ValueError, match=r"lighthouse\.impl = 'triton': the Triton kernels need a GPU"
    ):
        parse({"lighthouse.impl": "triton"})
    parse({"lighthouse.impl": "triton"}, machine=GPU)
    parse({"lighthouse.impl": "auto"})


@pytest.mark.parametrize("machine", [GPU, GPUS_ELSEWHERE], ids=["here", "elsewhere"])
def test_a_ring_of_gpus_needs_half_precision(parse, machine):
    ring = {"parallelism.context_parallel_degree": 2, "lighthouse.stratum": 4}
    single = {"training.mixed_precision_param": "float32"}
    parse(ring, machine=machine)
    parse(single, machine=machine)
    message = r"training\.mixed_precision_param = 'float32': .*use 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        parse(ring | single, machine=machine)
    with pytest.raises(ValueError, match=message):
        parse(ring | single | {"lighthouse.enable": False}, machine=machine)
    parse(ring | single)


def test_gla_needs_its_library_on_the_gpu_at_hand(parse, monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    gla = {"lighthouse.layer_overrides": ["1:scorer=gla"]}
    with pytest.raises(ValueError, match=r"lighthouse\.scorer = 'gla': needs fla-core"):
        parse(gla, machine=GPU)
    parse({"lighthouse.layer_overrides": ["1:scorer=dilated"]}, machine=GPU)
    parse(gla, machine=GPUS_ELSEWHERE)
    parse(gla)


def test_the_machine_at_hand_is_asked_where_none_is_named(monkeypatch):
    from torchtitan.config import ConfigManager
    from torchtitan.tools import utils

    monkeypatch.setattr(utils, "device_type", "cuda")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Machine.this() == Machine("cuda", 3, here=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = "--model.flavor tiny_byte --model.tokenizer byte --training.dataset python"
    ring = "--parallelism.context_parallel_degree 2 --training.mixed_precision_param float32"
    with pytest.raises(Refusal, match="no kernel for it on a GPU"):
        ConfigManager().parse_args(f"{flags} {ring}".split())
    ConfigManager(checked=False).parse_args(f"{flags} {ring}".split())


def test_every_mistake_is_a_refusal(parse):
    for changes in ({"lighthouse.topk": 17}, {"lighthouse.topk": "many"}, {"lighthouse.top": 1}):
        with pytest.raises(Refusal):
            parse(changes)


def test_unknown_key_is_refused(parse):
    with pytest.raises(ValueError, match="top_k"):
        parse({"lighthouse.top_k": 4})


def test_float8_leaves_a_byte_vocabulary_to_the_loss_in_chunks(parse):
    changes = {"training.loss_chunk_tokens": 64, "model.converters": ["quantize.linear.float8"]}
    parse(changes, machine=GPUS_ELSEWHERE)
    with pytest.raises(Refusal, match=r"loss_chunk_tokens = 64: .*linear\.float8\.filter_fqns"):
        parse(changes | {"model.flavor": "debugmodel"}, machine=GPUS_ELSEWHERE)
    changes = {"training.ffn_chunk_tokens": 64, "model.converters": ["quantize.linear.float8"]}
    with pytest.raises(Refusal, match=r"ffn_chunk_tokens = 64: .*model\.converters = .* replaces"):
        parse(changes | {"model.flavor": "debugmodel"}, machine=GPUS_ELSEWHERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe_name": "rowwise", "enable_fsdp_float8_all_gather": True},
            r"enable_fsdp_float8_all_gather = true: .*recipe_name = 'rowwise'",
        ),
        ({"emulate": True}, r"float8\.emulate = true: .*compile\.enable = false"),
    ],
)
def test_float8_settings_that_contradict_each_other_are_refused(parse, changes, message):
    changes = {"quantize.linear": {"float8": changes}, "compile.enable": True}
    changes |= {"model.converters": ["quantize.linear.float8"]}
    with pytest.raises(Refusal, match=message):
        parse(changes, machine=GPUS_ELSEWHERE)


def test_a_gpu_that_cannot_multiply_so_is_refused(parse, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    float8 = {"model.converters": ["quantize.linear.float8"]}
    with pytest.raises(Refusal, match=r"needs a GPU of Ada, Hopper .* 8\.9; here is none"):
        parse(float8, machine=GPU)
    emulated = {"quantize.linear": {"float8": {"emulate": True}}, "compile.enable": False}
    parse(float8 | emulated, machine=GPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a Hopper")
    parse(float8, machine=GPU)
    with pytest.raises(Refusal, match=r"Blackwell .* 10\.0; here is a Hopper, 9\.0"):
        parse({"model.converters": ["quantize.linear.mx"]}, machine=GPU)


def test_a_library_that_is_not_here_is_named(parse, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal, match=r"model\.converters = .* needs torchao"):
        parse({"model.converters": ["quantize.linear.float8"]}, machine=GPU)


def test_a_pipeline_is_warned_of(parse, caplog):
    pipeline = {"parallelism.pipeline_parallel_degree": 2, "lighthouse.enable": False}
    with caplog.at_level("WARNING"):
        parse(pipeline)
    assert "parallelism.pipeline_parallel_degree = 2" in caplog.text


def test_without_a_file_it_is_the_file_that_lacks(monkeypatch, tmp_path):
    from torchtitan.config import ConfigManager

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match=r"; no --job\.config_file names a TOML that would say so$"):
        ConfigManager(machine=CPU).parse_args([])


@pytest.mark.parametrize("machine", [CPU, GPUS_ELSEWHERE])
def test_a_tokenizer_that_is_not_there_is_refused_by_its_key(parse, tmp_path, machine) -> None:
    changes = {"model.tokenizer": "hf", "model.hf_assets_path": str(tmp_path / "assets/tokenizer")}
    with pytest.raises(Refusal, match=r"^model\.hf_assets_path = '.*': there is no such folder"):
        parse(changes, machine=machine)
    (tmp_path / "assets/tokenizer").mkdir(parents=True)
    with pytest.raises(Refusal, match=r"^model\.hf_assets_path = '.*': has none of tokenizer.json"):
        parse(changes, machine=machine)


def test_a_tokenizer_that_does_not_do_is_refused_with_the_configuration(
    parse: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "tokenizer"
    ByteTokenizer().save_pretrained(folder)
    changes = {"model.tokenizer": "hf", "model.hf_assets_path": str(folder)}
    parse(changes)
    assert not caplog.text  # the trainer's own reading says what there is to say
    with pytest.raises(Refusal, match=r"^model\.hf_assets_path = .* has 264 tokens, .* only 260;"):
        parse(changes, "--model.args.vocab_size", "260")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(Refusal, match=r"tokenizer_config.json is missing: documents would run "):
        parse(changes)
    (folder / "tokenizer.json").write_text("")
    with pytest.raises(Refusal, match=r"^model\.hf_assets_path = .*: its tokenizer can't be read"):
        parse(changes)


@pytest.mark.parametrize("machine", [None, GPUS_ELSEWHERE], ids=["CPUs", "GPUs"])
def test_documents_may_span_ranks(parse: Any, machine: Any) -> None:
    changes = {"training.document_mask": True, "lighthouse.enable": False}
    changes["parallelism.context_parallel_degree"] = 2
    parse(changes, **({} if machine is None else {"machine": machine}))
