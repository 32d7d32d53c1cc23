"""Checks of a checkpoint before it is loaded: would the run go on as the user thinks?"""

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighthouse.refusal import NothingToDo
from lighthouse.runs.folder import finished_steps, step_of
from lighthouse.runs.metrics import read_metrics
from lighthouse.titan.checkpoint.change import Change
from lighthouse.titan.checkpoint.changes import changes
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.seal import METADATA
from lighthouse.titan.checkpoint.settings import NONFINITE, settings_of
from lighthouse.titan.checkpoint.unread_text import why_read
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.data.text_identity import same_texts
from lighthouse.titan.distributed.agree import from_rank_0

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

ACCEPT = "checkpoint.accept_changes"
_MOST_NAMED = 4


@dataclass(frozen=True)
class Resume:
    """How a run goes on, or begins.

    Attributes:
        counted_by: the data-parallel degree under which the checkpoint's tokens were counted, each
            rank its own; the run's own if nothing is resumed.
        record: for the checkpoints to come.
        changes: against the checkpoint's record.
        step: of the checkpoint; None if nothing is resumed.
        before: the checkpoint's record; None if there is none.
        unrecorded: the checkpoint, where it has no record to compare with.
    """

    counted_by: int
    record: RunRecord
    changes: list[Change] = field(default_factory=list)
    step: int | None = None
    before: RunRecord | None = None
    unrecorded: Path | None = None


def check_resume(job_config: "JobConfig", data_parallel_degree: int) -> Resume:
    """Refuse a load that would train something else than the user thinks; a collective.

    Raises:
        NothingToDo: the step is reached already.
        ValueError: for a checkpoint without what a resume needs, one whose record differs from
            this job without a word in ``checkpoint.accept_changes``, a ``load_step`` that is not
            there or has later checkpoints beside it, an ``initial_load_path`` without a finished
            checkpoint.
    """
    config = job_config.checkpoint
    now = RunRecord.of(job_config, data_parallel_degree)
    fresh = Resume(data_parallel_degree, now)
    if not config.enable:
        return fresh
    own_folder = Path(job_config.job.dump_folder) / config.folder
    checkpoint = _checkpoint_to_load(config, own_folder)
    if checkpoint is None:
        return fresh  # from scratch, or weights alone
    step = step_of(checkpoint.name)
    if step == 0:
        return fresh  # a seed checkpoint is loaded as the model alone
    if "train_state" in config.exclude_from_loading and checkpoint.parent == own_folder:
        raise ValueError(
            f"checkpoint.exclude_from_loading = {config.exclude_from_loading}: without "
            f"'train_state' steps count from 1 again, and would overwrite the finished checkpoints "
            f"in {own_folder}; use another job.dump_folder, with checkpoint.initial_load_path = "
            f"{str(checkpoint)!r}"
        )
    steps = job_config.training.steps
    stages = Stages.of(job_config)
    if step is not None and step >= steps:
        more = "add to [[stages]]" if stages.listed else "raise training.steps"
        other = _trained_otherwise(job_config, checkpoint, min(step, steps), now)
        raise NothingToDo(
            f"nothing is left to train: checkpoint {checkpoint} is at step {step}, training.steps "
            f"= {steps}; {other}{more} to go on, or use another job.dump_folder"
        )
    if not os.path.lexists(checkpoint / METADATA):
        raise ValueError(
            f"checkpoint {checkpoint} is in Hugging Face's format and can't be resumed; start from "
            "it with checkpoint.initial_load_path and checkpoint.initial_load_in_hf = true in "
            "another job.dump_folder"
        )
    saved = _record_of(checkpoint, job_config)
    if saved is None:
        return replace(fresh, unrecorded=checkpoint)
    if saved.model_only:
        raise ValueError(
            f"checkpoint {checkpoint} holds the model alone (it was saved under "
            "checkpoint.last_save_model_only = true) and can't be resumed; start from it with "
            "checkpoint.initial_load_path in another job.dump_folder"
        )
    return _compared(job_config, checkpoint, step, saved, now, own=checkpoint.parent == own_folder)


