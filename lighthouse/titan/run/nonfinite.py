"""Losses, gradients and weights that are not finite: no update, no checkpoint, and an end in words.

Whether a step's update is withheld is decided on the device, for all ranks alike, before the
optimizer runs. The host reads the verdict when the next step is in the queue, so that it never
waits for the accelerator to run dry.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lighthouse.refusal import Diverged
from lighthouse.runs.files import write_atomic
from lighthouse.runs.folder import DIVERGED_FILE, newest_checkpoint
from lighthouse.titan.distributed.agree import first_of_ranks

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

MOST_IN_A_ROW = 10
"""Steps left out one after the other that end a run: no later one would be better."""

SKIPPED = "nonfinite_steps"
"""The metric that counts steps left out, in this process."""

_WHAT = ("the loss", "the gradient norm")
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class _Verdict:
    """Of a step; ``bad`` is on its way to the host until ``event``, None on a CPU."""

    step: int
    bad: Tensor
    event: torch.Event | None

    def what(self) -> str | None:
        """What was not finite. Waits for the device to come to that step's update."""
        if self.event is not None:
            self.event.synchronize()
        return next((name for name, bad in zip(_WHAT, self.bad, strict=True) if bad), None)


class UpdateGuard:
    """Keeps what is not finite out of the weights, the optimizer's state and checkpoints.

    All ranks make one and call it in every step. A fused optimizer leaves weights, moments and its
    count of steps as they were; another one gets gradients of zero.

    Args:
        trainer: torchtitan's ``Trainer``, built.
        job_config: its ``JobConfig``.
    """

    def __init__(self, trainer: Any, job_config: "JobConfig") -> None:
        self._trainer = trainer
        self._job_config = job_config
        self._skips = job_config.training.nonfinite == "skip"
        # A faked group has one process, whatever its size.
        self._shared = dist.get_world_size() > 1 and job_config.comm.mode == "default"
        self._unread: deque[_Verdict] = deque()
        self._skipped = self._in_a_row = 0
        self._end: str | None = None
        self._known: list[str] = []

    def begin(self, known: list[str]) -> None:
        """Training goes on: what an earlier process has diverged at is no longer the run's end.

        Args:
            known: weights of this rank that are accepted although not finite.
        """
        self._known = known
        if dist.get_rank() == 0:
            (Path(self._job_config.job.dump_folder) / DIVERGED_FILE).unlink(missing_ok=True)

    def before_update(self, step: int, losses: Sequence[Tensor], grad_norm: Tensor) -> None:
        """Withhold the update of a step that is not finite; the host does not wait.

        Args:
            step: the one at hand.
            losses: this rank's, of each microbatch.
            grad_norm: of all ranks' gradients together.
        """
        loss = torch.stack([_whole(loss).reshape(()) for loss in losses]).sum()
        bad = 1 - torch.stack([loss, grad_norm.to(loss.device)]).isfinite().float()
        if self._shared:
            dist.all_reduce(bad, op=dist.ReduceOp.MAX)
        # Where the optimizer runs within the backward pass, it is too late.
        if not self._job_config.optimizer.early_step_in_backward:
            withheld = bad.amax()
            for optimizer in self._trainer.optimizers:
                _withhold(optimizer, withheld)
        event = None
        if bad.device.type != "cpu":
            bad, event = bad.to("cpu", non_blocking=True), torch.Event(bad.device)
            event.record()
        self._unread.append(_Verdict(step, bad, event))

    def check(self, step: int, at_once: bool) -> None:
        """End the run because of a step before ``step``, or ``at_once`` because of itself.

        Raises:
            Diverged: on all ranks alike.
        """
        self._read(step if at_once else step - 1)
        if self._end is not None:
            self._diverge(self._end)

    def metrics(self, step: int) -> dict[str, float]:
        """How many steps were left out up to ``step``; nothing where none may be."""
        if not self._skips:
            return {}
        self._read(step)
        return {SKIPPED: self._skipped}

    def check_weights(self, step: int) -> None:
        """End the run if the update of ``step`` was finite and its weights are not; a collective.

        Raises:
            Diverged: on all ranks alike.
        """
        found = nonfinite_weights(self._trainer.model_parts)
        name = first_of_ranks(next((name for name in found if name not in self._known), None))
        if name is not None:
            self._diverge(f"step {step}: {name} is not finite after its update, and is not saved")

    def _read(self, last: int) -> None:
        from torchtitan.tools.logging import logger

        while self._unread and self._unread[0].step <= last:
            verdict = self._unread.popleft()
            what = verdict.what()
            if what is None:
                self._in_a_row = 0
                continue
            self._skipped += 1
            self._in_a_row += 1
            said = f"step {verdict.step}: {what} is not finite, and its update was withheld"
            if self._skips:
                if dist.get_rank() == 0:
                    logger.warning(f"{said}; steps left out so far: {self._skipped}")
                if self._in_a_row == MOST_IN_A_ROW:
                    self._end = self._end or f"{said}, as those of {MOST_IN_A_ROW - 1} before it"
            else:
                self._end = self._end or said

    def _diverge(self, said: str) -> None:
        checkpointer = self._trainer.checkpointer
        if checkpointer.enable:
            checkpointer._async_wait()  # one that is being written is whole
        folder = Path(self._job_config.job.dump_folder)
        newest = newest_checkpoint(folder)
        left = f"{newest} is the last checkpoint" if newest else "there is no checkpoint before it"
        rate = self._job_config.optimizer.lr
        skip = "" if self._skips else ", or leave such steps out with training.nonfinite = 'skip'"
        sentence = f"{said}; {left}; lower optimizer.lr = {rate} or training.max_norm{skip}"
        if dist.get_rank() == 0:
            write_atomic(folder / DIVERGED_FILE, f"{sentence}\n")
        raise Diverged(sentence)


