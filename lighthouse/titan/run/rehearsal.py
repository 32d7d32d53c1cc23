"""One discarded step of each stage before the first real one, so that no stage fails late."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lighthouse.titan.config.stages import Stage
from lighthouse.titan.data.document_packing import Packing, one_document

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def is_wanted(job_config: "JobConfig", stages: int, device: torch.device) -> bool:
    """Whether a run with so many stages to come rehearses them: unless told, on a GPU."""
    if job_config.parallelism.pipeline_parallel_degree > 1:
        return False
    told = job_config.training.rehearse_stages
    return stages > 1 and device.type != "cpu" if told is None else told


def rehearse(trainer: Any, stages: Sequence[Stage], begin_stage: Callable[[Stage], None]) -> None:
    """Compute the gradients of a batch in each stage, and throw them away.

    What does not fit into memory, or does not compile, is found out before the first step. Weights,
    optimizer, data and random numbers are as they were. The optimizer's state, which is made in the
    first real step, is stood in for by as many bytes.

    Args:
        trainer: torchtitan's ``Trainer``, with what it goes on from loaded.
        stages: those to come.
        begin_stage: puts the trainer into a stage.

    Raises:
        Exception: whatever the stage's step would raise; its notes name the stage.
    """
    from torchtitan.tools.logging import logger

    with _random_numbers_kept(trainer.device), _optimizer_state(trainer):
        for stage in stages:
            begin_stage(stage)
            logger.info(
                f"Rehearsing stage {stage.number} of the run: {stage.attention}, "
                f"{stage.seq_len:,} tokens"
            )
            try:
                _step(trainer, stage)
            except Exception as error:
                error.add_note(
                    f"in the rehearsal of stage {stage.number} ({stage.attention} attention, "
                    f"sequences of {stage.seq_len:,} tokens); nothing was trained yet"
                )
                raise
    trainer.metrics_processor.device_memory_monitor.reset_peak_stats()


def _step(trainer: Any, stage: Stage) -> None:
    rows = stage.job(trainer.job_config).training.local_batch_size
    shape = rows, stage.seq_len
    tokens = torch.zeros(shape, dtype=torch.int64, device=trainer.device)
    inputs = {"input": tokens}
    if trainer.job_config.training.document_mask:
        packing = Packing.of_training(trainer.job_config, stage)
        of_rows = one_document(packing, rows)
        inputs = {name: x.to(trainer.device) for name, x in of_rows.items()}
    trainer.optimizers.zero_grad()
    trainer.forward_backward_step(
        input_dict=inputs,
        labels=tokens.clone(),
        global_valid_tokens=torch.tensor(float(tokens.numel()), device=trainer.device),
    )
    trainer.optimizers.zero_grad()


@contextmanager
def _random_numbers_kept(device: torch.device) -> Iterator[None]:
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield


@contextmanager
def _optimizer_state(trainer: Any) -> Iterator[None]:
    """Two numbers for each weight, where there is no state yet."""
    optimizers = list(trainer.optimizers)
    weights = [
        weight
        for optimizer in optimizers
        if not optimizer.state
        for group in optimizer.param_groups
        for weight in group["params"]
    ]
    stand_in = [torch.empty_like(weight) for weight in weights for _ in range(2)]
    try:
        yield
    finally:
        stand_in.clear()
