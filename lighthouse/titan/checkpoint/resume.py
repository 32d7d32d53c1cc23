"""Checks of a checkpoint before it is loaded: would the run go on as the user thinks?"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighthouse.refusal import NothingToDo
from lighthouse.runs.folder import finished_steps, is_finished
from lighthouse.runs.metrics import read_metrics
from lighthouse.titan.checkpoint.record import STATE_IN_CHECKPOINT, RunRecord
from lighthouse.titan.config.stages import Stages

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def check_resume(job_config: "JobConfig", data_parallel_degree: int) -> int:
    """Refuse a load that would train something else than the user thinks.

    Returns:
        The data-parallel degree under which the checkpoint's tokens were counted, each rank its
        own; the given one if nothing is resumed.

    Raises:
        NothingToDo: the step is reached already.
        ValueError: for a checkpoint without what a resume needs, one whose optimizer, schedule,
            data or data-parallel degree differ from this job's, a ``load_step`` that is not there
            or has later checkpoints beside it, an ``initial_load_path`` without a finished
            checkpoint.
    """
    config = job_config.checkpoint
    if not config.enable:
        return data_parallel_degree
    own_folder = Path(job_config.job.dump_folder) / config.folder
    checkpoint = _checkpoint_to_load(config, own_folder)
    if checkpoint is None:
        return data_parallel_degree  # from scratch, or weights alone
    step = _step_of(checkpoint)
    if step == 0:
        return data_parallel_degree  # a seed checkpoint is loaded as the model alone
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
        raise NothingToDo(
            f"nothing is left to train: checkpoint {checkpoint} is at step {step}, training.steps "
            f"= {steps}; {more} to go on, or use another job.dump_folder"
        )
    if not (checkpoint / ".metadata").is_file():
        raise ValueError(
            f"checkpoint {checkpoint} is in Hugging Face's format and can't be resumed; start from "
            "it with checkpoint.initial_load_path and checkpoint.initial_load_in_hf = true in "
            "another job.dump_folder"
        )
    saved = RunRecord.read(checkpoint)
    if saved is None:
        return data_parallel_degree
    current = RunRecord.of(job_config, data_parallel_degree)
    if checkpoint.parent == own_folder:
        _check_model(checkpoint, saved, current)
    both_listed = stages.listed and saved.stages is not None and saved.stages.listed
    _check_record(checkpoint, saved, current, config, steps, whole_schedule=not both_listed)
    if step is not None and "train_state" not in config.exclude_from_loading:
        _check_stages(checkpoint, step, saved, stages, config.exclude_from_loading)
    return saved.data_parallel_degree


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
    return checkpoint if checkpoint and (checkpoint / ".metadata").is_file() else None


def check_loaded(job_config: "JobConfig", step: int, nonfinite: str | None) -> None:
    """Refuse to train on from weights that are not finite.

    Args:
        job_config: torchtitan's ``JobConfig``.
        step: of the checkpoint; 0 for the weights that a run begins with.
        nonfinite: the name of such a weight, or None.

    Raises:
        ValueError: naming it and where it is from.
    """
    if nonfinite is None:
        return
    config = job_config.checkpoint
    if step:
        folder = Path(job_config.job.dump_folder) / config.folder / f"step-{step}"
        raise ValueError(
            f"checkpoint {folder} has values in {nonfinite} that are not finite, and every later "
            "step would have; move it away, and the same command continues from the one before"
        )
    begun = config.initial_load_path or job_config.model.hf_assets_path
    raise ValueError(
        f"the weights to begin with, of {begun}, have values in {nonfinite} that are not finite; "
        "begin with others by checkpoint.initial_load_path"
    )


def _step_of(checkpoint: Path) -> int | None:
    match = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(match[1]) if match else None


def _checkpoint_to_load(config: Any, folder: Path) -> Path | None:
    """The folder that the checkpoint manager is about to load in full, or None."""
    steps = finished_steps(folder)
    if config.load_step != -1:
        if config.load_step not in steps:
            raise ValueError(
                f"checkpoint.load_step = {config.load_step}: no such finished checkpoint in "
                f"{folder}; finished are {steps or 'none'}"
            )
        if config.load_step < steps[-1]:
            later = [step for step in steps if step > config.load_step]
            raise ValueError(
                f"checkpoint.load_step = {config.load_step}: {folder} also holds steps {later}, "
                "and the next restart would load those; move them away, or branch off into "
                "another job.dump_folder with checkpoint.initial_load_path"
            )
        return folder / f"step-{config.load_step}"
    if steps:
        return folder / f"step-{steps[-1]}"
    if not config.initial_load_path or config.initial_load_in_hf:
        return None
    path = Path(config.initial_load_path)
    if not is_finished(path):
        inside = finished_steps(path)
        hint = f"; use {path / f'step-{inside[-1]}'}" if inside else "; it names a step-N folder"
        raise ValueError(
            f"checkpoint.initial_load_path = {config.initial_load_path!r}: is not a finished "
            f"checkpoint{hint}"
        )
    return None if config.initial_load_model_only else path


def _check_record(
    checkpoint: Path,
    saved: RunRecord,
    current: RunRecord,
    config: Any,
    steps: int,
    whole_schedule: bool,
) -> None:
    if saved.model_only:
        raise ValueError(
            f"checkpoint {checkpoint} holds the model alone (it was saved under "
            "checkpoint.last_save_model_only = true) and can't be resumed; start from it with "
            "checkpoint.initial_load_path in another job.dump_folder"
        )
    excluded = config.exclude_from_loading
    if "dataloader" not in excluded:
        _check_data(checkpoint, saved, current)
    end = saved.lr_scheduler["total_steps"]
    if end < steps and "lr_scheduler" not in excluded and whole_schedule:
        up_to_there = "" if _step_of(checkpoint) == end else f"use training.steps = {end}, or "
        raise ValueError(
            f"training.steps = {steps}: the schedule of checkpoint {checkpoint} ends at step {end} "
            f"(lr_scheduler.total_steps), which a resume keeps; {up_to_there}start a new schedule "
            "with checkpoint.exclude_from_loading = ['optimizer', 'lr_scheduler']"
        )
    for section, names in STATE_IN_CHECKPOINT.items():
        was, now = getattr(saved, section), getattr(current, section)
        for name in names:
            # Stages to come may change, and with them where the schedule ends.
            if not whole_schedule and name in ("total_steps", "decay_ratio"):
                continue
            if section not in excluded and was[name] != now[name]:
                raise ValueError(
                    f"{section}.{name} = {now[name]!r}: checkpoint {checkpoint} was written with "
                    f"{was[name]!r}, which a resume keeps; set it to that, or start afresh with "
                    "checkpoint.exclude_from_loading = ['optimizer', 'lr_scheduler']"
                )


def _check_model(checkpoint: Path, saved: RunRecord, current: RunRecord) -> None:
    """Weights may begin another model elsewhere, with another base say; a folder has one model."""
    if saved.model is None or current.model is None:
        return
    for key in [*saved.model, *(key for key in current.model if key not in saved.model)]:
        was, now = saved.model.get(key, "not set"), current.model.get(key, "not set")
        if was != now:
            raise ValueError(
                f"model.args.{key}: is {now!r}, by model.flavor or [model.args], and checkpoint "
                f"{checkpoint} was trained with {was!r}; set it back, or start another "
                "job.dump_folder from its weights with checkpoint.initial_load_path"
            )


def _check_stages(
    checkpoint: Path, step: int, saved: RunRecord, now: Stages, excluded: list[str]
) -> None:
    """Refuse to go on from a step with other stages behind it, or in the middle of another one."""
    was = saved.stages
    if was is not None and (was.listed or now.listed):
        if was.listed and now.listed:
            _check_tables_behind(checkpoint, step, was, now)
        _check_steps_behind(checkpoint, step, was, now)
        if now.listed and "lr_scheduler" in excluded:
            raise ValueError(
                f"checkpoint.exclude_from_loading = {excluded}: a new schedule would begin with "
                f"the first of [[stages]] after step {step} of checkpoint {checkpoint}; change "
                "lr_factor or warmup_steps of stages to come, or start another job.dump_folder "
                "from its weights"
            )
        return
    _check_selection(checkpoint, step, saved, now)


def _check_tables_behind(checkpoint: Path, step: int, was: Stages, now: Stages) -> None:
    """A stage that the step is in may only end elsewhere; one behind it stays as it was."""
    for stage in was:
        if stage.first > step:
            return
        trained = f"checkpoint {checkpoint} has trained {min(stage.last, step) - stage.first + 1}"
        if stage.number > len(now.stages):
            raise ValueError(
                f"stages.{stage.number}: is gone, and {trained} steps of it; put it back, or start "
                "another job.dump_folder from its weights"
            )
        there = now.stages[stage.number - 1]
        old, new = stage.table, there.table
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) == new.get(key) or (key == "steps" and stage.last >= step):
                continue
            said = f"stages.{stage.number}.{key} = {new[key]!r}: " if key in new else ""
            said = said or f"stages.{stage.number}.{key} is not set: "
            raise ValueError(
                f"{said}was {old.get(key, 'not set')!r}, and {trained} steps of this stage; set it "
                "back, or start another job.dump_folder from its weights"
            )
        if there.last < step <= stage.last:
            raise ValueError(
                f"stages.{stage.number}.steps = {there.steps}: {trained} steps of it; use that or "
                "more"
            )


def _check_steps_behind(checkpoint: Path, step: int, was: Stages, now: Stages) -> None:
    """What sections say of steps behind, and stages of a run that had none, or has none now."""
    for first in sorted({stage.first for stage in (*was, *now) if stage.first <= step}):
        old, new = was.at(first), now.at(first)
        for key in ("attention", "seq_len", "selection"):
            before, after = getattr(old, key), getattr(new, key)
            if before == after:
                continue
            stage = f"stage {new.number}" if now.listed else "without [[stages]]"
            raise ValueError(
                f"{stage}: {key} = {after!r} at step {first}, which checkpoint {checkpoint} has "
                f"trained with {before!r}; let stages say what the steps behind were, or start "
                "another job.dump_folder from its weights"
            )


def _check_selection(checkpoint: Path, step: int, saved: RunRecord, stages: Stages) -> None:
    """Refuse to go on in a Lighthouse stage with another selection than it began with."""
    was, now = _selection_at(checkpoint, step, saved), stages.at(step + 1).selection
    if was is not None and now is not None and was != now:
        raise ValueError(
            f"lighthouse.selection = {now!r}: checkpoint {checkpoint} was trained with {was!r}, "
            "and the rest of its stage would be trained otherwise; set "
            f"lighthouse.selection = {was!r} to go on as it began"
        )


def _selection_at(checkpoint: Path, step: int, saved: RunRecord) -> str | None:
    """Under which selection a checkpoint's step was trained; None for a dense one.

    Records from before there was a choice say nothing: what the run has logged then tells the
    stage, and the selection was the published one.
    """
    if saved.stages is not None:
        return saved.stages.at(step).selection
    try:
        logged = read_metrics(checkpoint.parents[1])
    except (ValueError, IndexError):
        return None
    # Validation's lines say no stage.
    trained = [record for record in logged if record["step"] <= step and "loss" in record]
    return "published" if trained and trained[-1].get("stage") == "lighthouse" else None


def _check_data(checkpoint: Path, saved: RunRecord, current: RunRecord) -> None:
    afresh = "set checkpoint.exclude_from_loading = ['dataloader'] to start the data afresh"
    degree, text = saved.data_parallel_degree, saved.local_text
    if degree != current.data_parallel_degree:
        raise ValueError(
            f"data-parallel degree = {current.data_parallel_degree}: checkpoint {checkpoint} was "
            f"written at {degree} and the data order belongs to that; use {degree}, or {afresh}"
        )
    if text and current.local_text and text != current.local_text:
        raise ValueError(
            f"training.dataset_path has {current.local_text}: checkpoint {checkpoint} was written "
            f"with {text} and its place in the data belongs to those; put them back, or {afresh}"
        )
    for key, was in saved.data.items():
        if was != current.data[key]:
            raise ValueError(
                f"{key} = {current.data[key]!r}: checkpoint {checkpoint} was written with "
                f"{was!r} and its place in the data belongs to that; use {was!r}, or {afresh}"
            )