@torch.no_grad()
def _withhold(optimizer: torch.optim.Optimizer, withheld: Tensor) -> None:
    """Let the next step of an optimizer do nothing if the scalar is 1."""
    grads = [
        weight.grad
        for group in optimizer.param_groups
        for weight in group["params"]
        if weight.grad is not None
    ]
    if not grads:
        return
    # To a CPU that weights are offloaded to this waits, as the offloading itself does.
    withheld = withheld.to(grads[0].device)
    if optimizer.defaults.get("fused"):
        # What torch's GradScaler tells a fused optimizer: it looks on the device.
        optimizer.found_inf = withheld  # type: ignore[attr-defined]
        return
    for grad in grads:
        _local(grad).masked_fill_(withheld.bool(), 0.0)


def nonfinite_weights(model_parts: Iterable[nn.Module]) -> list[str]:
    """The names of weights with a value that is not finite in this rank's part."""
    return _nonfinite(pair for part in model_parts for pair in part.named_parameters())


def nonfinite_moments(
    model_parts: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer]
) -> list[str]:
    """The same of what optimizers keep of each weight, which would be in it after a step."""
    names: dict[Tensor, str] = {
        weight: name for part in model_parts for name, weight in part.named_parameters()
    }
    return _nonfinite(
        (f"{kept} of {names[weight]}", value)
        for optimizer in optimizers
        for weight, state in optimizer.state.items()
        for kept, value in state.items()
        if isinstance(value, Tensor) and value.shape == weight.shape
    )


def _nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    names, extremes = [], []
    for name, tensor in tensors:
        local = _local(tensor.detach())
        if local.numel():
            names.append(name)
            extremes.append(torch.stack(local.aminmax()).float().isfinite().all())
    bad = ~torch.stack(extremes) if extremes else torch.zeros(1, dtype=torch.bool)
    found = [name for name, is_bad in zip(names, bad.tolist(), strict=False) if is_bad]
    for wrapper in _WRAPPERS:
        found = [name.replace(wrapper, "") for name in found]
    return found


def _whole(loss: Tensor) -> Tensor:
    """Under tensor parallelism a loss is a DTensor, the same on each rank."""
    return loss.full_tensor() if isinstance(loss, DTensor) else loss


def _local(tensor: Tensor) -> Tensor:
    """This rank's part, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
