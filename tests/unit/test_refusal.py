"""How a mistake is said: once, in one sentence, with exit code 2."""

import errno
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from lighthouse import refusal
from lighthouse.refusal import (
    FILE_VARIABLE,
    Refusal,
    end_in_a_rank,
    last_word,
    refusals,
    refuse,
    say_last,
)


class Exited(BaseException):
    """In the place of the process's end."""


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_(code: int) -> None:
        raise Exited(code)

    monkeypatch.setattr("os._exit", exit_)
    monkeypatch.delenv(FILE_VARIABLE, raising=False)


def test_inside_the_context_a_value_error_is_a_refusal() -> None:
    @refusals()
    def check(error: Exception | None) -> str:
        if error:
            raise error
        return "fine"

    assert check(None) == "fine"
    with pytest.raises(Refusal, match=r"^a.b = 1: must be 2$") as raised:
        check(ValueError("a.b = 1: must be 2"))
    assert isinstance(raised.value.__cause__, ValueError)
    own = Refusal("mine")
    with pytest.raises(Refusal) as raised:
        check(own)
    assert raised.value is own
    with pytest.raises(KeyError):
        check(KeyError("a bug"))


def test_a_command_ends_with_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        refuse(ValueError("a.b = 1: must be 2"))
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "refused: a.b = 1: must be 2\n"
    with pytest.raises(SystemExit):
        refuse(ValueError("a.b = 'naïve\n\udcff'"))
    assert capsys.readouterr().err == "refused: a.b = 'naïve\\n\\udcff'\n"
    with pytest.raises(SystemExit):
        refuse(PermissionError(errno.EACCES, "Permission denied", "/a/b"))
    assert capsys.readouterr().err == (
        "refused: /a/b can't be read or written (Permission denied); make it yours, or name "
        "another\n"
    )


def test_rank_0_says_it_at_once(exits: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exited, match="2"):
        end_in_a_rank("why", rank=0)
    assert capsys.readouterr().err == "refused: why\n"


def test_another_rank_leaves_rank_0_the_word_first(
    exits: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(Exited, match="2"):
        end_in_a_rank("why", rank=3)
    assert slept == [refusal._AFTER_RANK_0]
    assert capsys.readouterr().err == "refused: rank 3: why\n"


def test_a_launcher_is_told_through_a_file(
    exits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "word"))
    with pytest.raises(Exited, match="2"):
        end_in_a_rank("why", rank=0)
    assert capsys.readouterr().err == ""
    assert last_word(tmp_path / "word") == "refused: why"
    assert last_word(tmp_path / "word") is None
    say_last("done", str(tmp_path / "word"))
    assert last_word(tmp_path / "word") == "done"


def test_rank_0_has_the_word_before_others(tmp_path: Path) -> None:
    """Also of another node, whose launcher may be the last one to pass it on."""
    word = tmp_path / "word"
    for sentence in ("refused: rank 9: why", "refused: why", "refused: rank 8: why"):
        say_last(sentence, str(word))
    assert last_word(word) == "refused: why"


def test_where_the_process_above_cannot_be_told_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_last("refused: why", str(tmp_path / "nowhere" / "word"))
    assert capsys.readouterr().err == "refused: why\n"


def test_torchruns_report_has_the_sentence_and_no_traceback(
    exits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = tmp_path / "error.json"
    noted.write_text("{}")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(noted))
    for _ in range(2):  # it is not always there
        with pytest.raises(Exited):
            end_in_a_rank("why", rank=0)
        failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(noted))
        assert str(ChildFailedError("x", {0: failure})).count("traceback : refused: why\n") == 1
        noted.unlink()
