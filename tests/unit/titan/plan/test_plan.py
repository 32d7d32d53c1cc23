"""The dry run of a job on GPUs that are not there."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase

from lighthouse.cost.sizes import Layout, Work
from lighthouse.titan.check.job import Machine
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.distributed.layout import layout_of
from lighthouse.titan.llama3.layers import set_stage
from lighthouse.titan.plan.__main__ import main
from lighthouse.titan.plan.fit import largest_part
from lighthouse.titan.plan.job import Plan, machine_of, parse, plan
from lighthouse.titan.plan.surveyed import surveyed_pairs
from lighthouse.titan.plan.table import table
from lighthouse.titan.plan.work import model_of, work_of
from tests.support import TRAIN_CONFIGS
from tests.support.models import on_meta

BASE = TRAIN_CONFIGS / "530M_byte_98k.toml"
TINY = TRAIN_CONFIGS / "tiny.toml"
MILLION = TRAIN_CONFIGS / "paper" / "cp8_1m_k4096.toml"


def job_of(file: Path, *args: str, gpus: int = 8, device: str = "h100") -> Any:
    return parse(["--job.config_file", str(file), *args], machine_of(device, gpus))


def planned(file: Path, *args: str, gpus: int = 8, device: str = "h100") -> Plan:
    return plan(job_of(file, *args, gpus=gpus, device=device), gpus, device)


def layout_and_work(file: Path, *args: str, gpus: int) -> tuple[Layout, Work]:
    job = job_of(file, *args, gpus=gpus)
    layout = layout_of(job, gpus)
    layers = Stages.of(job).at(1).layers(job, model_of(job).layers)
    return layout, work_of(job, layout, tuple(layers))


def test_a_device_stands_for_a_machine():
    assert machine_of("h100", 8) == machine_of("b200", 8) == Machine("cuda", 8, here=False)
    assert machine_of("cpu", 2) == Machine("cpu", 2, here=False)


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


WINDOWS = "--lighthouse.window 4096 --lighthouse.dense_layers --lighthouse.window_layers 0 1 28 29"


def test_windows_are_planned():
    result = planned(BASE, *WINDOWS.split())
    assert result.windows == {4096: 4}
    shown = table(result)
    assert "windows           4,096 in 4 layers" in shown
    assert "window attention" in shown
    lighthouse, dense = result.stages
    assert dense.seconds_by_part["window attention"] == 0
    assert lighthouse.step_seconds < planned(BASE).stages[0].step_seconds


@pytest.mark.parametrize("pairs", [None, 0.2])
@pytest.mark.parametrize("windows", ["", WINDOWS])
def test_flops_are_those_of_the_trainer(windows, pairs, tmp_path):
    from torchtitan.protocols.train_spec import get_train_spec

    from lighthouse.titan.llama3.flops import flops_per_token as trainers

    mask = ["--training.document_mask"] if pairs else []
    job = job_of(BASE, *windows.split(), *mask)
    survey = survey_of(tmp_path, {(98304, 16): pairs}) if pairs else None
    result = plan(job, 8, survey=survey)
    args = get_train_spec("llama3").model_args["530M_byte"]
    model = on_meta(job)
    parameters, dense = args.get_nparams_and_flops(model, 98304)
    assert result.parameters == parameters
    for step, stage in ((1, result.stages[0]), (10_001, result.stages[1])):
        set_stage([model], Stages.of(job).at(step))
        left = {"pairs_left": pairs} if pairs else {}
        assert stage.flops_per_token == trainers([model], dense, args, job, **left)


def survey_of(folder: Path, *pairs_of_sources: dict[tuple[int, int], float]) -> str:
    """What ``lighthouse.data check`` would print of sources with equal shares."""
    share = 1 / len(pairs_of_sources)
    sources = [
        {
            "share": share,
            "packed": [
                {"seq_len": seq_len, "multiple": multiple, "pairs": left}
                for (seq_len, multiple), left in pairs.items()
            ],
        }
        for pairs in pairs_of_sources
    ]
    (folder / "survey.json").write_text(json.dumps(sources))
    return str(folder / "survey.json")


def test_documents_are_planned(tmp_path, capsys):
    mask = "--training.document_mask"
    survey = survey_of(tmp_path, {(98304, 16): 0.1}, {(98304, 16): 0.3})
    assert surveyed_pairs(job_of(BASE, mask), survey)(Stages.of(job_of(BASE)).last) == 0.2
    with_survey, without = (plan(job_of(BASE, mask), 8, survey=file) for file in (survey, None))
    for left, all_pairs in zip(with_survey.stages, without.stages, strict=True):
        assert left.step_seconds < all_pairs.step_seconds
        assert left.flops_per_token < all_pairs.flops_per_token
    assert not with_survey.remarks
    assert "--survey says what documents leave" in without.remarks[0]
    assert without.stages[1].step_seconds > planned(BASE).stages[1].step_seconds
    flags = ["--gpus", "8", "--job.config_file", str(BASE), mask, "--survey", survey]
    main(flags)
    assert "as if each sequence were one" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("{", "is no survey of a run"),
        (
            '[{"share": null, "packed": [{"seq_len": 1, "multiple": 1, "pairs": 1}]}]',
            "is no survey",
        ),
        ("[]", "has no sequences of 98,304 tokens with documents at multiples of 16, as stage 1"),
        ('[{"share": 1, "packed": []}]', "has no sequences of 98,304 tokens"),
    ],
)
def test_a_survey_of_something_else_is_refused(content, says, tmp_path, capsys):
    file = tmp_path / "survey.json"
    if content is not None:
        file.write_text(content)
    flags = ["--gpus", "8", "--job.config_file", str(BASE), "--survey", str(file)]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--training.document_mask"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--survey {file}: " in line and says in line and "lighthouse.data check" in line
    with pytest.raises(SystemExit):
        main(flags)
    assert "without training.document_mask" in capsys.readouterr().err


@pytest.mark.parametrize("flavor", ["530M", "tiny_byte", "8B"])
def test_sizes_are_those_of_the_model(flavor):
    from torchtitan.protocols.train_spec import get_train_spec

    spec = get_train_spec("llama3")
    with torch.device("meta"):
        model = spec.model_cls(spec.model_args[flavor])
    job = job_of(TINY, "--model.flavor", flavor, "--model.tokenizer", "byte")
    assert model_of(job).parameters == sum(p.numel() for p in model.parameters())


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
    ("file", "args", "gpus", "gathered"),
    [
        (BASE, "--parallelism.context_parallel_degree 2", 8, 18432),
        (
            BASE,
            "--parallelism.context_parallel_degree 8 --training.seq_len 262144 "
            "--lighthouse.topk 4096",
            8,
            49152,
        ),
        (MILLION, "", 32, 65536),
    ],
    ids=["98k", "256k", "1M"],
)
def test_context_parallel_runs_are_estimated(file, args, gpus, gathered):
    result = planned(file, *args.split(), gpus=gpus, device="h200")
    assert list(result.gathered_len) == [gathered]
    assert result.layout.gpus == gpus
    assert all(stage.seconds_by_part["ring"] > 0 for stage in result.stages)
    assert not result.remarks and not result.misfits


def test_a_machine_without_a_gpu_plans_for_kernels_and_gla(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    result = planned(BASE, *"--lighthouse.impl triton --lighthouse.scorer gla".split())
    assert result.stages[0].seconds_by_part["scorer"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--gpus 3", "training.global_batch_size = 32: must be a multiple of "),
        ("--gpus 8 --lighthouse.topk 100", "lighthouse.topk = 100: "),
        ("--gpus 8 --lighthouse.top 100", ""),
        ("--gpus 8 --parallelism.pipeline_parallel_degree 2", "parallelism.pipeline_parallel_de"),
        (
            "--gpus 8 --parallelism.context_parallel_degree 2 "
            "--training.mixed_precision_param float32",
            "training.mixed_precision_param = 'float32': ring attention",
        ),
        (
            "--gpus 8 --training.dataset local --training.dataset_path /nowhere",
            "training.dataset_path = '/nowhere': no such file",
        ),
    ],
)
def test_what_cannot_run_is_refused(args, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--job.config_file", str(BASE), *args.split()])
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    if message:
        (line,) = printed.err.splitlines()
        assert line.startswith(f"refused: {message}")


def test_a_missing_file_is_refused_by_its_key(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--gpus", "8", "--job.config_file", "nowhere.toml"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("refused: job.config_file = 'nowhere.toml': can't")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--model.converters quantize.linear.float8",
            "model.converters = ['quantize.linear.float8']",
        ),
        ("--model.converters quantize.linear.mx", "model.converters = ['quantize.linear.mx']"),
        ("--compile.no-enable", "compile.enable = false"),
        ("--training.mixed_precision_param float32", "training.mixed_precision_param = 'float32'"),
        ("--training.enable_cpu_offload", "training.enable_cpu_offload = true"),
    ],
)
def test_what_an_estimate_does_not_know_is_said(flags: str, said: str) -> None:
    (remark,) = planned(BASE, *flags.split()).remarks
    assert remark.startswith(f"{said}: ")


NOT_ESTIMATED = {
    "memory budget": (
        (BASE, "--activation_checkpoint.mode memory_budget", "h100"),
        "does not cover activation_checkpoint.mode = 'memory_budget'",
    ),
    "pipeline": (
        (BASE, "--parallelism.pipeline_parallel_degree 2 --lighthouse.no-enable", "h100"),
        "does not cover parallelism.pipeline_parallel_degree = 2",
    ),
    "CPU": ((TINY, "", "cpu"), "there are no rates of CPUs"),
    "unknown GPU": ((BASE, "", "mi300"), "there are no rates of 'mi300', only of h100, h200"),
}


@pytest.mark.parametrize("case", NOT_ESTIMATED)
def test_what_is_not_estimated_is_planned_with_blanks(case):
    (file, args, device), why = NOT_ESTIMATED[case]
    gpus = 2 if device == "cpu" else 8
    job = job_of(file, *args.split(), gpus=gpus, device=device)
    result = plan(job, gpus, device)
    (remark,) = result.remarks
    assert remark.startswith("no estimate: ") and why in remark
    # Counts are there, of the job as it is.
    stages = Stages.of(job)
    assert [(s.name, s.steps) for s in result.stages] == [(s.attention, s.steps) for s in stages]
    assert result.parameters > 0 and result.layout.gpus == result.gpus == gpus
    assert result.tokens_per_step == job.training.seq_len * result.layout.batch * (
        job.training.local_batch_size * result.accumulation
    )
    assert bool(result.gathered_len) == job.lighthouse.enable
    # Times and memory are not.
    blanks = (result.hours, result.gpu_hours, result.speedup, result.memory_limit_gib)
    assert blanks == (None,) * 4
    for stage in (*result.stages, result.all_dense):
        assert stage.flops_per_token > 0
        of_stage = (stage.step_seconds, stage.tokens_per_second, stage.memory_gib, stage.hours)
        assert of_stage == (None,) * 4
        assert stage.seconds_by_part == stage.gib_by_part == {}
    shown = table(result)
    assert f"note {remark}" in " ".join(shown.split())
    assert "steps" in shown and "GFLOPs per token" in shown
    assert not any(word in shown for word in ("hours", "tokens/s", "GiB"))


def test_another_model_is_planned_with_blanks():
    flags = "--model.name deepseek_v3 --model.flavor debugmodel --training.dataset c4_test"
    result = plan(parse(flags.split(), machine_of("h100", 2)), 2)
    assert result.parameters is None and result.stages[0].flops_per_token is None
    assert result.remarks == ("no estimate: it does not cover model.name = 'deepseek_v3'",)
    assert table(result).splitlines()[0] == "model             debugmodel"


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
    _, work = layout_and_work(BASE, *args.split(), gpus=gpus)
    assert (work.element_bytes, work.residual_bytes) == wanted


def test_ranks_own_chunks():
    layout, work = layout_and_work(MILLION, gpus=32)
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
    with pytest.raises(SystemExit) as ended:
        main(["--job.config_file", str(BASE), *args.split()])
    out, last = capsys.readouterr()
    assert ended.value.code == 2
    assert "530,117,632 parameters" in out and "18,432 in 26 layers" in out
    assert last.startswith("refused: ") and "GiB do not fit the device's 79.1 GiB" in last
    assert "compile.enable = false" in out
    assert "ring" not in out


def test_a_device_is_asked_for_by_name(capsys):
    main(["--gpus", "2", "--device", "cpu", "--job.config_file", str(TINY)])
    out = capsys.readouterr().out
    assert "2 CPU processes" in out and "no rates of CPUs" in out


STAGED = """
[job]
extends = "{base}"
[training]
global_batch_size = -1
[[stages]]
steps = 1000
attention = "dense"
seq_len = 8192
local_batch_size = 8
[[stages]]
steps = 500
attention = "lighthouse"
[[stages]]
steps = 100
attention = "lighthouse"
topk = 3072
global_batch_size = 16
"""


@pytest.fixture
def staged(tmp_path):
    file = tmp_path / "staged.toml"
    file.write_text(STAGED.format(base=BASE))
    return file


def test_each_stage_is_planned_by_its_own_table(staged):
    result = planned(staged)
    long = job_of(BASE).training.seq_len
    assert [(s.name, s.steps, s.seq_len) for s in result.stages] == [
        ("dense", 1000, 8192),
        ("lighthouse", 500, long),
        ("lighthouse", 100, long),
    ]
    assert [s.tokens_per_step for s in result.stages] == [64 * 8192, 8 * long, 16 * long]
    assert result.hours == pytest.approx(sum(s.hours for s in result.stages))
    assert len(result.gathered_len) == 2 and result.seq_len == long
    dense, first, second = result.stages
    assert dense.memory_gib < first.memory_gib
    assert second.step_seconds > first.step_seconds
    # All dense is the longest stage with every layer dense, for as many tokens.
    assert result.all_dense.steps == round((1000 * 64 * 8192 + 700 * 8 * long) / (8 * long))
    assert result.all_dense.hours > result.hours


def test_the_largest_stage_must_fit(staged, capsys):
    arguments = ["--gpus", "8", "--job.config_file", str(staged)]
    fits = "--activation_checkpoint.mode full".split()
    main([*arguments, *fits])
    rows = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["tokens of a sequence"] == ["8,192", "98,304", "98,304", "98,304"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *fits, "--stages.1.local_batch_size", "512"])
    out, last = capsys.readouterr()
    assert ended.value.code == 2
    assert last.startswith("refused: stage 1, dense: ") and "tokens of a sequence" in out


def test_it_says_how_many_loader_workers_keep_the_gpus_busy(tmp_path):
    bytes_ = planned(BASE)
    assert bytes_.loader_workers == 1
    assert "loader            1 worker a rank suffices " in table(bytes_)
    ByteTokenizer().save_pretrained(tmp_path)
    hf = planned(MILLION, "--model.tokenizer=hf", f"--model.hf_assets_path={tmp_path}")
    # Eight GPUs work on what one rank reads.
    needed = 8 * max(stage.tokens_per_second for stage in hf.stages) / hf.loader_rate
    assert needed <= hf.loader_workers < needed + 1
    assert planned(TINY, gpus=1, device="cpu").loader_workers is None


def test_it_says_what_a_tokenizer_does_to_texts(tmp_path, caplog):
    ByteTokenizer().save_pretrained(tmp_path)
    inner = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.normalizer = Lowercase()
    inner.save(str(tmp_path / "tokenizer.json"))
    hf = ["--model.tokenizer=hf", f"--model.hf_assets_path={tmp_path}"]
    main(["--gpus", "1", "--device", "cpu", "--job.config_file", str(TINY), *hf])
    assert caplog.text.count("the tokenizer rewrites texts by Lowercase") == 1


def test_of_several_stages_with_one_attention_each_is_said_by_its_number():
    shown = table(planned(Path("train_configs/growing_98k.toml")))
    assert "stage 1 and 2 and 4, dense: fits, " in re.sub(r"\n {18}", " ", shown)


def test_the_plan_says_whether_it_fits_and_by_how_much(capsys):
    shown = table(planned(BASE, "--training.local_batch_size", "2"))
    assert max(map(len, shown.splitlines())) <= 80
    paragraphs = re.sub(r"\n {18}", " ", shown).splitlines()
    fits = [line for line in paragraphs if line.startswith("memory ")]
    assert len(fits) == 2 and all(
        " fits, " in line and "GiB to spare of 79.1" in line for line in fits
    )
    assert "stage 1, lighthouse: fits, " in fits[0] and "stage 2, dense: fits, " in fits[1]
    assert fits[0].endswith("GiB to spare of 79.1")  # more than a tenth
    assert "activations are the largest part, " in fits[1]
    assert fits[1].endswith('activation_checkpoint.mode = "full" makes them smaller')
    with pytest.raises(SystemExit):
        flags = "--activation_checkpoint.mode none --training.local_batch_size 4"
        main(["--gpus", "8", "--job.config_file", str(BASE), *flags.split()])
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"do not fit the device's 79\.1 GiB, by \d+\.\d GiB; activations are the", last
    )


def test_totals_and_mfu():
    result = planned(BASE)
    assert result.tokens == 16_000 * result.tokens_per_step
    assert result.checkpoint_bytes == 12 * result.parameters
    shown = table(result)
    assert f"tokens            {result.tokens:,} in all steps" in shown
    assert "checkpoint        3.2 GB" in shown
    for stage in result.stages:
        wanted = stage.tokens_per_second * stage.flops_per_token / 989e12
        assert stage.mfu == pytest.approx(wanted) and 0 < stage.mfu < 1
    assert planned(TINY, gpus=2, device="cpu").stages[0].mfu is None


def test_the_largest_micro_batch_is_the_last_that_fits():
    for stage, number in enumerate(planned(BASE).stages):
        most = number.largest_local_batch
        for batch, fits in ((most, True), (most + 1, False)):
            flags = [
                "--training.local_batch_size",
                str(batch),
                "--training.global_batch_size",
                "-1",
            ]
            result = planned(BASE, *flags)
            assert (result.stages[stage].memory_gib <= result.memory_limit_gib) == fits
    assert (
        planned(BASE, "--activation_checkpoint.mode", "full").stages[0].largest_local_batch > most
    )
    too_much = planned(
        BASE, "--training.seq_len", "1048576", "--activation_checkpoint.mode", "none"
    )
    assert too_much.stages[0].largest_local_batch == 0


@pytest.mark.parametrize(
    ("part", "flags", "advice"),
    [
        ("logits", [], "training.loss_chunk_tokens = 1024 makes them smaller"),
        ("logits", ["--training.loss_chunk_tokens", "512"], "training.loss_chunk_tokens = 256 "),
        ("activations", ["--activation_checkpoint.mode", "none"], "activation_checkpoint.mode = "),
        (
            "activations",
            ["--activation_checkpoint.mode", "full", "--training.local_batch_size", "2"],
            "training.local_batch_size = 1 halves them",
        ),
        (
            "activations",
            ["--activation_checkpoint.mode", "full"],
            "training.ffn_chunk_tokens = 16384 makes them smaller",
        ),
        (
            "activations",
            "--activation_checkpoint.mode full --training.ffn_chunk_tokens 8192".split(),
            "parallelism.context_parallel_degree = 2 halves them",
        ),
        (
            "activations",
            "--activation_checkpoint.mode full --training.seq_len 32768".split(),
            "parallelism.context_parallel_degree = 2 halves them",
        ),
        (
            "block inputs",
            ["--activation_checkpoint.mode", "full"],
            "activation_checkpoint.offload = true moves them to the host",
        ),
        (
            "block inputs",
            "--activation_checkpoint.mode full --activation_checkpoint.offload".split(),
            "parallelism.context_parallel_degree = 2 halves them",
        ),
        ("parameters and optimizer", [], "more GPUs, or parallelism.tensor_parallel_degree = 2"),
        (
            "parameters and optimizer",
            ["--training.ffn_chunk_tokens", "8192"],
            "more GPUs make them smaller",
        ),
    ],
)
def test_the_largest_part_has_a_key_that_makes_it_smaller(part, flags, advice):
    job = job_of(BASE, *flags)
    said = largest_part({"another": 1.0, part: 2.0}, job, layout_of(job, 8))
    assert said.startswith(f"{part} are the largest part, 2.0 GiB: {advice}")


def test_what_the_host_holds_is_planned() -> None:
    full = ["--activation_checkpoint.mode", "full"]
    plain, offloading = (
        planned(BASE, *full),
        planned(BASE, *full, "--activation_checkpoint.offload"),
    )
    sizes = model_of(job_of(BASE))
    stage, tokens = offloading.stages[0], job_of(BASE).training.seq_len
    # Eight ranks of a node, each with the inputs of all blocks but the last in bf16.
    assert stage.host_gib == 8 * (sizes.layers - 1) * tokens * 2 * sizes.dim / 2**30
    assert f"GiB of a node's host{stage.host_gib:19.1f}" in table(offloading)
    assert "node's host" not in table(plain) and plain.stages[0].host_gib == 0
    before, after = plain.stages[0].gib_by_part, stage.gib_by_part
    assert after["block inputs"] == pytest.approx(before["block inputs"] * 2 / sizes.layers)
    assert after["activations"] == before["activations"]
