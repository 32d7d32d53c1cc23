"""Validation in the present stage, under the dense attention to come, and with other futures."""

import itertools
import math
import os
import time
from typing import Any

import torch
from torch import Tensor, nn

from lighthouse.titan.llama3.chunked_loss import IGNORE_INDEX
from lighthouse.titan.llama3.layers import dense_stage, selecting_modules, wrapped_modules
from lighthouse.titan.run.future import Leak, draw_positions, leak_of, with_other_future

LOSS = "validation_metrics/loss"
DENSE_LOSS = "validation_metrics/dense_loss"
LEAK = "validation_metrics/leak"
LEAK_ERROR = "validation_metrics/leak_standard_error"

Batch = tuple[dict[str, Tensor], Tensor]


def validate_stage(validator: Any, model_parts: list[nn.Module], step: int) -> None:
    """Log the validation loss and, on request, what else it would be; in a dense stage nothing.

    With ``lighthouse.validate_dense`` the loss of the same sequences and weights under dense
    attention: what the loss would jump to if the dense stage began now. With
    ``lighthouse.validate_leak`` what the loss owes to later tokens (see :mod:`lighthouse.leak`).

    Args:
        validator: torchtitan's ``Validator``.
        model_parts: the model, in its present stage.
        step: of the training, for the log.
    """
    batches = validator.validation_dataloader
    extra_metrics = {}
    sparse = any(not module.dense for module in wrapped_modules(model_parts))
    section = validator.job_config.lighthouse
    if (section.validate_dense or section.validate_leak) and sparse:
        steps = validator.job_config.validation.steps
        batches = list(itertools.islice(batches, None if steps == -1 else steps))
    if section.validate_dense and sparse:
        with dense_stage(model_parts):
            extra_metrics[DENSE_LOSS] = _evaluate_untimed(validator, model_parts, batches)
    if section.validate_leak and selecting_modules(model_parts):
        leak = _measure_leak(validator, model_parts, batches, section.validate_leak)
        extra_metrics[LEAK] = leak.leak
        if leak.standard_error is not None:
            extra_metrics[LEAK_ERROR] = leak.standard_error
    loss = validator.evaluate(model_parts, batches)
    _warn_of_nonfinite(step, {LOSS: loss, **extra_metrics})
    validator.metrics_processor.log_validation(loss, step, extra_metrics)


def _warn_of_nonfinite(step: int, metrics: dict[str, float]) -> None:
    """Validation changes no weight, so it ends no run."""
    names = [name for name, value in metrics.items() if not math.isfinite(value)]
    if names and os.environ.get("RANK", "0") == "0":
        from torchtitan.tools.logging import logger

        logger.warning(
            f"step {step}: {', '.join(names)} not finite; training goes on, since its own losses "
            "and gradients are looked at in each step"
        )


def _measure_leak(
    validator: Any, model_parts: list[nn.Module], batches: list[Batch], draws: int
) -> Leak:
    """Each draw takes one position in every row of every rank's batch, and their mean loss.

    A row's other future is that of the next row, of the next batch in the last one.
    """
    labels = torch.cat([labels for _, labels in batches])
    # An evaluation may have moved the one, and not the other.
    tokens = torch.cat([inputs["input"] for inputs, _ in batches]).to(labels.device)
    rows, seq_len = batches[0][1].shape
    futures = tokens.roll(-1, dims=0)
    losses: tuple[list[float], list[float]] = ([], [])
    for draw in range(draws):
        taken = slice(draw % len(batches) * rows, draw % len(batches) * rows + rows)
        position_B = torch.tensor(draw_positions(rows, seq_len, seed=draw), device=labels.device)
        at_position = torch.arange(seq_len, device=labels.device) == position_B[:, None]
        label_BN = labels[taken].where(at_position, IGNORE_INDEX)
        changed_BN = with_other_future(tokens[taken], position_B, futures[taken])
        for of_future, input_BN in zip(losses, (tokens[taken], changed_BN), strict=True):
            batch = [({"input": input_BN}, label_BN)]
            of_future.append(_evaluate_untimed(validator, model_parts, batch))
    return leak_of(*losses)


def _evaluate_untimed(validator: Any, model_parts: list[nn.Module], batches: list[Any]) -> float:
    """Evaluate, and leave no trace in the logged throughput."""
    processor = validator.metrics_processor
    tokens, start = processor.ntokens_since_last_log, time.perf_counter()
    loss = validator.evaluate(model_parts, batches)
    processor.ntokens_since_last_log = tokens
    processor.time_last_log += time.perf_counter() - start
    return loss


def other_losses_text(extra_metrics: dict[str, float] | None) -> str:
    """The other losses for the console, beside the loss of the present stage."""
    known = {"dense loss": DENSE_LOSS, "leak": LEAK}
    values = {name: (extra_metrics or {}).get(key) for name, key in known.items()}
    return "".join(f"  {name}: {v:7.4f}" for name, v in values.items() if v is not None)
