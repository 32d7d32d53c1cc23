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


def to_json(value: Any) -> str:
    """Strict JSON: floats in full, NaN and infinities as "nan", "inf", "-inf"."""
    return json.dumps(_strict(value), allow_nan=False)


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
        ValueError: no metrics file, or nothing in it.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {METRICS_FILE}: not a run folder, or nothing logged yet")
    return _rewind(_read_lines(path))


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


def _read_lines(path: Path) -> list[Record]:
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # half a line, from a run killed while writing it, or damaged by the disk
        if not isinstance(record, dict):
            continue
        if (record := _of_numbers(record)) is not None:
            records.append(record)
    if not records:
        raise ValueError(f"{path} has no step that can be read: nothing logged yet, or damaged")
    return records


def _of_numbers(values: Record) -> Record | None:
    """What readers can compute with; None for what is no record of a step."""
    # Not by `in` of the value, which may be a list.
    values = {k: float(v) if str(v) in ("nan", "inf", "-inf") else v for k, v in values.items()}
    named = {key: values[key] for key in _NAMES if key in values}
    found = {k: v for k, v in values.items() if type(v) in (int, float)}
    is_step = type(found.get("step")) is int and 0 <= found["step"] < 1 << 63
    is_known = all(type(name) is str and name in ATTENTIONS for name in named.values())
    return (
        found | named if is_step and is_known and ("loss" in found) == ("loss" in values) else None
    )


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
