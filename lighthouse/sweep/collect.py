"""The results of a sweep from its run folders: CSV, JSON and a Markdown table."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lighthouse.runs.files import write_atomic
from lighthouse.runs.folder import diverged, newest_checkpoint
from lighthouse.runs.metrics import Record, read_metrics, to_json
from lighthouse.runs.run_report import last_step, summarize
from lighthouse.sweep.run_folder import Run, active_seconds

Row = dict[str, Any]

# Measured times; all other columns are the same for the same runs, however often they were stopped.
TIMES = ("gpu_hours", "lighthouse_tokens_per_second", "dense_tokens_per_second", "attempts")

_FROM_REPORT = (
    *("lighthouse_tokens_per_second", "dense_tokens_per_second", "loss_before_switch", "spike"),
    *("steps_to_recover", "final_loss"),
)
_RESULTS = (
    *("done", "steps", "tokens", "processes", "attempts", "gpu_hours"),
    *_FROM_REPORT,
    "validation_loss",
)
_HEADINGS = {
    "name": "run",
    "gpu_hours": "GPU-hours",
    "lighthouse_tokens_per_second": "tokens/s, Lighthouse",
    "dense_tokens_per_second": "tokens/s, dense",
}


def collect(runs: Sequence[Run]) -> list[Row]:
    """A row for each run; ``None`` for what it does not have (yet).

    ``gpu_hours`` is the time in attempts times the run's processes: what was paid for, start-up and
    lost work included. ``tokens_per_second`` counts one device. Where a run has diverged,
    ``diverged`` tells for each; where one can't be read, ``unreadable`` says why, and the rest of
    its row is ``None``.
    """
    unreadable = [run.unreadable() for run in runs]
    ends = [
        {"diverged": why is None and diverged(run.folder) is not None, "unreadable": why}
        for run, why in zip(runs, unreadable, strict=True)
    ]
    rows = [_row(run, why is None) for run, why in zip(runs, unreadable, strict=True)]
    told = [key for key in ("diverged", "unreadable") if any(end[key] for end in ends)]
    return [row | {key: end[key] for key in told} for row, end in zip(rows, ends, strict=True)]


def write_results(rows: Sequence[Row], output: Path) -> list[Path]:
    """Write ``results.csv``, ``.json`` and ``.md`` into a folder."""
    texts = {"csv": _csv(rows), "json": to_json(list(rows), indent=1) + "\n", "md": markdown(rows)}
    paths = []
    for kind, text in texts.items():
        paths.append(output / f"results.{kind}")
        write_atomic(paths[-1], text)
    return paths


def markdown(rows: Sequence[Row]) -> str:
    """A table for people: numbers rounded, overrides as in the run's name."""
    columns = [key for key in rows[0] if key not in ("overrides", "identity")]
    heads = [_HEADINGS.get(key, key.replace("_", " ")) for key in columns]
    lines = [_line(heads), _line(["---"] * len(columns))]
    lines += [_line([_cell(row[key]) for key in columns]) for row in rows]
    return "\n".join(lines) + "\n"


def _row(run: Run, readable: bool) -> Row:
    who = {"name": run.name, "identity": run.identity, "overrides": run.overrides}
    return who | (_results(run) if readable else dict.fromkeys(_RESULTS))


def _results(run: Run) -> Row:
    attempts = run.attempts()
    checkpoint = newest_checkpoint(run.folder)
    try:
        records = read_metrics(run.folder)
        report = summarize(records, checkpoint)
    except ValueError:
        records, report = [], None
    steps = [record for record in records if "loss" in record]
    validation = next((r for r in reversed(records) if "validation_loss" in r), {})
    moments = [record["time"] for record in steps[-1:] if "time" in record]
    moments += [attempt.end for attempt in attempts if attempt.end]
    seconds = active_seconds(attempts, max(moments, default=0.0))
    found = (
        run.done,
        last_step(steps, checkpoint),
        _tokens(steps),
        run.processes,
        len(attempts),
        seconds * run.processes / 3600,
        *(getattr(report, key) if report else None for key in _FROM_REPORT),
        validation.get("validation_loss"),
    )
    return dict(zip(_RESULTS, found, strict=True))


def _tokens(steps: Sequence[Record]) -> int | None:
    """None where the steps don't say."""
    seen = steps[-1].get("tokens_seen", math.nan) if steps else 0
    return int(seen) if math.isfinite(seen) else None


def _csv(rows: Sequence[Row]) -> str:
    """A column for each overridden key, after the others."""
    keys = list(dict.fromkeys(key for row in rows for key in row["overrides"]))
    columns = [key for key in rows[0] if key != "overrides"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*columns, *keys])
    for row in rows:
        writer.writerow([row[k] for k in columns] + [row["overrides"].get(k) for k in keys])
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
