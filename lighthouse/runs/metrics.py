"""The metrics of a run: one strict JSON object per line, in `metrics.jsonl` of its folder."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
ETA = "time_metrics/eta(s)"

Record = dict[str, Any]

ATTENTIONS = ("lighthouse", "dense", "window")
_NAMES = ("attention", "stage")  # of one of those; all else is numbers
_MOST = (1 << 63) - 1


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: floats in full, NaN and infinities as "nan", "inf", "-inf"."""
    return json.dumps(_strict(value), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(folder: Path) -> list[Record]:
    """Records of a run folder in order of steps, superseded ones left out.

    A run that was killed and continued from a checkpoint has logged some steps twice. The file is
    in order of time, so a training record for step s replaces everything from step s on that
    stands before it.

    Raises:
        ValueError: no metrics file, nothing in it, or it can't be read.
    """
    path = folder / METRICS_FILE
    records = [record for record in _read_lines(folder) if record is not None]
    if not records:
        raise ValueError(f"{path} has no step that can be read: nothing logged yet, or damaged")
    return _rewind(records)


def unread_lines(folder: Path) -> int:
    """How many lines `read_metrics` leaves out, since they are no step: torn, or damaged."""
    return sum(record is None for record in _read_lines(folder))


def join_runs(folders: Sequence[Path]) -> list[Record]:
    """Records of the parts of one run, given in order of training.

    Raises:
        ValueError: a folder without metrics, or parts that are not in order.
    """
    joined: list[Record] = []
    before = -1
    for folder in folders:
        records = read_metrics(folder)
        # Two parts may begin alike, if the earlier one saved nothing, but not at the start.
        first = joined[0]["step"] if joined else -1
        if records[0]["step"] < before or records[0]["step"] <= first:
            raise ValueError(
                f"{folder} begins at step {records[0]['step']}, not after the part before it "
                f"(step {before}): give the folders of one run in order of training"
            )
        before = records[0]["step"]
        joined = _rewind(joined + records)
    return joined


def _read_lines(folder: Path) -> list[Record | None]:
    """What each line of a run's metrics has; None for what is no record of a step."""
    path = folder / METRICS_FILE
    try:
        if not path.is_file():
            no_metrics = f"{folder} has no {METRICS_FILE}: not a run folder, or nothing logged yet"
            raise ValueError(no_metrics)
        lines = path.read_bytes().splitlines()
    except OSError as error:  # of the file, or of a folder that can't be searched
        raise ValueError(f"{path} can't be read ({error.strerror})") from error
    return [_read_line(line) for line in lines if line]


def _read_line(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    # Half a line, from a run killed while writing it, or damaged by the disk.
    except (ValueError, RecursionError):
        return None
    return _of_numbers(record) if isinstance(record, dict) else None


def _of_numbers(values: Record) -> Record | None:
    """What readers can compute with; None for what is no record of a step."""
    # Not by `in` of the value, which may be a list.
    values = {k: float(v) if str(v) in ("nan", "inf", "-inf") else v for k, v in values.items()}
    named = {key: values[key] for key in _NAMES if key in values}
    found = {k: v for k, v in values.items() if type(v) is float or _is_whole(v)}
    is_step = type(found.get("step")) is int and found["step"] >= 0
    is_known = all(type(name) is str and name in ATTENTIONS for name in named.values())
    return (
        found | named if is_step and is_known and ("loss" in found) == ("loss" in values) else None
    )


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number that can be computed with."""
    return type(value) is int and -_MOST <= value <= _MOST


def _rewind(records: list[Record]) -> list[Record]:
    kept: list[Record] = []
    for record in records:
        # Validation of step s comes after training of step s, and replaces only what is later.
        while kept and (
            kept[-1]["step"] > record["step"]
            or (kept[-1]["step"] == record["step"] and ("loss" in record or "loss" not in kept[-1]))
        ):
            kept.pop()
        kept.append(record)
    return kept
