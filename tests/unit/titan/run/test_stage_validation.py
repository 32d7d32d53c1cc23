"""Validation in both stages: the same batches, the stage restored, the speed not blurred."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lighthouse import LighthouseAttention, LighthouseConfig
from lighthouse.titan.run.stage_validation import other_losses_text, validate_stage


class Validator:
    """As much of torchtitan's as is used; the loss tells the stage it was evaluated in."""

    def __init__(self, validate_dense: bool, steps: int = 2, fail: bool = False) -> None:
        self.job_config = SimpleNamespace(
            lighthouse=SimpleNamespace(validate_dense=validate_dense, validate_leak=0),
            validation=SimpleNamespace(steps=steps),
        )
        self.validation_dataloader = iter(range(5))
        self.metrics_processor = self
        self.ntokens_since_last_log = 100
        self.time_last_log = self.start = time.perf_counter()
        self.fail = fail
        self.evaluated: list[tuple[bool, list[int]]] = []
        self.logged: list[tuple[float, int, dict[str, float]]] = []

    def evaluate(self, model_parts: list[nn.Module], batches: list[int]) -> float:
        dense = model_parts[0].dense
        self.ntokens_since_last_log += 1000
        if dense:
            time.sleep(0.05)
        if self.fail:
            raise RuntimeError("out of memory")
        self.evaluated.append((dense, list(batches)))
        return 7.0 if dense else 3.0

    def log_validation(self, loss: float, step: int, extra_metrics: dict[str, float]) -> None:
        self.logged.append((loss, step, extra_metrics))


@pytest.fixture
def layer() -> LighthouseAttention:
    return LighthouseAttention(LighthouseConfig(), nn.Identity())


@pytest.mark.parametrize(("steps", "batches"), [(2, [0, 1]), (-1, [0, 1, 2, 3, 4])])
def test_both_stages_see_the_same_batches(
    layer: LighthouseAttention, steps: int, batches: list[int]
) -> None:
    validator = Validator(validate_dense=True, steps=steps)
    validate_stage(validator, [layer], 9)
    assert validator.evaluated == [(True, batches), (False, batches)]
    assert validator.logged == [(3.0, 9, {"validation_metrics/dense_loss": 7.0})]
    assert not layer.dense
    # The speed that is logged is the present stage's: its tokens, its time.
    assert validator.ntokens_since_last_log == 1100
    assert validator.time_last_log - validator.start >= 0.05


@pytest.mark.parametrize(("asked", "dense"), [(False, False), (True, True)])
def test_once_where_not_asked_or_dense_already(
    layer: LighthouseAttention, asked: bool, dense: bool
) -> None:
    layer.dense = dense
    validator = Validator(validate_dense=asked)
    validate_stage(validator, [layer], 9)
    assert [stage for stage, _ in validator.evaluated] == [dense]
    assert validator.logged == [(7.0 if dense else 3.0, 9, {})]


def test_the_stage_is_restored_after_an_error(layer: LighthouseAttention) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        validate_stage(Validator(validate_dense=True, fail=True), [layer], 9)
    assert not layer.dense


def test_the_console_shows_a_dense_loss_where_there_is_one() -> None:
    assert other_losses_text(None) == other_losses_text({}) == ""
    assert other_losses_text({"validation_metrics/dense_loss": 1.25}) == "  dense loss:  1.2500"


class PeekingValidator(Validator):
    """Its model's loss at a position is the next token's number, less the one after it."""

    def __init__(self, text: list[tuple[dict[str, Any], torch.Tensor]], draws: int) -> None:
        super().__init__(validate_dense=False, steps=len(text))
        self.job_config.lighthouse.validate_leak = draws
        self.validation_dataloader = text  # type: ignore[assignment]
        self.positions: list[list[int]] = []

    def evaluate(self, model_parts: list[nn.Module], batches: Any) -> float:
        losses = []
        self.ntokens_since_last_log += 1000
        for inputs, label_BN in batches:
            tokens_BN = inputs["input"]
            row, position = (label_BN != -100).nonzero(as_tuple=True)
            if len(row) == label_BN.shape[0]:
                self.positions.append(position.tolist())
                losses.append((label_BN[row, position] - tokens_BN[row, position + 1]).float())
        return torch.cat(losses).mean().item() if losses else 3.0


def texts(batches: int, rows: int, seq_len: int) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """Row i of all is the number i, over and over."""
    numbers = torch.arange(batches * rows)[:, None].expand(-1, seq_len).contiguous()
    return [({"input": part}, part.clone()) for part in numbers.split(rows)]


def test_the_leak_is_the_difference_between_two_futures(layer: LighthouseAttention) -> None:
    """With its own future each label is the next token; with the next row's it is one less."""
    validator = PeekingValidator(texts(batches=2, rows=3, seq_len=16), draws=4)
    validate_stage(validator, [layer], 9)
    ((loss, step, metrics),) = validator.logged
    # The last row's next one is the first: five differences of -1, and one of 5.
    assert (loss, step) == (3.0, 9)
    assert metrics["validation_metrics/leak"] == pytest.approx((-1 + 1) / 2)
    assert metrics["validation_metrics/leak_standard_error"] == pytest.approx((4 / 3) ** 0.5 / 2)
    own, other = validator.positions[::2], validator.positions[1::2]
    assert own == other and len(own) == 4
    assert len({tuple(drawn) for drawn in own}) > 1
    # The speed that is logged is the present stage's.
    assert validator.ntokens_since_last_log == 1100


def test_the_leak_is_not_measured_in_a_dense_stage(layer: LighthouseAttention) -> None:
    layer.dense = True
    validator = PeekingValidator(texts(batches=2, rows=3, seq_len=16), draws=4)
    validate_stage(validator, [layer], 9)
    assert validator.logged == [(3.0, 9, {})]


def test_the_console_shows_a_leak_where_there_is_one() -> None:
    assert other_losses_text({"validation_metrics/leak": 0.125}) == "  leak:  0.1250"


def test_a_loss_that_is_not_finite_is_said_once(layer: LighthouseAttention, caplog: Any) -> None:
    validator = Validator(validate_dense=True)
    validator.evaluate = lambda *_: float("nan")  # type: ignore[method-assign]
    validate_stage(validator, [layer], 9)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith(
        "step 9: validation_metrics/loss, validation_metrics/dense_loss not finite; training goes"
    )
    assert len(validator.logged) == 1
