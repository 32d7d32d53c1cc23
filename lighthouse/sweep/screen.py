"""The plan and the status as tables for a terminal."""

import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lighthouse.sweep.progress import progress_of
from lighthouse.sweep.run_folder import DIVERGED, FAILED
from lighthouse.sweep.state import (
    DONE,
    INTERRUPTED,
    NOT_STARTED,
    QUEUED,
    RUNNING,
    UNKNOWN,
    UNREADABLE,
    RunState,
)

if TYPE_CHECKING:
    from lighthouse.sweep.resolve import PlannedRun  # imports the trainer, which takes seconds

# Without a terminal there is no width to fit, and nothing of a plan must be cut.
PLAIN_WIDTH = 200
STATUS_WIDTH = 80
STATUS_LINES = 24

_STYLES = {DONE: "green", RUNNING: "cyan", QUEUED: "blue", FAILED: "bold red", DIVERGED: "red"}
# What is shown first; other states are waiting for someone.
_ORDER = ((RUNNING,), (FAILED, DIVERGED, UNKNOWN, UNREADABLE), (INTERRUPTED, QUEUED, NOT_STARTED))


def console(plain_width: int = PLAIN_WIDTH) -> Console:
    """The standard output, ``plain_width`` wide if it is not a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=plain_width)


def counted(number: int, thing: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def plan_table(planned: Sequence["PlannedRun"], states: Sequence[RunState]) -> Group:
    """A line a run with sizes and estimated cost, and the cost of what is not done yet."""
    table = _table("run", "state")
    for column in ("parameters", "S", "steps", "tokens", "GPUs", "GiB", "GPU-hours"):
        table.add_column(column, justify="right")
    remarks: Counter[str] = Counter()
    for plan, state in zip(planned, states, strict=True):
        run, estimate = plan.run, plan.plan
        remarks.update((*estimate.misfits, *estimate.remarks))
        table.add_row(
            run.name,
            Text(state.state, style=_STYLES.get(state.state, "")),
            "-" if estimate.parameters is None else f"{estimate.parameters:,}",
            ", ".join(f"{rows:,}" for rows in estimate.gathered_len) or "-",
            f"{run.steps:,}",
            f"{estimate.tokens_per_step * run.steps:,}",
            "-" if estimate.device == "cpu" else f"{run.processes}",
            *(_estimates(plan)),
        )
    hours = [run.gpu_hours for run in (plan.run for plan in planned) if run.gpu_hours is not None]
    left = [s.run.gpu_hours or 0.0 for s in states if s.state != DONE]
    total = counted(len(planned), "run")
    if hours:
        total += f", {sum(hours):,.1f} GPU-hours, {sum(left):,.1f} of them in runs not done"
    return Group(
        table, total, *(f"note: {text} ({counted(n, 'run')})" for text, n in remarks.items())
    )


def status_table(
    states: Sequence[RunState], title: str, width: int = STATUS_WIDTH, lines: int | None = None
) -> Group:
    """How many runs are in each state, a line a run with its progress, and what to say of them.

    Args:
        states: of all runs.
        title: of the sweep.
        width: columns that there are.
        lines: that there are; runs that are done, then those that wait, are only counted where not
            all fit. None for all runs.
    """
    counts = Counter(state.state for state in states)
    summary = ", ".join(f"{n} {state}" for state, n in counts.most_common())
    head = Text(f"{title}: {counted(len(states), 'run')}: {summary}")
    shown = sorted(states, key=_rank) if lines is not None else list(states)
    room = math.inf if lines is None else lines - _lines([head], width) - 2  # heads, what is left
    notes = _notes(shown)
    if len(shown) + _lines(notes, width) <= room:
        shown = list(states)
    else:
        # Errors of many kinds must not push the runs at work off the screen, nor the other way.
        while notes and _lines(notes, width) > room / 2:
            notes.pop()
        shown = shown[: max(0, int(room) - _lines(notes, width))]

    def parts() -> list[Table | Text]:
        return [head, _status_rows(shown, width), *notes, *_left_out(states, shown)]

    # A name that is wrapped takes more than a line, and so may what is left out.
    while lines is not None and len(shown) > 1 and _lines(parts(), width) > lines:
        shown = shown[:-1]
    return Group(*parts())


def _left_out(states: Sequence[RunState], shown: Sequence[RunState]) -> list[Text]:
    """How many runs are in each state without a line of their own."""
    listed = {state.run.folder for state in shown}
    left = Counter(state.state for state in states if state.run.folder not in listed)
    rest = ", ".join(f"{n} {state}" for state, n in left.most_common())
    return [Text(f"and {rest}; --all lists them")] if left else []


def _rank(state: RunState) -> int:
    order = next((i for i, states in enumerate(_ORDER) if state.state in states), len(_ORDER))
    return len(_ORDER) + 1 if state.state == DONE else order


def _status_rows(states: Sequence[RunState], width: int) -> Table:
    """A line a run, in as many of the columns as there is room for beside the names."""
    cells: dict[str, list[str]] = {
        **{"run": [], "state": [], "step": [], "done": [], "loss": [], "left": []},
        **{"tokens/s": [], "tries": []},
    }
    for state in states:
        row = (state.run.name, state.state, *_progress(state))
        for column, cell in zip(cells.values(), row, strict=True):
            column.append(cell)
    columns = {name: max(map(len, [name, *found])) for name, found in cells.items()}
    for spare in ("tries", "tokens/s", "step"):
        if sum(columns.values()) + 2 * len(columns) > width:
            del columns[spare]
    others = sum(columns.values()) - columns["run"] + 2 * len(columns)
    columns["run"] = min(columns["run"], max(10, width - others))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, size in columns.items():
        justify: Literal["left", "right"] = "left" if name in ("run", "state") else "right"
        table.add_column(name, justify=justify, width=size, overflow="fold")
    for index, state in enumerate(states):
        row_of = {name: Text(cells[name][index]) for name in columns}
        row_of["run"] = Text(_wrapped(state.run.name, columns["run"]))
        row_of["state"].stylize(_STYLES.get(state.state, ""))
        table.add_row(*row_of.values())
    return table


def _progress(state: RunState) -> tuple[str, ...]:
    """How far a run has come, in the cells of its line."""
    if state.state == UNREADABLE:
        return ("",) * 6
    progress = progress_of(state.run, state.state == RUNNING)
    return (
        f"{progress.step:,}",
        f"{progress.step / state.run.steps:.0%}",
        "" if progress.loss is None else f"{progress.loss:.4f}",
        _duration(None if state.state == DONE else progress.eta),
        "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}",
        str(len(state.attempts)),
    )


def _wrapped(name: str, width: int) -> str:
    """A run's name in lines that end at its commas."""
    lines = [""]
    for part in re.split(r"(?<=,)", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _notes(states: Sequence[RunState]) -> list[Text]:
    """What there is to say of runs, once for all of which it is the same."""
    names: dict[tuple[str, str], list[str]] = {}
    for state in states:
        if state.note:
            names.setdefault((state.state, state.note), []).append(state.run.name)
    return [
        Text(f"{state} {_some(found)}: {note}", style=_STYLES.get(state, ""))
        for (state, note), found in names.items()
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
    return " ".join(names[:2]) + more


def _lines(parts: Sequence[Table | Text], width: int) -> int:
    """How many lines of the screen they take."""
    plain = Console(width=width, file=io.StringIO())
    return sum(len(plain.render_lines(part)) for part in parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _estimates(plan: "PlannedRun") -> tuple[str, str]:
    """Memory and GPU-hours."""
    memory = [s.memory_gib for s in plan.plan.stages if s.memory_gib is not None]
    if not memory or plan.run.gpu_hours is None:
        return "-", "-"
    return f"{max(memory):.1f}", f"{plan.run.gpu_hours:,.1f}"


def _duration(seconds: float | None) -> str:
    if seconds is None or not abs(seconds) < timedelta.max.total_seconds():
        return ""
    return str(timedelta(seconds=round(seconds)))
