"""Which attention a step has, at which length, and how much of the run is left.

A run is a list of stages; ``lighthouse.dense_from_step`` is the short form of two. Whoever asks
about a step asks here. The stage of a step depends on nothing but the step, so that a restart finds
it again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

Attention = Literal["lighthouse", "dense"]


@dataclass(frozen=True)
class Stage:
    """Steps that are alike.

    Attributes:
        number: from 1.
        attention: ``"dense"`` in every layer, or ``"lighthouse"`` as ``[lighthouse]`` says, layer
            by layer.
        first, last: its steps, both included; steps count from 1.
        seq_len: tokens of a sequence, over all ranks.
        selection: of its Lighthouse layers; None in a dense stage.
    """

    number: int
    attention: Attention
    first: int
    last: int
    seq_len: int
    selection: str | None = None

    @property
    def dense(self) -> bool:
        return self.attention == "dense"

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Stages:
    """The stages of a run in order; each begins where the one before it ends."""

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, job_config: "JobConfig") -> "Stages":
        """Those of torchtitan's ``JobConfig``."""
        section, steps = job_config.lighthouse, job_config.training.steps
        before = 0
        if section.enable:
            before = steps if section.dense_from_step is None else section.dense_from_step - 1
        before = min(max(before, 0), steps)
        found: list[Stage] = []
        for attention, last in (("lighthouse", before), ("dense", steps)):
            first = found[-1].last + 1 if found else 1
            if last >= first:
                stage = Stage(
                    number=len(found) + 1,
                    attention=attention,  # type: ignore[arg-type]
                    first=first,
                    last=last,
                    seq_len=job_config.training.seq_len,
                    selection=section.selection if attention == "lighthouse" else None,
                )
                found.append(stage)
        return cls(tuple(found))

    @classmethod
    def from_record(cls, record: list[dict[str, Any]]) -> "Stages":
        """What :meth:`record` gave."""
        return cls(tuple(Stage(**stage) for stage in record))

    def record(self) -> list[dict[str, Any]]:
        """JSON-serialisable."""
        return [asdict(stage) for stage in self.stages]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def at(self, step: int) -> Stage:
        """The stage of a step; beyond the last step the last stage."""
        return next((stage for stage in self.stages if step <= stage.last), self.stages[-1])

    def left_after(self, step: int) -> dict[Stage, int]:
        """How many steps each stage has that come after a step."""
        return {stage: max(0, stage.last - max(step, stage.first - 1)) for stage in self.stages}

    @property
    def end_dense(self) -> bool:
        """Whether the run's last step is dense."""
        return self.stages[-1].dense
