"""What a run does beyond upstream, at the moments of its life: all that torchtitan/train.py calls.

The methods stand in the order in which they are called.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn

from lighthouse.launch import set_threads
from lighthouse.orphan import has_trained
from lighthouse.refusal import refusals
from lighthouse.runs.folder import unfinished_steps, unreadable_checkpoints
from lighthouse.runs.owner import hold
from lighthouse.titan.checkpoint.damage import check_content, check_whole, say_unsealed
from lighthouse.titan.checkpoint.disk import check_space, check_writable
from lighthouse.titan.checkpoint.record import RECORD
from lighthouse.titan.checkpoint.resume import (
    check_loaded,
    check_resume,
    checkpoint_to_read,
)
from lighthouse.titan.checkpoint.seal import METADATA
from lighthouse.titan.checkpoint.text_changes import assumed_unchanged
from lighthouse.titan.config.resolved_toml import write_resolved
from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.titan.data.moved import go_on_reading
from lighthouse.titan.data.staged import StagedLoader
from lighthouse.titan.data.tally import PairsLeft
from lighthouse.titan.distributed.agree import first_of_ranks
from lighthouse.titan.distributed.exchange import share_sequences
from lighthouse.titan.distributed.layout import accumulation_of
from lighthouse.titan.llama3.chunked_ffn import apply_chunked_ffn
from lighthouse.titan.llama3.chunked_loss import apply_chunked_loss
from lighthouse.titan.llama3.compile import choose_norm_kernels, compile_each_stage
from lighthouse.titan.llama3.flops import flops_per_token
from lighthouse.titan.llama3.layers import apply_lighthouse, set_stage, stage_metrics
from lighthouse.titan.llama3.model_args import model_args_of, told_args
from lighthouse.titan.llama3.offload import apply_offload
from lighthouse.titan.llama3.residual import keep_residual_sums
from lighthouse.titan.llama3.tied import apply_tied
from lighthouse.titan.plan.host_memory import check_host_memory
from lighthouse.titan.run.assets import keep_assets, weights_left_out
from lighthouse.titan.run.nonfinite import UpdateGuard, nonfinite_moments, nonfinite_weights
from lighthouse.titan.run.quiet import keep_quiet
from lighthouse.titan.run.rehearsal import is_wanted, rehearse
from lighthouse.titan.run.schedule import follow_stages
from lighthouse.titan.run.selection_observer import SelectionObserver
from lighthouse.titan.run.stage_clock import StageClock
from lighthouse.titan.run.stop import StopRequest
from lighthouse.titan.run.take_over import settings_of_groups, take_over

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


class RunHooks:
    """One for each rank's trainer. Made before there are process groups.

    Args:
        job_config: torchtitan's ``JobConfig``, checked.

    Raises:
        Refusal: the run's folder can't be written, or another process trains there; the node's
            memory is too small for what its ranks offload.
    """

    @refusals()
    def __init__(self, job_config: "JobConfig") -> None:
        set_threads()
        keep_quiet()
        check_writable(job_config)
        check_host_memory(job_config)
        if os.environ.get("RANK", "0") == "0":
            from torchtitan.tools.logging import logger

            hold(Path(job_config.job.dump_folder), logger.info)
        self._job_config = job_config
        self._stages = Stages.of(job_config)
        self._stage: Stage | None = None
        self._announced: Stage | None = None
        self._pairs_left = PairsLeft()

    @refusals()
    def distributed(self, batch_degree: int) -> None:
        """Process groups exist, and nothing is built yet.

        Args:
            batch_degree: ranks that read text of their own.

        Raises:
            Refusal: the checkpoint to be loaded is damaged, or loading it would train something
                else than the user thinks.
            NothingToDo: it is of the run's last step.
        """
        self._batch_degree = batch_degree
        self._stop = StopRequest(self._job_config)
        self._checkpoint = checkpoint_to_read(self._job_config)
        if self._checkpoint is not None:
            check_whole(self._checkpoint)
        self._resume = check_resume(self._job_config, batch_degree)
        # Not before: a run that is refused has left nothing of its own in the folder.
        write_resolved(self._job_config, self._resume.step)
        if dist.get_rank() == 0:
            keep_assets(self._job_config)
        checkpoint = self._job_config.checkpoint
        folder = Path(self._job_config.job.dump_folder) / checkpoint.folder
        for step in unfinished_steps(folder) if checkpoint.enable else ():
            self._say(
                f"{folder / f'step-{step}'} has no {METADATA} and is passed over, to be written "
                "again: the rest of a save that was killed, or of a copy without hidden files"
            )
        for why in unreadable_checkpoints(folder) if checkpoint.enable else ():
            self._say(f"{why} and stays as it is: the run goes on from a newer one")
        for sentence in told_args(self._job_config) + weights_left_out(self._job_config):
            self._say(sentence)
        if self._resume.unrecorded is not None:
            self._say(
                f"{self._resume.unrecorded} has no {RECORD}, as of another trainer or a copy by "
                "halves: whether it was trained under this configuration is not known"
            )
        for change in self._resume.changes:
            why = "accepted" if change.needs_a_word else "no step taken is another one by it"
            self._say(f"After step {self._resume.step}: {change}; {why}")
        if self._resume.before is not None:
            for sentence in assumed_unchanged(self._resume.before, self._resume.record):
                self._say(sentence)

    def _say(self, sentence: str) -> None:
        """Once, of all ranks."""
        if dist.get_rank() == 0:
            from torchtitan.tools.logging import logger

            logger.info(sentence)

    @refusals()
    def model_built(self, model: nn.Module) -> None:
        """The model is on the meta device, and nothing else has touched it.

        Raises:
            Refusal: its checkpoints don't fit on the disk.
        """
        if self._job_config.model.name == "llama3":
            args = model_args_of(self._job_config)
            apply_tied(model, args)
            choose_norm_kernels(self._job_config, args.dim)
        apply_lighthouse(model, self._job_config)
        apply_chunked_loss(model, self._job_config)
        apply_chunked_ffn(model, self._job_config)
        compile_each_stage(self._job_config)
        keep_residual_sums(self._job_config)
        check_space(self._job_config, sum(p.numel() for p in model.parameters()))

    def ready(self, trainer: Any) -> None:
        """All that trains is built and wrapped, with first weights.

        Args:
            trainer: torchtitan's ``Trainer``.
        """
        self._trainer = trainer
        self._model_parts = list(trainer.model_parts)
        share_sequences(self._model_parts, self._job_config, trainer.parallel_dims)
        for part in self._model_parts:
            apply_offload(part, self._job_config, trainer.device)
        self._dense_flops_per_token = trainer.metrics_processor.num_flops_per_token
        self._observer = SelectionObserver(
            self._model_parts, self._job_config, trainer.parallel_dims
        )
        follow_stages(trainer.lr_schedulers, self._stages)
        self._guard = UpdateGuard(trainer, self._job_config)

    @refusals()
    def before_load(self, checkpointer: Any) -> None:
        """A checkpoint may be loaded now.

        Raises:
            Refusal: its bytes have changed.
        """
        if self._checkpoint is not None:
            if self._job_config.checkpoint.verify:
                check_content(self._checkpoint)
            else:
                say_unsealed(self._checkpoint)
        checkpointer.run_record = self._resume.record
        go_on_reading(self._resume, self._trainer.dataloader, checkpointer, self._say)
        self._settings = settings_of_groups(self._trainer.optimizers)

    @refusals()
    def after_load(self, step: int, ntokens_seen: int) -> int:
        """State is that of ``step``, the last one trained; returns the tokens that a rank has seen.

        Each rank counts its own, and at another data-parallel degree it has seen another share.

        Raises:
            Refusal: the checkpoint is of another step than its folder says; a weight, or what an
                optimizer has of it, is not finite, and that is not accepted.
        """
        nonfinite = nonfinite_weights(self._model_parts)
        moments = nonfinite_moments(self._model_parts, self._trainer.optimizers)
        first = first_of_ranks(next(iter([*nonfinite, *moments]), None))
        check_loaded(self._job_config, step, self._resume.step, first)
        if first is not None:
            self._say(f"Values in {first}, and perhaps behind it, are not finite, and accepted")
        self._clock = StageClock(self._job_config)
        self._clock.resume(step)
        take_over(self._trainer.optimizers, self._trainer.lr_schedulers, self._settings)
        ahead = [stage for stage in self._stages if stage.last > step]
        if is_wanted(self._job_config, len(ahead), self._trainer.device):
            rehearse(self._trainer, ahead, self._begin_stage)
        self._guard.begin(nonfinite)
        self._stop.listen()
        return ntokens_seen * self._resume.counted_by // self._batch_degree

    def begin_step(self, step: int) -> None:
        """``step`` is about to be trained."""
        self._clock.begin_step(step)
        stage = self._stages.at(step)
        if stage is not self._announced and self._stages.last.number > 1:
            self._say(
                f"Stage {stage.number} of {self._stages.last.number}: {stage.attention}, "
                f"{stage.seq_len:,} tokens a sequence, from step {step:,} to {stage.last:,}"
            )
        self._announced = stage
        self._begin_stage(stage)
        if isinstance(self._trainer.dataloader, StagedLoader):
            self._trainer.dataloader.begin_stage(stage)
        self._observer.begin_step(step)

    def before_update(self, step: int, losses: Sequence[Tensor], grad_norm: Tensor) -> None:
        """Gradients are clipped, and the optimizer runs next; without waiting for the device.

        Args:
            step: the one at hand.
            losses: this rank's, of each microbatch.
            grad_norm: of all ranks.
        """
        self._guard.before_update(step, losses, grad_norm)

    def _begin_stage(self, stage: Stage) -> None:
        """Put all but the data into a stage; does nothing if that is the present one."""
        if stage is self._stage:
            return
        self._stage = stage
        trainer, job = self._trainer, stage.job(self._job_config)
        set_stage(self._model_parts, stage)
        if stage.table:
            trainer.gradient_accumulation_steps = accumulation_of(job, self._batch_degree)
        self._count_flops()

    def _count_flops(self) -> None:
        """FLOPs per token of the stage, of the pairs that documents left since the last log."""
        assert self._stage is not None
        trainer, left = self._trainer, 1.0
        if self._job_config.training.document_mask:
            left = self._pairs_left.share(trainer.dataloader.tally)
        trainer.metrics_processor.num_flops_per_token = flops_per_token(
            self._model_parts,
            self._dense_flops_per_token,
            trainer.model_args,
            self._stage.job(self._job_config),
            self._job_config.training.seq_len,
            left,
        )

    def metrics(self, step: int) -> dict[str, float]:
        """What to log at ``step`` besides upstream's metrics, and its FLOPs; a collective."""
        self._count_flops()
        return {
            **stage_metrics(self._model_parts),
            **self._observer.metrics(),
            **self._clock.metrics(step),
            **self._text_metrics(),
            **self._guard.metrics(step),
        }

    def _text_metrics(self) -> dict[str, int]:
        tally = getattr(self._trainer.dataloader, "tally", None)
        return tally.metrics(self._trainer.device, self._batch_degree) if tally else {}

    def stop_after(self, step: int) -> bool:
        """Whether to save a checkpoint after ``step`` and end; a collective.

        Raises:
            Diverged: the loss, the gradients or the weights are not finite.
        """
        stopping = self._stop.check(step)
        has_trained()
        ends = stopping or step == self._job_config.training.steps
        saves = self._trainer.checkpointer._should_save(step, last_step=ends)
        self._guard.check(step, at_once=saves or ends)
        if saves:
            self._guard.check_weights(step)
        return stopping

    def end(self, step: int) -> None:
        """``step`` was the last one of this process; rank 0 only."""
        self._guard.check(step, at_once=True)  # where the text ended before the last step
        self._stop.conclude(step)
