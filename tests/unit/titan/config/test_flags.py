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
        ("--training.steps", "Missing value for argument '--training.steps'. Expected 1 values."),
        ("--training.steps abc", "Error parsing --training.steps: invalid literal for int() with "),
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


def test_what_is_meant_is_named() -> None:
    with pytest.raises(Refusal, match=r"; perhaps --lighthouse\.topk or .* was meant$"):
        ConfigManager(checked=False).parse_args(["--lighthouse.top_k", "3"])


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
