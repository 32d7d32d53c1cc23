"""What may be resumed: a record in every checkpoint, and checks before one is loaded.

The record, ``run.json``, is written before the rest of the checkpoint.
"""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from lighthouse.metrics_log import read_metrics
from lighthouse.run_folder import all_steps, finished_steps, is_finished
from lighthouse.titan.model import is_dense_step
from lighthouse.titan.text_files import text_identity

RECORD = "run.json"

_STATE_IN_CHECKPOINT = {
    "optimizer": ("name", "lr", "beta1", "beta2", "eps", "weight_decay"),
    "lr_scheduler": ("warmup_steps", "total_steps", "decay_ratio", "decay_type", "min_lr_factor"),
}
"""Settings that a full resume takes from the checkpoint, whatever the new TOML says."""


def run_record(job_config: Any, data_parallel_degree: int) -> dict[str, Any]:
    """What a later resume must agree with, JSON-serialisable."""
    training = job_config.training
    record: dict[str, Any] = {
        "data_parallel_degree": data_parallel_degree,
        "data": {
            "training.dataset": training.dataset,
            "training.dataloader.num_workers": training.dataloader.num_workers,
        },
        "local_text": text_identity(training.dataset, training.dataset_path),
        "lighthouse": {
            name: getattr(job_config.lighthouse, name)
            for name in ("enable", "dense_from_step", "selection")
        },
    }
    for section, names in _STATE_IN_CHECKPOINT.items():
        values = asdict(getattr(job_config, section))
        record[section] = {name: values[name] for name in names}
    if record["lr_scheduler"]["total_steps"] is None:
        record["lr_scheduler"]["total_steps"] = job_config.training.steps
    return record


def begin_save(checkpoint: str, record: dict[str, Any] | None, model_only: bool) -> None:
    """Clear what a killed save left in ``checkpoint`` and write the record; rank 0 only acts.

    The other ranks write nothing before rank 0 takes part in planning the save.
    """
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    folder = Path(checkpoint)
    if folder.exists() and not is_finished(folder):
        shutil.rmtree(folder)
    if record is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(json.dumps(record | {"model_only": model_only}, indent=2))


def stale_checkpoints(folder: str, keep: int) -> list[str]:
    """What to delete so that the newest ``keep`` finished checkpoints stay, and later ones.

    Before the newest there may also be what a killed save or a killed deletion has left.
    """
    finished = finished_steps(folder)
    earlier = [step for step in all_steps(folder) if step < max(finished, default=0)]
    return [os.path.join(folder, f"step-{s}") for s in earlier if s not in finished[-keep:]]


