"""``[[stages]]`` in files and on the command line: what is taken, and what is refused by name."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from torchtitan.config import ConfigManager, JobConfig

from lighthouse.refusal import Refusal
from lighthouse.titan.check.job import Machine
from lighthouse.titan.config.resolved_toml import to_toml
from lighthouse.titan.config.section import Lighthouse
from lighthouse.titan.config.stage_tables import OwnKeys, merge_stages, of_stage, take_flags

ONE_CPU = Machine("cpu", 1, here=True)
BASE: dict[str, Any] = {
    "model": {"flavor": "tiny_byte", "tokenizer": "byte"},
    "training": {"dataset": "python", "seq_len": 512, "local_batch_size": 2, "steps": 100},
    "lighthouse": {"enable": True, "topk": 16, "stratum": 8, "dense_from_step": 50},
    "checkpoint": {"enable": True, "last_save_model_only": False},
}
SHORT = {"steps": 3, "attention": "dense", "seq_len": 256, "local_batch_size": 4}
SPARSE = {"steps": 4, "attention": "lighthouse"}
DENSE = {"steps": 2, "attention": "dense"}
STAGES = [SHORT, SPARSE, DENSE]


@pytest.fixture
def parse(tmp_path: Path):
    """Parse a chain of files, the last of them on top, and flags."""

    def run(*layers: dict[str, Any], flags: str = "", machine: Machine = ONE_CPU) -> JobConfig:
        for i, layer in enumerate((BASE, *layers)):
            extends = {"job": {"extends": f"{i - 1}.toml"}} if i else {}
            (tmp_path / f"{i}.toml").write_text(tomli_w.dumps(extends | layer))
        top = str(tmp_path / f"{len(layers)}.toml")
        manager = ConfigManager(machine=machine)
        return manager.parse_args(["--job.config_file", top, *flags.split()])

    return run


def with_stage(number: int, **changes: Any) -> dict[str, Any]:
    """The three stages, one of them with other keys; None takes a key out."""
    tables = [dict(table) for table in STAGES]
    tables[number - 1] |= changes
    tables[number - 1] = {k: v for k, v in tables[number - 1].items() if v is not None}
    return {"stages": tables}


def test_they_replace_what_is_below(parse) -> None:
    job = parse({"stages": STAGES})
    assert job.stages == STAGES
    assert job.training.steps == 9 and job.lighthouse.dense_from_step is None
    job = parse({"stages": STAGES}, {"stages": [DENSE]})
    assert job.stages == [DENSE] and job.training.steps == 2


def test_files_above_may_repeat_the_sum_and_change_the_rest(parse) -> None:
    job = parse({"stages": STAGES}, {"training": {"steps": 9, "seq_len": 1024}})
    assert (job.training.steps, job.training.seq_len, len(job.stages)) == (9, 1024, 3)


def test_an_empty_list_takes_them_away(parse) -> None:
    job = parse({"stages": STAGES}, {"stages": []})
    assert (job.stages, job.training.steps, job.lighthouse.dense_from_step) == ([], 100, 50)


def test_a_stage_is_the_runs_configuration_with_its_keys(parse) -> None:
    job = parse(with_stage(2, global_batch_size=8, topk=8, dense_layers=[1]))
    short, sparse = (of_stage(job, table) for table in job.stages[:2])
    assert (short.training.seq_len, short.training.local_batch_size) == (256, 4)
    assert not short.lighthouse.enable and sparse.lighthouse.enable
    assert (sparse.training.seq_len, sparse.training.global_batch_size) == (512, 8)
    assert (sparse.lighthouse.topk, sparse.lighthouse.dense_layers) == (8, [1])
    assert job.lighthouse.topk == 16 and not sparse.stages


CONTRADICTIONS = {
    "steps in the file": (
        [{"stages": STAGES, "training": {"steps": 8}}],
        "",
        r"training\.steps = 8: \[\[stages\]\] have 3 \+ 4 \+ 2 = 9 steps; .* \(in .*1\.toml\)",
    ),
    "steps of one stage": (
        [{"stages": STAGES[:1], "training": {"steps": 8}}],
        "",
        r"training\.steps = 8: \[\[stages\]\] have 3 steps; ",
    ),
    "steps above": (
        [{"stages": STAGES}, {"training": {"steps": 8}}],
        "",
        r"training\.steps = 8: .* \(in .*2\.toml\)",
    ),
    "steps as a flag": ([{"stages": STAGES}], "--training.steps 8", r"training\.steps = 8: "),
    "dense_from_step in the file": (
        [{"stages": STAGES, "lighthouse": {"dense_from_step": 4}}],
        "",
        r"lighthouse\.dense_from_step = 4: .*leave it out \(in .*1\.toml\)",
    ),
    "dense_from_step as a flag": (
        [{"stages": STAGES}],
        "--lighthouse.dense_from_step 4",
        r"lighthouse\.dense_from_step = 4: ",
    ),
    "decay_ratio": (
        [{"stages": STAGES, "lr_scheduler": {"decay_from_stage": 3, "decay_ratio": 0.5}}],
        "",
        r"lr_scheduler\.decay_ratio = 0\.5: .*decay_from_stage = 3 makes it 2 of 9 steps",
    ),
    "total_steps": (
        [{"stages": STAGES, "lr_scheduler": {"decay_from_stage": 3, "total_steps": 20}}],
        "",
        r"lr_scheduler\.total_steps = 20: .*leave it out",
    ),
    "a warmup into the decay": (
        [{"stages": STAGES, "lr_scheduler": {"decay_from_stage": 2, "warmup_steps": 4}}],
        "",
        r"^lr_scheduler\.warmup_steps = 4: lr_scheduler\.decay_from_stage = 2 begins the decay "
        r"behind step 3, within the warmup; use 3 or fewer, or a later stage \(",
    ),
    "two warmups": (
        [{**with_stage(2, warmup_steps=2), "lr_scheduler": {"warmup_steps": 4}}],
        "",
        r"^stages\.2\.warmup_steps = 2: lr_scheduler\.warmup_steps = 4 is not over before that "
        r"stage, .* set lr_scheduler\.warmup_steps to at most 3, or leave the stage's out \(",
    ),
    "the default warmup and the first stage's": (
        [with_stage(1, warmup_steps=2)],
        "",
        r"^stages\.1\.warmup_steps = 2: lr_scheduler\.warmup_steps = 200 \(the default\) .* at "
        "most 0",
    ),
    "a schedule that ends early": (
        [{"stages": STAGES, "lr_scheduler": {"total_steps": 8}}],
        "",
        r"^lr_scheduler\.total_steps = 8: the schedule would end before training\.steps = 9",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_refused(parse, case: str) -> None:
    layers, flags, message = CONTRADICTIONS[case]
    with pytest.raises(Refusal, match=message):
        parse(*layers, flags=flags)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"stages": 3}, "stages = 3: must be a list of tables, got int"),
    "a table": ({"stages": SHORT}, "must be a list of tables, got dict"),
    "numbers": ({"stages": [1, 2]}, "stages = [1, 2]: must be a list of tables"),
    "nothing in it": ({"stages": [{}]}, "stages.1.steps: is missing"),
    "no attention": (with_stage(2, attention=None), "stages.2.attention: is missing"),
    "another attention": (with_stage(2, attention="x"), "stages.2.attention = 'x': must be one of"),
    "no step": (with_stage(2, steps=0), "stages.2.steps = 0: must be at least 1"),
    "fewer": (with_stage(2, steps=-1), "stages.2.steps = -1: must be at least 1"),
    "half a step": (with_stage(2, steps=1.5), "stages.2.steps = 1.5: must be int, got float"),
    "no length": (with_stage(1, seq_len=0), "stages.1.seq_len = 0: must be at least 1"),
    "NaN": (with_stage(1, lr_factor=float("nan")), "stages.1.lr_factor = nan: must be a finite"),
    "a rate beyond float32": (
        with_stage(1, lr_factor=1e300),
        "times stages.1.lr_factor = 1e+300: a step moves a weight by about that",
    ),
    "a negative rate": (with_stage(1, lr_factor=-1), "stages.1.lr_factor = -1: must be a finite"),
    "a long warmup": (
        with_stage(3, warmup_steps=3),
        "stages.3.warmup_steps = 3: must be zero or more, and at most the stage's 2 steps",
    ),
    "a typo": (
        with_stage(1, seqlen=3),
        "stages.1.seqlen: there is no such key; did you mean stages.1.seq_len",
    ),
    "of the run": (
        with_stage(1, mode="full"),
        "stages.1.mode: is the same in all stages; set activation_checkpoint.mode for the run",
    ),
    "a rate": (
        with_stage(3, lr=1e-5),
        "stages.3.lr: is the same in all stages; set optimizer.lr for the run, or stages.3.lr_f",
    ),
    "the mesh": (
        with_stage(1, tensor_parallel_degree=2),
        "set parallelism.tensor_parallel_degree for the run",
    ),
    "a section": (
        with_stage(1, validation={"seq_len": 64}),
        "stages.1.validation: is the same in all stages; set validation for the run",
    ),
    "a section that it may not write": (
        with_stage(2, lighthouse={"topk": 8}),
        "stages.2.lighthouse: a stage has no sections; write it as stages.2.topk",
    ),
    "a key with its section": (
        with_stage(1, **{"training.seq_len": 64}),
        "stages.1.training.seq_len: a stage has no sections; write it as stages.1.seq_len",
    ),
    "a dilation that no scorer has": (
        with_stage(2, dilation=8),
        "stages.2.dilation = 8: is for the scorers 'dilated' and 'gla', and no layer has one there",
    ),
    "a topk where no layer selects": (
        with_stage(2, topk=8, dense_layers=[0, 1, 2, 3]),
        "stages.2.topk = 8: all layers are dense or in a window there; leave it out, or name",
    ),
    "enable": (with_stage(2, enable=False), "stages.2.enable: a stage says it by stages.2.attent"),
    "useless": (
        with_stage(1, topk=8),
        "stages.1.topk: means nothing under stages.1.attention = 'dense'; leave it out",
    ),
    "no window for its layers": (
        with_stage(1, attention="window"),
        "stages.1.attention = 'window': lighthouse.window is not set; set stages.1.window to the",
    ),
    "its window in no layer": (
        with_stage(2, window=8),
        "stages.2.window = 8: no layer attends in a window there; set stages.2.window_layers, or",
    ),
    "the run's window in no stage": (
        {"stages": STAGES, "lighthouse": {"window": 8}},
        "lighthouse.window = 8: no layer attends in a window; set lighthouse.window_layers, make",
    ),
    "its topk": (with_stage(2, topk=9), "stages.2.topk = 9: must be a positive multiple of"),
    "its length": (with_stage(2, seq_len=500), "stages.2.seq_len = 500: must be divisible by"),
    "the run's topk": (
        {"stages": STAGES, "lighthouse": {"topk": 9}},
        "in stage 2: lighthouse.topk = 9: must be",
    ),
    "the run's rate": (
        {"stages": STAGES, "optimizer": {"lr": -1.0}},
        "optimizer.lr = -1.0: must be a finite number",
    ),
    "its batch": (
        with_stage(1, global_batch_size=6),
        "stages.1.global_batch_size = 6: must be a multiple of stages.1.local_batch_size",
    ),
    "the run's batch": (
        {
            "stages": [table | {"local_batch_size": 3} for table in STAGES],
            "training": {"global_batch_size": 9},
        },
        "training.global_batch_size = 9: must be a multiple of training.local_batch_size",
    ),
    "validation too short": (
        {"stages": STAGES, "validation": {"enable": True, "seq_len": 128}},
        "so topk can be at most validation.seq_len / pooling_factor ** (num_levels - 1) = 8",
    ),
    "validation too long": (
        {"stages": STAGES, "validation": {"enable": True, "seq_len": 1024}},
        "validation.seq_len = 1024: the model's positions end at the longest stage's seq_len = 512",
    ),
    "no Lighthouse": (
        {"stages": STAGES, "lighthouse": {"enable": False}},
        "stages.2.attention = 'lighthouse': lighthouse.enable is false; set it to true",
    ),
    "decay of a stage that is not": (
        {"stages": STAGES, "lr_scheduler": {"decay_from_stage": 4}},
        "lr_scheduler.decay_from_stage = 4: there are stages 1 to 3",
    ),
    "decay without stages": (
        {"lr_scheduler": {"decay_from_stage": 1}},
        "lr_scheduler.decay_from_stage = 1: there are no [[stages]]",
    ),
    "a pipeline of two lengths": (
        {"stages": [SHORT, DENSE], "parallelism": {"pipeline_parallel_degree": 2}},
        "stages.1.seq_len = 256: the run has parallelism.pipeline_parallel_degree = 2",
    ),
    "another model": (
        {
            "stages": [DENSE],
            "model": {"name": "deepseek_v3", "flavor": "debugmodel"},
        },
        "model.name = 'deepseek_v3': [[stages]] need 'llama3'",
    ),
    "an end that can't go on": (
        {"stages": STAGES[:2], "checkpoint": {"last_save_model_only": True}},
        "checkpoint.last_save_model_only = true: this run ends in a lighthouse stage",
    ),
}


OF_NO_STAGE = ("the run's rate", "the run's batch", "decay without stages")


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_refused_by_its_name(parse, case: str) -> None:
    layer, message = REFUSED[case]
    processes = 2 if "pipeline" in case else 1
    with pytest.raises(Refusal) as error:
        parse(layer, machine=Machine("cpu", processes, here=True))
    assert message in str(error.value)
    assert "in stage 1: stages.1." not in str(error.value)
    assert str(error.value).endswith("/1.toml)") == (case not in OF_NO_STAGE)


def test_the_file_of_the_stages_is_not_taken_for_that_of_another_key(parse) -> None:
    of_below = {"lighthouse": {"topk": 9}}
    with pytest.raises(Refusal, match=r"^in stage 2: .* \(\[\[stages\]\] stand in \S+2\.toml\)$"):
        parse(of_below, {"stages": STAGES})
    with pytest.raises(Refusal, match=r"^stages\.2\.topk = 9: .* \(in \S+1\.toml\)$"):
        parse(with_stage(2, topk=9), {"metrics": {"log_freq": 1}})


OF_ALL = {
    "training.seq_len": [t | {"seq_len": 256} for t in STAGES],
    "training.local_batch_size": [t | {"local_batch_size": 4} for t in STAGES],
    "training.global_batch_size": [t | {"global_batch_size": 4} for t in STAGES],
    "lighthouse.topk": with_stage(2, topk=16)["stages"],
    "lighthouse.window": [DENSE | {"attention": "window", "window": 8}, DENSE],
}


@pytest.mark.parametrize("key", OF_ALL)
def test_what_each_stage_says_itself_can_not_be_said_for_the_run(parse, key: str) -> None:
    stages, (section, name) = {"stages": OF_ALL[key]}, key.split(".")
    message = (
        rf"^{section}\.{name} = 8: each stage that it is for has its own; set stages\.N\.{name}"
    )
    above = {section: {name: 8}}
    with pytest.raises(Refusal, match=rf"{message} instead \(in \S+2\.toml\)$"):
        parse(stages, above)
    for flag in (f"--{key} 8", f"--{key}=8", f"--{section}.{name.replace('_', '-')} 8"):
        with pytest.raises(Refusal, match=rf"{message} instead \(\[\[stages\]\] stand in \S+1"):
            parse(stages, flags=flag)
    parse(above if "batch" not in key else {}, stages)


def test_an_empty_list_that_each_stage_says_itself(parse) -> None:
    stages = with_stage(2, dense_layers=[0])
    for flag in (
        "--lighthouse.dense_layers",
        "--lighthouse.dense-layers",
        "--lighthouse.dense_layers=[]",
    ):
        with pytest.raises(Refusal, match=r"^lighthouse\.dense_layers = \[\]: each stage that it"):
            parse(stages, flags=flag)


def test_a_switch_that_each_stage_says_itself(parse) -> None:
    for flag, value in (("cover_prefix", True), ("no-cover_prefix", False)):
        with pytest.raises(Refusal, match=rf"^lighthouse\.cover_prefix = {value}: each stage that"):
            parse(with_stage(2, cover_prefix=True), flags=f"--lighthouse.{flag}")


def test_what_some_stage_takes_from_the_run_can_be_said_for_it(parse) -> None:
    job = parse(with_stage(2, seq_len=256), flags="--training.seq_len 1024 --lighthouse.topk 8")
    assert [of_stage(job, table).training.seq_len for table in job.stages] == [256, 256, 1024]
    assert of_stage(job, job.stages[1]).lighthouse.topk == 8


def keys_of_the_run() -> list[str]:
    taken = {f.name for f in fields(Lighthouse)} | {f.name for f in fields(OwnKeys)}
    sections = [f for f in fields(JobConfig) if is_dataclass(f.type)]
    return [
        f"{section.name}.{key.name}"
        for section in sections
        for key in fields(section.type)
        if key.name not in taken
    ]


def test_every_other_key_is_refused_in_a_stage(parse) -> None:
    keys = keys_of_the_run()
    assert len(keys) > 100
    for key in keys:
        for name in (key, key.split(".")[1]):
            with pytest.raises(
                ValueError, match=rf"^stages\.1\.{name}: is the same in all stages; "
            ):
                merge_stages([(Path("a"), {"stages": [DENSE | {name: 1}]})], {}, [])


@pytest.mark.parametrize(
    "changes",
    [
        with_stage(2, window=8, window_layers=[0]),
        with_stage(1, attention="window", window=8),
        {**with_stage(1, attention="window"), "lighthouse": {"window": 8}},
        {**with_stage(2, window_layers=[0]), "lighthouse": {"window": 8}},
        {"stages": STAGES, "lighthouse": {"window": 8, "window_layers": [0]}},
        {**with_stage(2, window=16), "lighthouse": {"window": 8, "window_layers": [0]}},
    ],
)
def test_a_window_may_be_for_one_stage(parse, changes: dict[str, Any]) -> None:
    parse(changes)


def test_lengths_must_suit_the_layout(parse) -> None:
    two = Machine("cpu", 2, here=True)
    ring = "--parallelism.context_parallel_degree 2 --lighthouse.stratum 4"
    parse({"stages": STAGES}, flags=ring, machine=two)
    with pytest.raises(Refusal, match=r"stages\.1\.seq_len = 258: .* nearest is 256"):
        parse(with_stage(1, seq_len=258), flags=ring, machine=two)
    # torchtitan asserts it of the run's own, which no stage has here.
    own = {"stages": [table | {"seq_len": 256} for table in STAGES], "training": {"seq_len": 258}}
    with pytest.raises(Refusal, match=r"^training\.seq_len = 258: .* nearest is 256"):
        parse(own, flags=ring, machine=two)


@pytest.mark.parametrize(
    ("flags", "number", "key", "value"),
    [
        ("--stages.1.steps 5 --metrics.log_freq 1", 1, "steps", 5),
        ("--metrics.log_freq 1 --stages.1.steps=5", 1, "steps", 5),
        ("--stages.1.steps 4 --stages.1.steps 5", 1, "steps", 5),
        ("--stages.1.local-batch-size 1", 1, "local_batch_size", 1),
        ("--stages.1.lr_factor 1e-1", 1, "lr_factor", 0.1),
        ("--stages.2.selection published", 2, "selection", "published"),
        ("--stages.2.dense_layers 0 1 --metrics.log_freq 1", 2, "dense_layers", [0, 1]),
        ("--stages.2.dense_layers 0", 2, "dense_layers", [0]),
        ("--stages.2.dense_layers=[0,1]", 2, "dense_layers", [0, 1]),
        ("--stages.2.dense_layers 0,1", 2, "dense_layers", [0, 1]),
        ("--stages.2.dense_layers [0, 1]", 2, "dense_layers", [0, 1]),
        ("--stages.2.dense_layers []", 2, "dense_layers", []),
        ("--stages.2.layer_overrides 2-3:topk=8", 2, "layer_overrides", ["2-3:topk=8"]),
        ("--stages.2.cover_prefix false", 2, "cover_prefix", False),
        ("--stages.2.cover_prefix False", 2, "cover_prefix", False),
        ("--stages.2.no-cover_prefix --metrics.log_freq 1", 2, "cover_prefix", False),
        ("--stages.2.cover_prefix", 2, "cover_prefix", True),
    ],
)
def test_flags(parse, flags: str, number: int, key: str, value: object) -> None:
    job = parse({"stages": STAGES}, flags=flags)
    assert job.stages[number - 1][key] == value
    assert job.training.steps == sum(table["steps"] for table in job.stages)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--stages.0.steps 5", r"^stages\.0\.steps: there are stages 1 to 3$"),
        ("--stages.4.steps 5", r"^stages\.4\.steps: there are stages 1 to 3$"),
        ("--stages.one.steps 5", r"^--stages\.one\.steps: must be --stages\.N\.KEY, N counted"),
        ("--stages.1 5", r"^--stages\.1: must be --stages\.N\.KEY"),
        ("--stages 5", r"^--stages: must be --stages\.N\.KEY"),
        ("--stages=[]", r"^--stages: must be --stages\.N\.KEY"),
        ("--stages.1.steps", r"^--stages\.1\.steps: needs a value$"),
        ("--stages.1.steps -5", r"^stages\.1\.steps = -5: must be at least 1"),
        ("--stages.1.steps 1 2", r"^stages\.1\.steps = \[1, 2\]: must be int"),
        ("--stages.1.steps many", r"^stages\.1\.steps = 'many': must be int"),
        ("--stages.1.step 5", r"^stages\.1\.step: there is no such key; did you mean stages\.1\."),
    ],
)
def test_flags_that_are_refused(parse, flags: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        parse({"stages": STAGES}, flags=flags)


OF_THE_FILE: dict[str, tuple[dict[str, Any], str]] = {
    "of its own": (with_stage(2, seq_len=0), r"seq_len = 0: must be at least 1"),
    "with the model": (with_stage(2, topk=9), r"topk = 9: must be a positive multiple of"),
    "among stages": (
        {"stages": STAGES, "lr_scheduler": {"decay_from_stage": 4}},
        r"decay_from_stage = 4: there are stages 1 to 3",
    ),
    "of the last": (
        {"stages": STAGES[:2], "checkpoint": {"last_save_model_only": True}},
        r"this run ends in a lighthouse stage .*",
    ),
}


@pytest.mark.parametrize("flags", ["", "--stages.1.steps 5"])
@pytest.mark.parametrize("case", OF_THE_FILE)
def test_a_mistake_of_the_file_names_it(parse, case: str, flags: str) -> None:
    layer, message = OF_THE_FILE[case]
    with pytest.raises(Refusal, match=rf"{message}.* \((in|\[\[stages\]\] stand in) \S+1\.toml\)$"):
        parse(layer, flags=flags)


@pytest.mark.parametrize("flag", ["seq_len -1", "topk 9", "seq_len 500"])
def test_a_mistake_of_a_flag_names_no_file(parse, flag: str) -> None:
    key, value = flag.split()
    for layer in ({"stages": STAGES}, with_stage(2, **{key: 0})):
        with pytest.raises(Refusal, match=rf"^stages\.2\.{key} = {value}: ") as error:
            parse(layer, flags=f"--stages.2.{flag}")
        assert ".toml" not in str(error.value)


def test_flags_need_stages(parse) -> None:
    with pytest.raises(Refusal, match=r"^stages\.1\.steps: there are no \[\[stages\]\]$"):
        parse(flags="--stages.1.steps 5")


def test_other_arguments_are_left_alone() -> None:
    given = "--a 1 --stages.1.steps 5 --b --stages.2.dense_layers 0 1 --c=3".split()
    rest, flags = take_flags(given)
    assert rest == "--a 1 --b --c=3".split()
    assert flags == "--stages.1.steps 5 --stages.2.dense_layers 0 1".split()


@pytest.mark.parametrize("number", [1, 2])
def test_a_warmup_may_end_where_something_else_begins(parse, number: int) -> None:
    """A decay, or a stage's own warmup; a decay over all steps begins behind the warmup."""
    stage = with_stage(2, warmup_steps=4)
    parse({**stage, "lr_scheduler": {"decay_from_stage": number, "warmup_steps": 3}})


def test_the_decay_is_a_share_of_all_steps(parse) -> None:
    schedule = {"decay_from_stage": 2, "warmup_steps": 2}
    job = parse({"stages": STAGES, "lr_scheduler": schedule})
    assert round(job.lr_scheduler.decay_ratio * 9) == 6


def test_written_and_read_again_it_is_the_same(parse, tmp_path: Path) -> None:
    schedule = {"decay_from_stage": 3, "warmup_steps": 2}
    job = parse({"stages": STAGES, "lr_scheduler": schedule})
    file = tmp_path / "config.toml"
    file.write_text(to_toml(job))
    arguments = ["--job.config_file", str(file)]
    again = ConfigManager(machine=ONE_CPU).parse_args(arguments)
    assert to_toml(again) == to_toml(job) and again.stages == job.stages
    assert again.lr_scheduler == job.lr_scheduler
    # A stage may be made longer: nothing that follows from it was written down.
    longer = ConfigManager(machine=ONE_CPU).parse_args([*arguments, "--stages.3.steps=11"])
    assert round(longer.lr_scheduler.decay_ratio * 18) == 11
