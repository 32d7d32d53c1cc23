"""What the metrics of a run say of its stages, against numbers by hand."""

import math
from typing import Any

import pytest

from lighthouse.runs.stage_reports import highest, split, stage_reports, steps_to_recover, table


def record(step: int, number: int | None, attention: str, loss: float, **more: Any) -> dict:
    found = {"step": step, "attention": attention, "loss": loss, "tokens_seen": 100.0 * step}
    return found | ({} if number is None else {"stage_number": number}) | more


def test_stages_of_one_attention_are_told_apart_by_number() -> None:
    steps = [record(s, n, "dense", 1.0) for s, n in ((1, 1), (2, 1), (3, 2), (4, 3))]
    assert [[r["step"] for r in stage] for stage in split(steps)] == [[1, 2], [3], [4]]


def test_runs_without_stages_are_split_by_attention_and_length() -> None:
    steps = [record(s, None, a, 1.0, seq_len=n) for s, a, n in ((1, "x", 8), (2, "x", 8))]
    steps += [record(3, None, "dense", 1.0, seq_len=8), {"step": 4, "loss": 1.0, "seq_len": 8}]
    assert [len(stage) for stage in split(steps)] == [2, 2]


def test_what_each_took() -> None:
    """The clock of an attention goes on in a later stage of the same attention."""
    clock = "time_metrics/dense_stage(s)"
    steps = [record(s, 1, "dense", 2.0, **{clock: 10.0 * s}) for s in range(1, 6)]
    steps += [
        record(
            s, 2, "lighthouse", 3.0, **{clock: 50.0, "time_metrics/lighthouse_stage(s)": s - 5.0}
        )
        for s in range(6, 9)
    ]
    steps += [
        record(
            s, 3, "dense", 5.0 - s / 10, **{clock: 50.0 + s - 8}, seq_len=64, tokens_per_second=s
        )
        for s in range(9, 13)
    ]
    first, second, third = stage_reports(steps)
    assert (first.first_step, first.last_step, first.tokens, first.seconds) == (1, 5, 500, 50)
    assert (first.loss_before, first.spike, first.steps_to_recover) == (None, None, None)
    assert (second.tokens, second.seconds, second.loss_before, second.spike) == (300, 3, 2, 3)
    assert (third.tokens, third.seconds, third.seq_len) == (400, 4, 64)
    assert third.loss_before == 3 and third.spike == pytest.approx(4.1)
    assert third.tokens_per_second == 11  # without step 9
    shown = table([first, second, third]).splitlines()
    assert len(shown) == 4 and shown[3].split()[:6] == ["3", "dense", "64", "9-12", "400", "4.0"]
    assert "not yet" in shown[3] and "not yet" not in shown[1]


def test_recovery_is_counted_from_the_first_step() -> None:
    stage = [record(10 + i, 2, "dense", 9.0 if i < 5 else 1.0) for i in range(30)]
    # The mean of ten is (5 * 9 + 5) / 10 = 5 at the tenth, and 1 from the fifteenth.
    assert steps_to_recover(stage, 5.0) == 9
    assert steps_to_recover(stage, 1.0) == 14
    assert steps_to_recover(stage, 0.5) is None
    assert steps_to_recover(stage[:9], 9.0) is None


@pytest.mark.parametrize("losses", [[math.inf, -math.inf], [1e308] * 2, [10**19, 1.0]])
def test_losses_without_a_mean_have_a_report(losses: list[float]) -> None:
    (stage,) = stage_reports([record(s, 1, "dense", loss) for s, loss in enumerate(losses)])
    assert not stage.final_loss < 1e18


def test_nan_is_the_highest() -> None:
    assert math.isnan(highest([1.0, math.nan, 2.0])) and highest([1.0, 2.0]) == 2.0


def test_a_stage_of_one_step() -> None:
    (only,) = stage_reports([record(1, 1, "dense", 2.0)])
    assert (only.tokens_per_second, only.seconds, only.final_loss) == (None, None, 2.0)
