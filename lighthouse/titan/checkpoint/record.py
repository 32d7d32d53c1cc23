"""What each checkpoint says of its run, for a later resume.

The record, ``resume.json``, is written before the rest of the checkpoint.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from lighthouse.runs.files import read_file
from lighthouse.runs.folder import is_finished
from lighthouse.titan.checkpoint.settings import STATE_IN_CHECKPOINT, settings_of
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.data.moved import OF_SHARES, SOURCES
from lighthouse.titan.data.source_tables import sources_of
from lighthouse.titan.data.text_identity import SourceText, old_identity, training_text
from lighthouse.titan.data.tokenizer_identity import tokenizer_identity
from lighthouse.titan.distributed.agree import from_rank_0
from lighthouse.titan.llama3.description import describe
from lighthouse.titan.llama3.model_args import model_args_of
from lighthouse.toml_types import json_types

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

RECORD = "resume.json"
_FIRST_RECORD = "run.json"  # what the file was called at first

_DATA_BEFORE = {
    "training.dataset_text": "text",
    "training.dataset_order": "files",
    "training.dataset_seed": 0,
    SOURCES: [],
    "training.task_rate": 0.0,
    "training.document_mask": False,
}


@dataclass(frozen=True)
class RunRecord:
    """What the steps until a checkpoint depended on, which a later resume must agree with.

    Attributes:
        data_parallel_degree: ranks that read text of their own.
        data: keys that a place in the data belongs to.
        local_text: which local files it belongs to, by names and sizes; None for other datasets.
        stages: of the run; None in records from before stages were written down.
        optimizer, lr_scheduler: the settings of ``STATE_IN_CHECKPOINT``.
        model_only: whether the checkpoint holds weights alone.
        model: what a llama3 is; None for others, and in records from before it was written down.
        settings: all others, of `settings_of`; None, as the next two, in records from before.
        tokenizer: of `tokenizer_identity`.
        text: of `training_text`.
        changes: that were made in the run's life, each with the step after which, the key, the old
            value, the new one, and the name that ``checkpoint.accept_changes`` had for it, or null.
    """

    data_parallel_degree: int
    data: dict[str, Any]
    local_text: str | None
    stages: Stages | None
    optimizer: dict[str, Any]
    lr_scheduler: dict[str, Any]
    model_only: bool = False
    model: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    tokenizer: str | None = None
    text: list[SourceText] | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, job_config: "JobConfig", data_parallel_degree: int) -> "RunRecord":
        """That of a run as it is configured. Reads samples of its text; a collective."""
        text: list[SourceText] = from_rank_0(partial(training_text, job_config))
        training, stages = job_config.training, Stages.of(job_config)
        kept: dict[str, dict[str, Any]] = {}
        is_llama = job_config.model.name == "llama3"
        for section, names in STATE_IN_CHECKPOINT.items():
            values = asdict(getattr(job_config, section))
            kept[section] = {name: values[name] for name in names}
        if kept["lr_scheduler"]["total_steps"] is None:
            kept["lr_scheduler"]["total_steps"] = training.steps
        return cls(
            data_parallel_degree=data_parallel_degree,
            data={
                "training.dataset": training.dataset,
                "training.dataset_text": training.dataset_text,
                "training.dataset_order": training.dataset_order,
                "training.dataset_seed": training.dataset_seed,
                SOURCES: [[source.weight, source.text] for source in sources_of(job_config)],
                "training.task_rate": training.task_rate,
                "training.document_mask": training.document_mask,
                "training.dataloader.num_workers": training.dataloader.num_workers,
                # Which the tasks' lengths depend on.
                **({"seq_len of the longest stage": stages.longest} if training.task_rate else {}),
            },
            local_text=old_identity(text, training.dataset),
            stages=stages,
            optimizer=kept["optimizer"],
            lr_scheduler=kept["lr_scheduler"],
            model=describe(model_args_of(job_config)) if is_llama else None,
            settings=settings_of(job_config),
            tokenizer=tokenizer_identity(job_config),
            text=text,
        )

    @classmethod
    def read(cls, checkpoint: Path) -> "RunRecord | None":
        """That of a checkpoint; None for one that this trainer has not written.

        Raises:
            ValueError: it can't be read, or is none.
        """
        files = (checkpoint / name for name in (RECORD, _FIRST_RECORD))
        file = next((file for file in files if os.path.lexists(file)), None)
        if file is None:
            return None
        try:
            return cls._of(json.loads(read_file(file).decode()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{file.name} can't be read ({why})") from error

    @classmethod
    def _of(cls, saved: dict[str, Any]) -> "RunRecord":
        _check_shape(saved)
        stages, text = saved.get("stages"), saved.get("text")
        return cls(
            data_parallel_degree=saved["data_parallel_degree"],
            # What a record says nothing of, since there was no key for it yet.
            data=_DATA_BEFORE | saved.get("data", {}),
            local_text=saved.get("local_text"),
            stages=None if stages is None else Stages.from_record(stages),
            optimizer=saved["optimizer"],
            lr_scheduler=saved["lr_scheduler"],
            model_only=saved["model_only"],
            model=saved.get("model"),
            settings=saved.get("settings"),
            tokenizer=saved.get("tokenizer"),
            text=None if text is None else [SourceText.of_record(source) for source in text],
            changes=saved.get("changes", []),
        )

    def write(self, checkpoint: Path, model_only: bool) -> None:
        """Put it into a checkpoint's folder, which is made if it is not there."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        stages = None if self.stages is None else self.stages.record()
        values = asdict(self) | {"stages": stages, "model_only": model_only}
        (checkpoint / RECORD).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _check_shape(saved: Any) -> None:
    """Refuse JSON that is no record: what reads it later takes its keys and types as given."""
    if not isinstance(saved, dict):
        raise TypeError("it holds something else")
    for key, kind in _KINDS.items():
        null = key in _MAY_BE_NULL and saved.get(key) is None
        if key in saved and type(saved[key]) is not kind and not null:
            raise TypeError(f"{key} is {type(saved[key]).__name__}, not {kind.__name__}")
    for key, names in STATE_IN_CHECKPOINT.items():
        if odd := saved[key].keys() ^ set(names):
            raise KeyError(f"{key}.{min(odd)}")
    _check_values(saved)
    if saved.get("stages") == []:
        raise ValueError("stages is empty")
    if not 0 < saved["data_parallel_degree"] < _MOST_RANKS:
        raise ValueError(f"data_parallel_degree = {saved['data_parallel_degree']}")
    if saved["lr_scheduler"]["total_steps"] < 1:
        raise ValueError(f"lr_scheduler.total_steps = {saved['lr_scheduler']['total_steps']}")


