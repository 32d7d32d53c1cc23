"""The plan and the status as tables for a terminal."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lighthouse.sweep.progress import progress_of
from lighthouse.sweep.run_folder import DIVERGED, FAILED
from lighthouse.sweep.state import DONE, QUEUED, RUNNING, RunState

if TYPE_CHECKING:
    from lighthouse.sweep.resolve import PlannedRun  # imports the trainer, which takes seconds

# Without a terminal there is no width to fit, and nothing must be cut.
PLAIN_WIDTH = 200

_STYLES = {DONE: "green", RUNNING: "cyan", QUEUED: "blue", FAILED: "bold red", DIVERGED: "red"}


def console() -> Console:
    """The standard output, wide enough for whole tables if it is not a terminal."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


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
    total = f"{len(planned)} runs"
    if hours:
        total += f", {sum(hours):,.1f} GPU-hours, {sum(left):,.1f} of them in runs not done"
    return Group(table, total, *(f"note: {text} ({n} runs)" for text, n in remarks.items()))


def status_table(states: Sequence[RunState], title: str) -> Group:
    """A line a run with its progress, and how many are in each state."""
    table = _table("run", "state")
    for column in ("step", "of", "loss", "tokens/s", "left", "tries"):
        table.add_column(column, justify="right")
    table.add_column("")
    for state in states:
        progress = progress_of(state.run, state.state == RUNNING)
        done = progress.step / state.run.steps
        table.add_row(
            state.run.name,
            Text(state.state, style=_STYLES.get(state.state, "")),
            f"{progress.step:,}",
            f"{state.run.steps:,} {done:4.0%}",
            "" if progress.loss is None else f"{progress.loss:.4f}",
            "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}",
            _duration(None if state.state == DONE else progress.eta),
            str(len(state.attempts)),
            Text(state.note),
        )
    counts = Counter(state.state for state in states)
    summary = ", ".join(f"{n} {state}" for state, n in counts.most_common())
    return Group(f"{title}: {len(states)} runs: {summary}", table)


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
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))
