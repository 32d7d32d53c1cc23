"""How the trainer's main ends: a refusal and a finished run are sentences, a bug stays a bug."""

import pytest
import torch

from lighthouse.refusal import DIVERGED, FILE_VARIABLE, Diverged, NothingToDo, Refusal
from lighthouse.titan.run import ending
from lighthouse.titan.run.ending import ends_in_one_sentence


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch):
    """Run a main that raises, on a rank; what `end_in_a_rank` was called with."""
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(ending, "end_in_a_rank", lambda *arguments: calls.append(arguments))
    monkeypatch.delenv(FILE_VARIABLE, raising=False)

    def run(error: Exception, rank: int = 0) -> list[tuple[str, int]]:
        monkeypatch.setenv("RANK", str(rank))

        @ends_in_one_sentence
        def main() -> None:
            raise error

        main()
        return calls

    return run


@pytest.mark.parametrize("rank", [0, 1])
def test_a_refusal_is_said_by_its_rank(ended, rank: int) -> None:
    assert ended(Refusal("why"), rank) == [("why", rank)]


def test_of_a_loaders_worker_the_sentence_is_said_without_its_traceback(ended) -> None:
    class Refuses(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> int:
            raise Refusal("no text for data-parallel rank 0 of 1: use another dataset")

    with pytest.raises(Refusal) as raised:
        next(iter(torch.utils.data.DataLoader(Refuses(), num_workers=1)))
    assert "Traceback" in str(raised.value)
    ((sentence, _),) = ended(raised.value)
    assert sentence == "no text for data-parallel rank 0 of 1: use another dataset"


def test_so_is_a_run_that_has_diverged(ended) -> None:
    assert ended(Diverged("step 3"), 1) == [("step 3", 1, DIVERGED)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_finished_run_is_a_line_of_rank_0(
    ended, rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(NothingToDo("nothing is left to train"), rank) == []
    assert capsys.readouterr().err == ("nothing is left to train\n" if rank == 0 else "")


def test_any_other_error_is_raised_as_it_is(ended) -> None:
    with pytest.raises(ValueError, match="a bug"):
        ended(ValueError("a bug"))
