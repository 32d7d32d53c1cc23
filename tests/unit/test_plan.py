"""The dry run of a job on GPUs that are not there."""

import json
import sys
from pathlib import Path

import pytest
import torch

from lighthouse.titan.model import apply_lighthouse, set_stage
from lighthouse.titan.plan import job_of, main, model_of, parse, plan

TRAIN_CONFIGS = Path(__file__).parents[2] / "train_configs"
BASE = TRAIN_CONFIGS / "530M_byte_98k.toml"
PAPER = TRAIN_CONFIGS / "paper"


def planned(file: Path, *args: str, gpus: int = 8, device: str = "h100"):
    return plan(parse(["--job.config_file", str(file), *args]), gpus, device)


def test_the_recipe_in_two_stages():
    result = planned(BASE)
    lighthouse, dense = result.stages
    assert (lighthouse.name, lighthouse.steps) == ("lighthouse", 10_000)
    assert (dense.name, dense.steps) == ("dense", 6_000)
    assert result.all_dense.steps == 16_000
    assert result.gathered_len == {18_432: 26}
    assert result.tokens_per_step == 32 * 98304 and result.accumulation == 4
    assert result.gpu_hours == 8 * result.hours == 8 * (lighthouse.hours + dense.hours)
    assert result.speedup == result.all_dense.hours / result.hours > 1.5
    assert dense.step_seconds == result.all_dense.step_seconds
    tokens = result.tokens_per_step / 8
    assert lighthouse.tokens_per_second == pytest.approx(tokens / lighthouse.step_seconds)
    assert sum(lighthouse.gib_by_part.values()) == pytest.approx(lighthouse.memory_gib)
    assert not result.remarks


def test_flops_are_those_of_the_trainer():
    from torchtitan.protocols.train_spec import get_train_spec

    from lighthouse.titan.flops import flops_per_token as trainers

    job = parse(["--job.config_file", str(BASE)])
    result = plan(job, 8)
    spec = get_train_spec("llama3")
    args = spec.model_args["530M_byte"]
    with torch.device("meta"):
        model = spec.model_cls(args)
        apply_lighthouse(model, job)
    parameters, dense = args.get_nparams_and_flops(model, 98304)
    assert result.parameters == parameters
    for step, stage in ((1, result.stages[0]), (10_001, result.stages[1])):
        set_stage([model], job.lighthouse, step)
        assert stage.flops_per_token == trainers([model], dense, args, job)


@pytest.mark.parametrize("flavor", ["530M", "tiny_byte", "8B"])
def test_sizes_are_those_of_the_model(flavor):
    from torchtitan.protocols.train_spec import get_train_spec

    spec = get_train_spec("llama3")
    with torch.device("meta"):
        model = spec.model_cls(spec.model_args[flavor])
    assert model_of(flavor).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["--lighthouse.no-enable"], ["dense"]),
        (["--lighthouse.dense_from_step", "1"], ["dense"]),
        (["--lighthouse.dense_from_step", "16000"], ["lighthouse", "dense"]),
        (
            ["--lighthouse.dense_from_step", "20000", "--lr_scheduler.total_steps", "30000"],
            ["lighthouse"],
        ),
    ],
)
def test_stages_are_those_that_have_steps(args, names):
    result = planned(BASE, *args)
    assert [stage.name for stage in result.stages] == names
    assert sum(stage.steps for stage in result.stages) == 16_000
    if names == ["dense"]:
        assert result.speedup == 1


@pytest.mark.parametrize(
    ("name", "gpus", "gathered"),
    [("cp2_98k_k1536", 8, 18432), ("cp8_256k_k4096", 8, 49152), ("cp8_1m_k4096", 32, 65536)],
)
def test_context_parallel_runs_are_estimated(name, gpus, gathered):
    result = planned(PAPER / f"{name}.toml", gpus=gpus, device="h200")
    assert list(result.gathered_len) == [gathered]
    assert result.layout.gpus == gpus
    assert all(stage.seconds_by_part["ring"] > 0 for stage in result.stages)
    assert not result.remarks  # it fits


def test_a_machine_without_a_gpu_plans_for_kernels_and_gla(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    result = planned(BASE, *"--lighthouse.impl triton --lighthouse.scorer gla".split())
    assert result.stages[0].seconds_by_part["scorer"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--gpus 3", r"training\.global_batch_size = 32: .* = 1 \* 3;"),
        ("--gpus 8 --lighthouse.topk 100", r"lighthouse\.topk = 100: .* nearest is 128"),
        ("--gpus 8 --parallelism.pipeline_parallel_degree 2", r"pipeline_parallel_degree = 2"),
        ("--gpus 8 --activation_checkpoint.mode memory_budget", r"mode = 'memory_budget'"),
        (
            "--gpus 8 --parallelism.context_parallel_degree 2 "
            "--training.mixed_precision_param float32",
            r"mixed_precision_param = 'float32'",
        ),
    ],
)
def test_what_cannot_run_is_refused(args, message, capsys):
    with pytest.raises(SystemExit, match=rf"refused: .*{message}"):
        main(["--job.config_file", str(BASE), *args.split()])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("args", "gpus", "wanted"),
    [
        ("", 1, (2, 2)),
        ("--parallelism.no-fsdp_on_one_rank", 1, (2, 4)),
        ("--parallelism.no-fsdp_on_one_rank", 2, (2, 2)),
        ("--parallelism.no-fsdp_on_one_rank --parallelism.tensor_parallel_degree 2", 2, (2, 2)),
        ("--training.mixed_precision_param float32", 2, (4, 4)),
    ],
)
def test_activations_have_the_trainers_precision(args, gpus, wanted):
    _, _, work = job_of(parse(["--job.config_file", str(BASE), *args.split()]), gpus)
    assert (work.element_bytes, work.residual_bytes) == wanted


def test_ranks_own_chunks():
    job = parse(["--job.config_file", str(PAPER / "cp8_1m_k4096.toml")])
    _, layout, work = job_of(job, 32)
    assert (layout.cp, layout.dp_shard) == (8, 4)
    assert {config.num_chunks for config in work.attention} == {16}


def test_json_has_everything(capsys):
    main(["--gpus", "8", "--json", "--device", "h200", "--job.config_file", str(BASE)])
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "h200"
    assert result["layout"]["dp_shard"] == 8
    assert [stage["name"] for stage in result["stages"]] == ["lighthouse", "dense"]
    assert result["stages"][0]["seconds_by_part"]["matmuls"] > 0


def test_the_table_shows_the_stages_and_what_does_not_fit(capsys):
    args = "--gpus 8 --model.flavor 530M --activation_checkpoint.mode none --compile.no-enable"
    main(["--job.config_file", str(BASE), *args.split()])
    out = capsys.readouterr().out
    assert "530,117,632 parameters" in out and "18,432 in 26 layers" in out
    assert "GiB do not fit the device's 79.1 GiB" in out
    assert "compile.enable = false" in out
    assert "ring" not in out