def _check_values(saved: dict[str, Any]) -> None:
    """Each setting is of a type that its key has, and the text is what its sources are."""
    # Not imported above, as what torchtitan's lowest modules need must not.
    from torchtitan.config import JobConfig

    data, types = _DATA_BEFORE | saved.get("data", {}), json_types(JobConfig)
    of_state = {f"{s}.{name}": saved[s][name] for s in STATE_IN_CHECKPOINT for name in saved[s]}
    for key, value in (data | (saved.get("settings") or {}) | of_state).items():
        if key in types and type(value) not in types[key]:
            raise TypeError(f"{key} = {value!r}")
    for weight, column in data[SOURCES]:
        if type(weight) not in (int, float) or type(column) is not str:
            raise TypeError(f"{SOURCES} are {weight!r}, {column!r}")
    if saved.get("text") is None:
        return
    if len(saved["text"]) != max(1, len(data[SOURCES])):
        raise ValueError(f"{SOURCES} are not those of text")
    if gone := {key for key in OF_SHARES if key not in data}:
        raise KeyError(min(gone))


_KINDS: dict[str, type] = {
    **dict.fromkeys(("data", "optimizer", "lr_scheduler", "model", "settings"), dict),
    **dict.fromkeys(("stages", "text", "changes"), list),
    **dict.fromkeys(("local_text", "tokenizer"), str),
    "data_parallel_degree": int,
    "model_only": bool,
}
_MOST_RANKS = 1 << 31
_MAY_BE_NULL = ("stages", "model", "settings", "tokenizer", "text", "local_text")


def begin_save(checkpoint: str, record: RunRecord | None, model_only: bool) -> None:
    """Clear what a killed save left in ``checkpoint`` and write the record; rank 0 only acts.

    The other ranks write nothing before rank 0 takes part in planning the save.
    """
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    folder = Path(checkpoint)
    if folder.exists() and not is_finished(folder):
        shutil.rmtree(folder)
    if record is not None:
        record.write(folder, model_only)
