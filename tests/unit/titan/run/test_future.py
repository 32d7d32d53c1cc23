"""Other futures: what is kept, what is replaced, and what the losses of both say."""

import math
import statistics

import pytest
import torch

from lighthouse.titan.run.future import draw_positions, leak_of, with_other_future


def test_all_up_to_the_position_is_kept() -> None:
    tokens, other = torch.arange(8).expand(3, -1), 100 + torch.arange(8).expand(3, -1)
    changed = with_other_future(tokens, torch.tensor([0, 3, 6]), other)
    assert changed.tolist() == [
        [0, 101, 102, 103, 104, 105, 106, 107],
        [0, 1, 2, 3, 104, 105, 106, 107],
        [0, 1, 2, 3, 4, 5, 6, 107],
    ]


def test_every_position_has_a_future() -> None:
    drawn = draw_positions(1000, seq_len=16, seed=3)
    assert set(drawn) == set(range(15))
    assert drawn == draw_positions(1000, seq_len=16, seed=3)
    assert drawn != draw_positions(1000, seq_len=16, seed=4)


def test_leak_and_its_error() -> None:
    leak = leak_of([1.0, 2.0, 3.0], [1.5, 2.0, 4.0])
    assert (leak.draws, leak.true_future, leak.other_future) == (3, 2.0, 2.5)
    assert leak.leak == pytest.approx(0.5)
    assert leak.standard_error == pytest.approx(statistics.stdev([0.5, 0.0, 1.0]) / 3**0.5)
    assert leak_of([1.0], [2.0]).standard_error is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_leak_of_losses_that_are_no_numbers_is_none(bad: float) -> None:
    """It is no error: a validation ends no run."""
    leak = leak_of([1.0, bad, 1.0], [bad, 1.0, 1.0])
    assert not math.isfinite(leak.leak) and leak.standard_error is not None
    assert not math.isfinite(leak.standard_error)
