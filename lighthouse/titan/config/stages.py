"""Which attention a step has, at which length, and how much of the run is left.

A run is a list of stages: those of ``[[stages]]``, or two of which ``lighthouse.dense_from_step``
is the short form. Whoever asks about a step asks here. The stage of a step depends on nothing but
the step, so that a restart finds it again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lighthouse.config import WindowConfig
from lighthouse.runs.files import of_json
from lighthouse.titan.config.section import LayerConfig, layer_configs, num_chunks
from lighthouse.titan.config.stage_tables import (
    OF_SCHEDULE,
    OF_TRAINING,
    REQUIRED,
    OwnKeys,
    of_stage,
)

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

_MOST_STEPS = 1 << 63
"""And no counter of steps holds more."""

Attention = Literal["lighthouse", "dense", "window"]


@dataclass(frozen=True)
class Stage:
    """Steps that are alike.

    Attributes:
        number: from 1.
        attention: ``"dense"`` or ``"window"`` in every layer, or ``"lighthouse"`` as
            ``[lighthouse]`` says, layer by layer.
        first, last: its steps, both included; steps count from 1.
        seq_len: tokens of a sequence, over all ranks.
        selection: of its Lighthouse layers; None in any other stage.
        table: its table in ``[[stages]]``; empty in a run without.
    """

    number: int
    attention: Attention
    first: int
    last: int
    seq_len: int
    selection: str | None = None
    table: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def dense(self) -> bool:
        return self.attention == "dense"

    @property
    def steps(self) -> int:
        return self.last - self.first + 1

    def job(self, job_config: "JobConfig") -> "JobConfig":
        """The run's configuration as it is in this stage."""
        return of_stage(job_config, self.table) if self.table else job_config

    def layers(self, job_config: "JobConfig", num_layers: int) -> list[LayerConfig]:
        """What each layer does, over all ranks; None is dense.

        Raises:
            ValueError: for a value that does not fit, named as in the TOML.
        """
        if self.dense:
            return [None] * num_layers
        job = self.job(job_config)
        if self.attention == "window":
            if job.lighthouse.window is None:
                raise ValueError(
                    f"stages.{self.number}.attention = 'window': lighthouse.window is not set; set "
                    f"stages.{self.number}.window to the tokens that a token sees, such as 4096"
                )
            try:
                return [WindowConfig(job.lighthouse.window)] * num_layers
            except ValueError as error:
                raise ValueError(f"lighthouse.{error}") from None
        chunks = num_chunks(job.lighthouse, job.parallelism)
        return layer_configs(job.lighthouse, num_layers, self.seq_len, chunks)


@dataclass(frozen=True)
class Stages:
    """The stages of a run in order; each begins where the one before it ends."""

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, job_config: "JobConfig") -> "Stages":
        """Those of torchtitan's ``JobConfig``."""
        section, training = job_config.lighthouse, job_config.training
        found: list[Stage] = []

        def add(attention: Attention, steps: int, table: dict[str, Any]) -> None:
            before = found[-1].last if found else 0
            stage = Stage(
                number=len(found) + 1,
                attention=attention,
                first=before + 1,
                last=before + steps,
                seq_len=table.get("seq_len", training.seq_len),
                selection=(
                    table.get("selection", section.selection) if attention == "lighthouse" else None
                ),
                table=table,
            )
            if steps:
                found.append(stage)

        for table in job_config.stages:
            add(table["attention"], table["steps"], table)
        if not found:
            before = 0
            if section.enable:
                end = section.dense_from_step
                before = training.steps if end is None else end - 1
            before = min(max(before, 0), training.steps)
            add("lighthouse", before, {})
            add("dense", training.steps - before, {})
        return cls(tuple(found))

    @classmethod
    def from_record(cls, record: list[dict[str, Any]]) -> "Stages":
        """What :meth:`record` gave.

        Raises:
            ValueError: it is something else.
        """
        stages = [of_json(Stage, stage, f"stages.{n}") for n, stage in enumerate(record, 1)]
        ends = [0, *(stage.last for stage in stages)]
        for stage, before in zip(stages, ends, strict=False):
            if not (before + 1 == stage.first <= stage.last < _MOST_STEPS and stage.seq_len > 0):
                raise ValueError(f"stages.{stage.number} is damaged: no steps after {before}")
        return cls(tuple(stages))

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
    def last(self) -> Stage:
        return self.stages[-1]

    @property
    def listed(self) -> bool:
        """Whether they stand in ``[[stages]]``."""
        return bool(self.stages[0].table)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(stage.seq_len for stage in self.stages)

    @property
    def end_dense(self) -> bool:
        """Whether the run's last step is dense."""
        return self.last.dense


def in_effect(table: dict[str, Any], key: str, settings: Mapping[str, Any]) -> Any:
    """The value of a stage's key, whether its table says it or the run's sections do.

    Args:
        settings: of the run, under dotted keys.

    Returns:
        None for one that neither says.
    """
    if key in table:
        return table[key]
    if key in OF_SCHEDULE:
        return getattr(OwnKeys(), key)
    return settings.get(f"{'training' if key in OF_TRAINING else 'lighthouse'}.{key}")


def said_otherwise(table: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage's table must say: its steps and attention, and what is not as without it."""
    return {
        key: value
        for key, value in table.items()
        if key in REQUIRED or value != in_effect({}, key, settings)
    }
