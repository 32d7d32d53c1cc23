"""What happened in a run: its stages, the loss around each boundary, and the speed.

    python -m lighthouse.report RUN_FOLDER [RUN_FOLDER ...] [--output FOLDER]

reads `metrics.jsonl`, prints a table, and writes `loss.png` and `report.json` into the last folder,
or into ``--output``. Where that folder is someone else's the table is all, and a note says so.
Several folders are the parts of one run in order of training (stage 1, then stage 2).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lighthouse.refusal import in_words, refuse
from lighthouse.report_plot import plot_loss
from lighthouse.runs.files import check_writable
from lighthouse.runs.folder import diverged, newest_checkpoint
from lighthouse.runs.metrics import METRICS_FILE, join_runs, to_json, unread_lines
from lighthouse.runs.run_report import STAGES, Report, has_published_selection, summarize
from lighthouse.runs.stage_reports import SMOOTH_STEPS, table


def format_table(report: Report, unread: int = 0) -> str:
    """The report as lines of "name  value".

    Args:
        report: of a run.
        unread: lines of its metrics that are no step.
    """
    rows = [("last step", f"{report.last_step:,}")]
    if report.foreseen_step is not None:
        where = f"(dense validation loss at step {report.foreseen_step:,})"
        rows.append(("spike foreseen", f"{report.foreseen_loss:.4f}  {where}"))
    if report.switch_step is not None:
        recovery = "not yet" if report.steps_to_recover is None else f"{report.steps_to_recover:,}"
        dense = next(s for s in report.stages if s.first_step == report.switch_step)
        if dense.logged < SMOOTH_STEPS:
            recovery += f": {dense.logged} logged steps so far, the mean of {SMOOTH_STEPS} tells"
        rows += [
            ("switch to dense at step", f"{report.switch_step:,}"),
            (
                "loss before the switch",
                f"{report.loss_before_switch:.4f}  {_mean_of(report.loss_before_steps)}",
            ),
            ("spike after the switch", f"{report.spike:.4f}"),
            ("steps to recover", recovery),
        ]
    rows.append(("final loss", f"{report.final_loss:.4f}  {_mean_of(report.final_steps)}"))
    if report.validation_step is not None:
        where = f"(at step {report.validation_step:,})"
        rows.append(("validation loss", f"{report.validation_loss:.4f}  {where}"))
    # Of stages of several lengths each has its own, in their table.
    if len({stage.seq_len for stage in report.stages}) < 2:
        speeds = {stage.attention: stage.tokens_per_second for stage in report.stages}
        for attention in STAGES:
            if attention in speeds or "lighthouse" in speeds:  # which dense attention follows
                speeds[attention] = getattr(report, f"{attention}_tokens_per_second")
        for attention, speed in speeds.items():
            text = "not measured" if speed is None else f"{speed:,.0f} tokens/s per device"
            rows.append((f"{attention} speed", text))
    if report.leak is not None:
        rows.append(("owed to later tokens", f"{report.leak:.4f} of the lighthouse stage's loss"))
    if unread:
        rows.append(("note", f"lines of {METRICS_FILE} left out, torn or damaged: {unread:,}"))
    unlogged = max((stage.unlogged_before for stage in report.stages), default=0)
    if unlogged:
        known = "where a stage begins, and what is counted from there, is known to as many"
        rows.append(("note", f"up to {unlogged:,} steps before a stage are not logged: {known}"))
    numbers = [stage.number for stage in report.stages]
    if lacking := sorted({*range(1, max(numbers, default=0))} - {*numbers}):
        which = ", ".join(map(str, lacking))
        rows.append(("note", f"no step was logged of stage {which}: lower metrics.log_freq"))
    if report.sees_future:
        why = 'lighthouse.selection = "published" tells of later tokens'
        rows.append(("note", f"the lighthouse stage's loss is no language model's: {why}"))
    rows.append(("checkpoint", report.checkpoint or "none"))
    if report.diverged is not None:
        rows.append(("diverged", report.diverged))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join([table(report.stages), "", *lines] if len(report.stages) > 1 else lines)


def _mean_of(steps: int) -> str:
    return f"(mean of the last {steps} logged steps)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.report",
        description="Table, loss.png and report.json of a run, from its metrics.jsonl.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="RUN_FOLDER",
        help="parts of one run in order of training; files are written into the last",
    )
    parser.add_argument("--output", type=Path, help="folder of the files; default: the last")
    options = parser.parse_args(arguments)
    folders, last = options.folders, options.folders[-1]
    output = options.output or last
    try:
        records = join_runs(folders)
        unread = sum(map(unread_lines, folders))
        published = any(map(has_published_selection, folders))
        report = summarize(records, newest_checkpoint(last), published, diverged(last))
    except (ValueError, OSError) as error:  # the error of a disk names the file
        refuse(error)
    print(format_table(report, unread), flush=True)
    try:
        check_writable(output)
        plot_loss(records, report, output / "loss.png", last.resolve().name)
        (output / "report.json").write_text(to_json(asdict(report)) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        if options.output is not None:
            refuse(error)
        # The table is what was asked for; the folder may be someone else's.
        print(f"note: no loss curve and no report.json: {in_words(error)}", file=sys.stderr)
    else:
        print(f"loss curve: {output / 'loss.png'}")


if __name__ == "__main__":
    main()
