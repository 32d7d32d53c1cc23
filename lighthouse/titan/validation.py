"""Validation in the present stage and, on request, under the dense attention that is to come."""

import itertools
import time
from typing import Any

from torch import nn

from lighthouse.titan.model import dense_stage, lighthouse_modules

DENSE_LOSS = "validation_metrics/dense_loss"


def validate(validator: Any, model_parts: list[nn.Module], step: int) -> None:
    """Log the validation loss and, with ``lighthouse.validate_dense``, that under dense attention.

    The two are of the same sequences and weights: the second is what the loss would jump to if the
    dense stage began now. It is not logged where all layers are dense already.

    Args:
        validator: torchtitan's ``Validator``.
        model_parts: the model, in its present stage.
        step: of the training, for the log.
    """
    batches = validator.validation_dataloader
    extra_metrics = {}
    sparse = [module for module in lighthouse_modules(model_parts) if not module.dense]
    if validator.job_config.lighthouse.validate_dense and sparse:
        steps = validator.job_config.validation.steps
        batches = list(itertools.islice(batches, None if steps == -1 else steps))
        with dense_stage(sparse):
            extra_metrics[DENSE_LOSS] = _evaluate_untimed(validator, model_parts, batches)
    loss = validator.evaluate(model_parts, batches)
    validator.metrics_processor.log_validation(loss, step, extra_metrics)


def _evaluate_untimed(validator: Any, model_parts: list[nn.Module], batches: list[Any]) -> float:
    """Evaluate, and leave no trace in the logged throughput."""
    processor = validator.metrics_processor
    tokens, start = processor.ntokens_since_last_log, time.perf_counter()
    loss = validator.evaluate(model_parts, batches)
    processor.ntokens_since_last_log = tokens
    processor.time_last_log += time.perf_counter() - start
    return loss


def dense_loss_text(extra_metrics: dict[str, float] | None) -> str:
    """The dense loss for the console, beside the loss of the present stage."""
    if not extra_metrics or DENSE_LOSS not in extra_metrics:
        return ""
    return f"  dense loss: {extra_metrics[DENSE_LOSS]:7.4f}"