def check_resume(job_config: Any, data_parallel_degree: int) -> int:
    """Refuse a load that would train something else than the user thinks.

    Returns:
        The data-parallel degree under which the checkpoint's tokens were counted, each rank its
        own; the given one if nothing is resumed.

    Raises:
        ValueError: for a step already reached, a checkpoint without what a resume needs, one whose
            optimizer, schedule, data or data-parallel degree differ from this job's, a
            ``load_step`` that is not there or has later checkpoints beside it, an
            ``initial_load_path`` without a finished checkpoint.
    """
    config = job_config.checkpoint
    if not config.enable:
        return data_parallel_degree
    checkpoint = _checkpoint_to_load(config, Path(job_config.job.dump_folder) / config.folder)
    if checkpoint is None:
        return data_parallel_degree  # from scratch, or weights alone
    step = _step_of(checkpoint)
    if step == 0:
        return data_parallel_degree  # a seed checkpoint is loaded as the model alone
    steps = job_config.training.steps
    if step is not None and step >= steps:
        raise ValueError(
            f"training.steps = {steps}: checkpoint {checkpoint} is already at step {step}, so "
            "nothing is left to train; raise training.steps, or use another job.dump_folder"
        )
    record_file = checkpoint / RECORD
    if not (checkpoint / ".metadata").is_file():
        raise ValueError(
            f"checkpoint {checkpoint} is in Hugging Face's format and can't be resumed; start from "
            "it with checkpoint.initial_load_path and checkpoint.initial_load_in_hf = true in "
            "another job.dump_folder"
        )
    if not record_file.is_file():
        return data_parallel_degree  # not written by this trainer
    saved = json.loads(record_file.read_text())
    _check_record(checkpoint, saved, run_record(job_config, data_parallel_degree), config, steps)
    if step is not None:
        _check_selection(checkpoint, step, saved, job_config.lighthouse)
    written_at: int = saved["data_parallel_degree"]
    return written_at


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
    checkpoint: Path, saved: dict[str, Any], current: dict[str, Any], config: Any, steps: int
) -> None:
    if saved["model_only"]:
        raise ValueError(
            f"checkpoint {checkpoint} holds the model alone (it was saved under "
            "checkpoint.last_save_model_only = true) and can't be resumed; start from it with "
            "checkpoint.initial_load_path in another job.dump_folder"
        )
    excluded = config.exclude_from_loading
    if "dataloader" not in excluded:
        _check_data(checkpoint, saved, current)
    end = saved["lr_scheduler"]["total_steps"]
    if end < steps and "lr_scheduler" not in excluded:
        up_to_there = "" if _step_of(checkpoint) == end else f"use training.steps = {end}, or "
        raise ValueError(
            f"training.steps = {steps}: the schedule of checkpoint {checkpoint} ends at step {end} "
            f"(lr_scheduler.total_steps), which a resume keeps; {up_to_there}start a new schedule "
            "with checkpoint.exclude_from_loading = ['optimizer', 'lr_scheduler']"
        )
    for section, names in _STATE_IN_CHECKPOINT.items():
        for name in names:
            if section not in excluded and saved[section][name] != current[section][name]:
                raise ValueError(
                    f"{section}.{name} = {current[section][name]!r}: checkpoint {checkpoint} was "
                    f"written with {saved[section][name]!r}, which a resume keeps; set it to that, "
                    "or start afresh with checkpoint.exclude_from_loading = "
                    "['optimizer', 'lr_scheduler']"
                )


def _check_selection(checkpoint: Path, step: int, saved: dict[str, Any], section: Any) -> None:
    """Refuse to go on in the Lighthouse stage with another selection than it began with."""
    if is_dense_step(section, step + 1):
        return
    was = _selection_at(checkpoint, step, saved)
    if was is not None and was != section.selection:
        raise ValueError(
            f"lighthouse.selection = {section.selection!r}: checkpoint {checkpoint} was trained "
            f"with {was!r}, and the rest of its stage would be trained otherwise; set "
            f"lighthouse.selection = {was!r} to go on as it began"
        )


def _selection_at(checkpoint: Path, step: int, saved: dict[str, Any]) -> str | None:
    """Under which selection a checkpoint's step was trained; None for a dense one.

    Records from before there was a choice say nothing: what the run has logged then tells the
    stage, and the selection was the published one.
    """
    if "lighthouse" in saved:
        section = SimpleNamespace(**saved["lighthouse"])
        return None if is_dense_step(section, step) else section.selection
    try:
        logged = read_metrics(checkpoint.parents[1])
    except (ValueError, IndexError):
        return None
    stages = [record.get("stage") for record in logged if record["step"] <= step]
    return "published" if stages and stages[-1] == "lighthouse" else None


def _check_data(checkpoint: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    afresh = "set checkpoint.exclude_from_loading = ['dataloader'] to start the data afresh"
    was, now = saved["data_parallel_degree"], current["data_parallel_degree"]
    if was != now:
        raise ValueError(
            f"data-parallel degree = {now}: checkpoint {checkpoint} was written at {was} and the "
            f"data order belongs to that; use {was}, or {afresh}"
        )
    was, now = saved.get("local_text"), current["local_text"]
    if was and now and was != now:
        raise ValueError(
            f"training.dataset_path has {now}: checkpoint {checkpoint} was written with {was} and "
            f"its place in the data belongs to those; put them back, or {afresh}"
        )
    for key, was in saved.get("data", {}).items():
        if was != current["data"][key]:
            raise ValueError(
                f"{key} = {current['data'][key]!r}: checkpoint {checkpoint} was written with "
                f"{was!r} and its place in the data belongs to that; use {was!r}, or {afresh}"
            )
