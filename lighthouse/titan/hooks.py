"""What a run does beyond upstream, at the moments of its life: all that torchtitan/train.py calls.

The methods stand in the order in which they are called.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from lighthouse.launch import set_threads
from lighthouse.refusal import refusals
from lighthouse.titan.checkpoint.disk import check_space, check_writable
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.resume import check_resume
from lighthouse.titan.config.resolved_toml import write_resolved
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.llama3.chunked_loss import apply_chunked_loss
from lighthouse.titan.llama3.flops import flops_per_token
from lighthouse.titan.llama3.layers import apply_lighthouse, set_stage, stage_metrics
from lighthouse.titan.run.selection_observer import SelectionObserver
from lighthouse.titan.run.stage_clock import StageClock
from lighthouse.titan.run.stop import StopRequest

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


class RunHooks:
    """One for each rank's trainer. Made before there are process groups.

    Args:
        job_config: torchtitan's ``JobConfig``, checked.

    Raises:
        Refusal: the run's folder can't be written.
    """

    @refusals()
    def __init__(self, job_config: "JobConfig") -> None:
        set_threads()
        check_writable(job_config)
        self._job_config = job_config
        self._stages = Stages.of(job_config)

    def distributed(self, batch_degree: int) -> None:
        """Process groups exist, and nothing is built yet.

        Args:
            batch_degree: ranks that read text of their own.
        """
        self._batch_degree = batch_degree
        self._stop = StopRequest(self._job_config)
        write_resolved(self._job_config)

    @refusals()
    def model_built(self, model: nn.Module) -> None:
        """The model is on the meta device, and nothing else has touched it.

        Raises:
            Refusal: its checkpoints don't fit on the disk.
        """
        apply_lighthouse(model, self._job_config)
        apply_chunked_loss(model, self._job_config)
        check_space(self._job_config, sum(p.numel() for p in model.parameters()))

    def ready(
        self,
        model_parts: Iterable[nn.Module],
        model_args: Any,
        metrics_processor: Any,
        parallel_dims: Any,
    ) -> None:
        """All is built and wrapped, with first weights."""
        self._model_parts = list(model_parts)
        self._model_args = model_args
        self._metrics_processor = metrics_processor
        self._dense_flops_per_token = metrics_processor.num_flops_per_token
        self._observer = SelectionObserver(self._model_parts, self._job_config, parallel_dims)

    @refusals()
    def before_load(self, checkpointer: Any) -> None:
        """A checkpoint may be loaded now.

        Raises:
            Refusal: loading it would train something else than the user thinks.
            NothingToDo: it is of the run's last step.
        """
        self._counted_by = check_resume(self._job_config, self._batch_degree)
        checkpointer.run_record = RunRecord.of(self._job_config, self._batch_degree)

    def after_load(self, step: int, ntokens_seen: int) -> int:
        """State is that of ``step``, the last one trained; returns the tokens that a rank has seen.

        Each rank counts its own, and at another data-parallel degree it has seen another share.
        """
        self._clock = StageClock(self._job_config)
        self._clock.resume(step)
        self._stop.listen()
        return ntokens_seen * self._counted_by // self._batch_degree

    def begin_step(self, step: int) -> None:
        """``step`` is about to be trained."""
        self._clock.begin_step(step)
        set_stage(self._model_parts, self._stages.at(step))
        self._observer.begin_step(step)
        self._metrics_processor.num_flops_per_token = flops_per_token(
            self._model_parts, self._dense_flops_per_token, self._model_args, self._job_config
        )

    def metrics(self, step: int) -> dict[str, float]:
        """What to log at ``step`` besides upstream's metrics; a collective."""
        return {
            **stage_metrics(self._model_parts),
            **self._observer.metrics(),
            **self._clock.metrics(step),
        }

    def stop_after(self, step: int) -> bool:
        """Whether to save a checkpoint after ``step`` and end; a collective."""
        return self._stop.check(step)

    def end(self, step: int) -> None:
        """``step`` was the last one of this process; rank 0 only."""
        self._stop.conclude(step)
