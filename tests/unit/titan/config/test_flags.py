"""The trainer's command line: what is wrong with it is one sentence."""

import pytest
from torchtitan.config import ConfigManager

from lighthouse.refusal import Refusal
from lighthouse.titan.config.flags import sentence_of


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            "--lighthouse.top_k 3",
            "Unrecognized options: --lighthouse.top_k, 3; perhaps --lighthous",
        ),
        ("--nonsense", "Unrecognized options: --nonsense"),
        ("--training.steps", "--training.steps: needs a value behind it"),
        ("--training.steps 5 6", "--training.steps 5 6: --training.steps has one value; leave '6'"),
        ("--training.steps=5 6", "--training.steps=5 6: --training.steps has one value; leave '6'"),
        ("bogus", "bogus: is no option; write --SECTION.KEY VALUE"),
        ("--lighthouse.window x", "Error parsing --lighthouse.window: 'x' is no whole number"),
        ("--training.max_norm 1,0", "Error parsing --training.max_norm: '1,0' is no number"),
        (
            "--job.config_file train_configs/tiny.toml --job.config-file=b.toml",
            "--job.config_file is given 2 times, as 'train_configs/tiny.toml' and 'b.toml'; ",
        ),
        ("--training.steps abc", "Error parsing --training.steps: 'abc' is no whole number"),
        ("--lighthouse.dense_layers [0,x]", "Error parsing --lighthouse.dense_layers: 'x' is "),
        ("--lighthouse.dense_layers [0,1.5]", "Error parsing --lighthouse.dense_layers: '1.5' is"),
        ("--lighthouse.dense_layers [0", "Error parsing --lighthouse.dense_layers: [0 has no ]"),
        ("--model.args.dim x", "Error parsing --model.args.dim: 'x' is no "),
        ("--training.sources x", "--training.sources: training.sources is a list of tables, which"),
        ("--training.sources.2.weight=3", "--training.sources.2.weight: training.sources is a li"),
        ("--lighthouse.scorer foo", "invalid choice 'foo' for argument '--lighthouse.scorer'. Exp"),
    ],
)
def test_a_wrong_flag_is_refused_in_one_sentence(
    flags: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Refusal) as refused:
        ConfigManager(checked=False).parse_args(flags.split())
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value) and "│" not in str(refused.value)
    assert capsys.readouterr() == ("", "")


def test_what_is_meant_is_a_few_options() -> None:
    with pytest.raises(Refusal) as refused:
        ConfigManager(checked=False).parse_args(["--lighthouse"])
    assert str(refused.value).count(" or ") == 2 and "--help" not in str(refused.value)


def test_what_is_meant_is_named() -> None:
    with pytest.raises(Refusal, match=r"; perhaps --lighthouse\.topk or .* was meant$"):
        ConfigManager(checked=False).parse_args(["--lighthouse.top_k", "3"])


@pytest.mark.parametrize(
    ("flags", "option", "off"),
    [
        ("--lighthouse.enable false", "--lighthouse.enable false", "--lighthouse.no-enable"),
        ("--lighthouse.enable=False", "--lighthouse.enable False", "--lighthouse.no-enable"),
        ("--checkpoint.no-enable true", "--checkpoint.no-enable true", "--checkpoint.no-enable"),
        (
            "--training.steps 4 --compile.enable 0 --lighthouse.topk 8",
            *("--compile.enable 0", "--compile.no-enable"),
        ),
    ],
)
def test_an_option_without_a_value_says_how_to_turn_it_off(flags, option, off) -> None:
    with pytest.raises(Refusal) as refused:
        ConfigManager(checked=False).parse_args(flags.split())
    assert str(refused.value).startswith(f"{option}: an option without a value; ")
    assert str(refused.value).endswith(f"{off} to turn it off")


@pytest.mark.parametrize(
    "words",
    [
        ["['optimizer', 'lr_scheduler']"],
        ['["optimizer", "lr_scheduler"]'],
        ["[optimizer,", "lr_scheduler]"],
        ["optimizer,lr_scheduler"],
        ["optimizer", "lr_scheduler"],
    ],
)
def test_a_list_is_what_messages_print_or_its_items(words: list[str]) -> None:
    flags = ["--checkpoint.exclude_from_loading", *words, "--training.steps", "4"]
    job = ConfigManager(checked=False).parse_args(flags)
    assert job.checkpoint.exclude_from_loading == ["optimizer", "lr_scheduler"]
    assert job.training.steps == 4


@pytest.mark.parametrize("words", ["[0, 3]", "0 3", "0,3"])
def test_a_list_of_numbers_too(words: str) -> None:
    for split in (words.split(), [words]) if "[" in words else (words.split(),):
        job = ConfigManager(checked=False).parse_args(["--lighthouse.dense_layers", *split])
        assert job.lighthouse.dense_layers == [0, 3]


def test_lists_of_lists_and_lists_or_text() -> None:
    flags = ["--parallelism.module_fqns_per_model_part", "[['a', 'b'], ['c']]"]
    flags += ["--quantize.grouped_mm.mx.fqns", "['d']"]
    job = ConfigManager(checked=False).parse_args(flags)
    assert job.parallelism.module_fqns_per_model_part == [["a", "b"], ["c"]]
    assert job.quantize.grouped_mm.mx.fqns == ["d"]


def test_the_help_prints_a_list_as_it_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ConfigManager(checked=False).parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--compile.components [A, B, ...]" in shown
    assert """(default: '["model", "loss"]')""" in shown


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        ConfigManager(checked=False).parse_args(["--help"])
    assert not exit_.value.code
    assert "--lighthouse.topk" in capsys.readouterr().out


FRAMED = """\
\x1b[31m╭─ Title ──╮\x1b[0m
│ --a b    │
│ c        │
│ ──────── │
│ help     │
╰──────────╯
"""
PLAIN = """\
 Title
 --------
  --a b
  c
  --------
  help

"""


@pytest.mark.parametrize("box", [FRAMED, PLAIN], ids=["UTF-8", "ASCII"])
def test_of_a_box_the_first_paragraph_is_taken(box: str) -> None:
    assert sentence_of(box) == "--a b c"


def test_a_file_alone_is_the_same_without_the_parser(tmp_path):
    """Two words and one for the same: only the second is parsed."""
    file = tmp_path / "job.toml"
    file.write_text("[training]\nsteps = 3\n[lighthouse]\ndense_layers = [0]\n")
    found = [
        ConfigManager(checked=False).parse_args(words)
        for words in (["--job.config_file", str(file)], [f"--job.config_file={file}"])
    ]
    assert found[0] == found[1] and found[0].job.config_file == str(file)