def _record_of(checkpoint: Path, job_config: "JobConfig") -> RunRecord | None:
    """As :meth:`RunRecord.read`, with all settings that there are now."""
    saved = RunRecord.read(checkpoint)
    if saved is None or saved.settings is None:
        return saved
    # A key that the record does not know is newer than it, and had no other value then.
    return replace(saved, settings=settings_of(type(job_config)()) | saved.settings)


def _changes(
    checkpoint: Path, saved: RunRecord, now: RunRecord, behind: int | None, own: bool
) -> list[Change]:
    """As `changes`, which has to read the checkpoint's place only where the text differs."""
    why: list[str] = []
    texts = saved.text or [], now.text or []
    if len(texts[0]) == len(texts[1]) and not same_texts(*texts):
        why = from_rank_0(partial(why_read, checkpoint, saved, now))
    return changes(saved, now, behind, own, why)


def _trained_otherwise(job_config: "JobConfig", checkpoint: Path, step: int, now: RunRecord) -> str:
    """What to say of a finished run that this job would not have made; "" where it would."""
    saved = _record_of(checkpoint, job_config)
    if saved is None:
        return ""
    accepted = job_config.checkpoint.accept_changes
    found = _changes(checkpoint, saved, now, step, own=True)
    keys = [change.key for change in found if change.needs_a_word and change.name not in accepted]
    if not keys:
        return ""
    named = ", ".join(keys[:_MOST_NAMED]) + (", ..." if len(keys) > _MOST_NAMED else "")
    return f"it was trained under other settings than these ({named}); "


def _compared(
    job_config: "JobConfig",
    checkpoint: Path,
    step: int | None,
    saved: RunRecord,
    now: RunRecord,
    own: bool,
) -> Resume:
    """Go on from a record, or refuse."""
    excluded, stages = job_config.checkpoint.exclude_from_loading, Stages.of(job_config)
    behind = None if "train_state" in excluded else _step_behind(step, saved)
    found = [
        change
        for change in _changes(checkpoint, saved, now, behind, own)
        if not (change.name == "data" and "dataloader" in excluded)
        and not (change.name == "lr_scheduler" and "lr_scheduler" in excluded)
        and not (change.key.startswith("optimizer.") and "optimizer" in excluded)
    ]
    if behind is not None and saved.stages is None:
        found += _selection(checkpoint, behind, stages)
    _refuse(checkpoint, found, job_config.checkpoint.accept_changes)
    if behind is not None and stages.listed and "lr_scheduler" in excluded:
        raise ValueError(
            f"checkpoint.exclude_from_loading = {excluded}: a new schedule would begin with "
            f"the first of [[stages]] after step {step} of checkpoint {checkpoint}; change "
            "lr_factor or warmup_steps of stages to come, or start another job.dump_folder "
            "from its weights"
        )
    history = [*saved.changes, *(change.record(step) for change in found)]
    return Resume(
        counted_by=saved.data_parallel_degree,
        record=replace(now, changes=history),
        changes=found,
        step=step,
        before=saved,
    )


def checkpoint_to_read(job_config: "JobConfig") -> Path | None:
    """The trainer's own checkpoint that is about to be loaded, in full or the model alone; or None.

    Raises:
        ValueError: as `check_resume` does for a ``load_step`` or an ``initial_load_path``.
    """
    config = job_config.checkpoint
    if not config.enable:
        return None
    own_folder = Path(job_config.job.dump_folder) / config.folder
    checkpoint = _checkpoint_to_load(config, own_folder)
    if checkpoint is None and config.initial_load_path and not config.initial_load_in_hf:
        checkpoint = Path(config.initial_load_path)
    return checkpoint if checkpoint and os.path.lexists(checkpoint / METADATA) else None


