"""Measures of subjects whose answers are known."""

import math
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lighthouse.evaluate.measures import ask, find_needles, positions
from lighthouse.evaluate.subject import Subject
from lighthouse.runs.files import check_writable
from lighthouse.tasks import recall

CPU = torch.device("cpu")
VOCABULARY = 128


def encode(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    return [ord(c) for c in text], [(i, i + 1) for i in range(len(text))]


def subject(sure_of: str) -> Subject:
    """Knows the next character of its text, or says that all are alike.

    Args:
        sure_of: ``"everything"``, ``"nothing"``, or ``"what was said"``: it repeats what followed
            the last 5 characters before.
    """

    def next_of(tokens_N: Tensor, position: int) -> int | None:
        text = "".join(map(chr, tokens_N.tolist()))
        if sure_of == "everything":
            return ord(text[position + 1])
        seen = text[: position + 1]
        before = seen[:-1].rfind(seen[-5:])
        found = before >= 0 and sure_of == "what was said"
        return ord(text[before + 5]) if found else None

    def logits(tokens_N: Tensor, position_P: Tensor) -> Tensor:
        found_PV = torch.zeros(len(position_P), VOCABULARY)
        for row, position in enumerate(position_P.tolist()):
            token = next_of(tokens_N, position)
            if token is not None:
                found_PV[row, token] = 50.0
        return found_PV

    def losses(tokens_N: Tensor, labels_N: Tensor) -> Tensor:
        """1, but 0 from the first token that stood at the start too on."""
        same = tokens_N == tokens_N[0]
        return 1.0 - same.cumsum(0).gt(1).float()

    return Subject("it", None, 10**6, CPU, encode, logits, losses)


def quiet(_: str) -> None:
    pass


def test_needles_are_found_by_who_repeats_what_was_said() -> None:
    for sure_of, share in (("everything", 1.0), ("what was said", 1.0)):
        cells = find_needles(subject(sure_of), [500, 900], (0.0, 0.5, 1.0), 4, 0, quiet)
        assert [(c.length, c.depth) for c in cells] == [
            (n, d) for n in (500, 900) for d in (0.0, 0.5, 1.0)
        ]
        assert all(cell.right == share * cell.trials for cell in cells)
    ignorant = find_needles(subject("nothing"), [500], (0.5,), 40, 0, quiet)
    assert ignorant[0].right < 15  # it always says 0


def test_answers_are_worth_their_log_probability() -> None:
    (knows,) = ask(subject("what was said"), "recall", recall, [900], 3, 0, quiet)
    assert knows.answers == 24 and knows.right == 1.0
    assert knows.log_probability == pytest.approx(0.0, abs=1e-6)
    (ignorant,) = ask(subject("nothing"), "recall", recall, [900], 3, 0, quiet)
    assert ignorant.right == 0.0
    assert ignorant.log_probability == pytest.approx(4 * math.log(1 / VOCABULARY))


def test_too_few_tokens_for_a_task_are_named() -> None:
    with pytest.raises(ValueError, match="20 tokens are too few"):
        ask(subject("nothing"), "recall", recall, [20], 1, 0, quiet)


def test_loss_by_position_and_what_the_far_context_is_worth() -> None:
    n, random_tokens = 1024, random.Random(0)
    text = []
    for number in range(3):
        tokens = torch.tensor([random_tokens.randrange(50, 90) for _ in range(n)])
        tokens[0], tokens[300] = number, number  # a foreign start has another first token
        text.append((tokens, tokens))
    found = positions(subject("nothing"), text, quiet)
    assert found.bins == [(0, 256, 1.0), (256, 512, pytest.approx(44 / 256)), (512, 1024, 0.0)]
    assert found.loss == pytest.approx(300 / 1024)
    assert (found.far_from, found.far, found.far_error) == (512, 0.0, 0.0)
    assert (found.far_foreign, found.gain, found.gain_error) == (0.0, 0.0, 0.0)


def test_a_foreign_start_can_be_worth_less() -> None:
    text = []
    for number in range(2):
        tokens = torch.arange(1024) % 40 + 50
        tokens[0], tokens[1000] = number, number
        text.append((tokens, tokens))
    found = positions(subject("nothing"), text, quiet)
    # With the other's first token nothing stood at the start too, and all losses stay 1.
    assert found.far == pytest.approx(488 / 512) and found.far_foreign == 1.0
    assert found.gain == pytest.approx(24 / 512) and found.gain_error == 0.0


def test_a_folder_for_the_results_that_can_not_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match=r"/proc/nowhere can't be written .*--output"):
        check_writable(Path("/proc/nowhere"))