def check_loaded(
    job_config: "JobConfig", step: int, named: int | None, nonfinite: str | None
) -> None:
    """Refuse to train on at another step than was named, or from weights that are not finite.

    Args:
        job_config: torchtitan's ``JobConfig``.
        step: that was loaded; 0 for the weights that a run begins with.
        named: the step in the name of the checkpoint's folder; None where nothing is resumed.
        nonfinite: the name of such a weight, or of an optimizer's tensor, or None.

    Raises:
        ValueError: naming the checkpoint; weights that are not finite may be accepted.
    """
    config = job_config.checkpoint
    if named not in (None, step) and "train_state" not in config.exclude_from_loading:
        raise ValueError(
            f"checkpoint step-{named} holds step {step}, so that later ones would get the names of "
            f"earlier ones; rename it to step-{step}, or move it away"
        )
    if nonfinite is None or NONFINITE in config.accept_changes:
        return
    as_it_is = f"with them as they are by {ACCEPT} = {[*config.accept_changes, NONFINITE]}"
    if step:
        folder = Path(job_config.job.dump_folder) / config.folder / f"step-{step}"
        raise ValueError(
            f"checkpoint {folder} has values in {nonfinite} that are not finite, and every later "
            "step would have; move it away, and the same command continues from the one before, "
            f"or go on {as_it_is}"
        )
    begun = config.initial_load_path or job_config.model.hf_assets_path
    raise ValueError(
        f"the weights to begin with, of {begun}, have values in {nonfinite} that are not finite; "
        f"begin with others by checkpoint.initial_load_path, or {as_it_is}"
    )


def _checkpoint_to_load(config: Any, folder: Path) -> Path | None:
    """The folder that the checkpoint manager is about to load in full, or None."""
    steps = finished_steps(folder)
    if steps:
        return folder / f"step-{steps[-1]}"
    if not config.initial_load_path or config.initial_load_in_hf or config.initial_load_model_only:
        return None
    return Path(config.initial_load_path)


def _step_behind(step: int | None, saved: RunRecord) -> int | None:
    """The last step that was taken; a folder of another name does not tell, so all of the run."""
    if step is None and saved.stages is not None:
        return saved.stages.last.last
    return step


def _refuse(checkpoint: Path, found: list[Change], accepted: list[str]) -> None:
    """Refuse changes that were not accepted, all in one sentence."""
    refused = [change for change in found if change.needs_a_word and change.name not in accepted]
    if not refused:
        return
    back = dict.fromkeys(change.way_back for change in refused)
    ways = [f"{' and '.join(back)} to go on as it began"]
    if any(change.name == "" for change in refused):
        ways.append(
            "start another job.dump_folder from its weights with checkpoint.initial_load_path"
        )
    else:
        names = list(dict.fromkeys([*accepted, *(str(change.name) for change in refused)]))
        ways.append(f"keep weights and optimizer and go on with what is new by {ACCEPT} = {names}")
        if all(change.name == "data" for change in refused):
            ways.append("start the data afresh by checkpoint.exclude_from_loading = ['dataloader']")
    raise ValueError(
        f"{'; '.join(map(str, refused))}: checkpoint {checkpoint} was trained otherwise; "
        f"{', or '.join(ways)}"
    )


def _selection(checkpoint: Path, step: int, stages: Stages) -> list[Change]:
    """Another selection in the middle of a stage, where the record says nothing of stages."""
    was, now = _selection_at(checkpoint, step), stages.at(step + 1).selection
    if was is None or now is None or was == now:
        return []
    return [Change("lighthouse.selection", was, now, "attention")]


def _selection_at(checkpoint: Path, step: int) -> str | None:
    """Under which selection a step was trained, of a record from before there was a choice.

    None for a dense step. What the run has logged tells the stage, and the selection was the
    published one.
    """
    try:
        logged = read_metrics(checkpoint.parents[1])
    except (ValueError, IndexError):
        return None
    # Validation's lines say no stage.
    trained = [record for record in logged if record["step"] <= step and "loss" in record]
    return "published" if trained and trained[-1].get("stage") == "lighthouse" else None
