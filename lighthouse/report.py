"""What happened in a run: its stages, the loss around each boundary, and the speed.

    python -m lighthouse.report RUN_FOLDER [RUN_FOLDER ...]

reads `metrics.jsonl`, prints a table, and writes `loss.png` and `report.json` into the last folder.
Several folders are the parts of one run in order of training (stage 1, then stage 2).
"""

import argparse
import itertools
import math
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, needs no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from lighthouse.runs.folder import RESOLVED_FILE, diverged, newest_checkpoint
from lighthouse.runs.metrics import Record, join_runs, to_json
from lighthouse.runs.stage_reports import (
    SMOOTH_STEPS,
    SPIKE_STEPS,
    StageReport,
    attention_of,
    smoothed,
    split,
    stage_reports,
    table,
)

STAGES = ("lighthouse", "dense")
COLORS = {"lighthouse": "tab:blue", "dense": "tab:orange", "window": "tab:green"}
_MOST_PANELS = 4
"""Boundaries that are drawn large."""


@dataclass(frozen=True)
class Report:
    """None stands for what the run does not have (yet).

    Attributes:
        last_step: latest logged training step.
        loss_before_switch: mean loss of the last `loss_before_steps` logged steps in the
            lighthouse stage, at most `SMOOTH_STEPS`.
        foreseen_loss: validation loss under dense attention when it was last measured before the
            switch, or so far, at `foreseen_step`: where the loss would jump to.
        switch_step: first logged step in the dense stage that follows.
        spike: highest loss in the first `SPIKE_STEPS` logged steps of the dense stage.
        steps_to_recover: steps from `switch_step` until the mean of the last `SMOOTH_STEPS` logged
            dense steps, all of them dense, is first at or below `loss_before_switch`.
        final_loss: mean loss of the last `final_steps` logged steps, at most `SMOOTH_STEPS`, all of
            the stage that the run is in.
        lighthouse_tokens_per_second, dense_tokens_per_second: median per device, without the
            first logged step of the stage, which has warm-up and compilation in it.
        validation_loss: the latest, at `validation_step`.
        leak: what the loss of the lighthouse stage owed to later tokens, when last measured.
        sees_future: whether that stage's selection is one that tells of later tokens, so that its
            loss is not that of a language model.
        checkpoint: newest finished checkpoint.
        stages: all of them, in order.
        diverged: how the run ended where its numbers were not finite any more.
    """

    last_step: int
    loss_before_switch: float | None
    loss_before_steps: int
    foreseen_loss: float | None
    foreseen_step: int | None
    switch_step: int | None
    spike: float | None
    steps_to_recover: int | None
    final_loss: float
    final_steps: int
    lighthouse_tokens_per_second: float | None
    dense_tokens_per_second: float | None
    validation_loss: float | None
    validation_step: int | None
    leak: float | None
    sees_future: bool
    checkpoint: str | None
    stages: tuple[StageReport, ...]
    diverged: str | None = None


def summarize(
    records: Sequence[Record],
    checkpoint: Path | None = None,
    published: bool = False,
    diverged: str | None = None,
) -> Report:
    """Measure the switch in `records`, which are in order of steps.

    Args:
        checkpoint: the run's newest one.
        published: whether the run's Lighthouse layers have the published selection.
        diverged: what its folder says of that.

    Raises:
        ValueError: no training record.
    """
    steps = [record for record in records if "loss" in record]
    if not steps:
        raise ValueError("no training step logged yet")
    stages = stage_reports(steps)
    before = _before_the_switch(stages)
    switch = stages[before + 1] if before is not None else None
    last_of = [len(part[-SMOOTH_STEPS:]) for part in split(steps)]
    end = math.inf if switch is None else switch.first_step
    foreseen = [r for r in records if "validation_dense_loss" in r and r["step"] < end]
    validated = [record for record in records if "validation_loss" in record]
    leaks = [record["validation_leak"] for record in records if "validation_leak" in record]
    return Report(
        last_step=steps[-1]["step"],
        loss_before_switch=None if switch is None else switch.loss_before,
        loss_before_steps=0 if before is None else last_of[before],
        foreseen_loss=foreseen[-1]["validation_dense_loss"] if foreseen else None,
        foreseen_step=foreseen[-1]["step"] if foreseen else None,
        switch_step=None if switch is None else switch.first_step,
        spike=None if switch is None else switch.spike,
        steps_to_recover=None if switch is None else switch.steps_to_recover,
        final_loss=stages[-1].final_loss,
        final_steps=last_of[-1],
        lighthouse_tokens_per_second=_speed(steps, "lighthouse"),
        dense_tokens_per_second=_speed(steps, "dense"),
        validation_loss=validated[-1]["validation_loss"] if validated else None,
        validation_step=validated[-1]["step"] if validated else None,
        leak=leaks[-1] if leaks else None,
        sees_future=published and any(stage.attention == "lighthouse" for stage in stages),
        checkpoint=str(checkpoint) if checkpoint else None,
        stages=tuple(stages),
        diverged=diverged,
    )


def has_published_selection(folder: Path) -> bool:
    """Whether a run's Lighthouse layers may select by tokens that come later.

    Runs from before there was a choice all do. False where the run's configuration is not there.
    """
    resolved = folder / RESOLVED_FILE
    if not resolved.is_file():
        return False
    section = tomllib.loads(resolved.read_text(encoding="utf-8")).get("lighthouse", {})
    in_layers = any("selection=published" in entry for entry in section.get("layer_overrides", ()))
    return section.get("selection", "published") == "published" or in_layers


def _before_the_switch(stages: Sequence[StageReport]) -> int | None:
    """Index of the first Lighthouse stage that a dense one follows."""
    pairs = itertools.pairwise(stage.attention for stage in stages)
    return next((i for i, pair in enumerate(pairs) if pair == STAGES), None)


def _speed(steps: Sequence[Record], attention: str) -> float | None:
    """Of all stages of an attention, without the first logged step of each."""
    speeds = [
        record["tokens_per_second"]
        for stage in split(steps)
        if attention_of(stage[0]) == attention
        for record in stage[1:]
    ]
    return statistics.median(speeds) if speeds else None


def format_table(report: Report) -> str:
    """The report as lines of "name  value"."""
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
    for stage in STAGES:
        speed = getattr(report, f"{stage}_tokens_per_second")
        text = "not measured" if speed is None else f"{speed:,.0f} tokens/s per device"
        rows.append((f"{stage} speed", text))
    if report.leak is not None:
        rows.append(("owed to later tokens", f"{report.leak:.4f} of the lighthouse stage's loss"))
    unlogged = max((stage.unlogged_before for stage in report.stages), default=0)
    if unlogged:
        known = "where a stage begins, and what is counted from there, is known to as many"
        rows.append(("note", f"up to {unlogged:,} steps before a stage are not logged: {known}"))
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


def plot_loss(records: Sequence[Record], report: Report, path: Path, name: str = "") -> None:
    """Write the loss curve as PNG: the whole run, and each boundary between stages large.

    Thin for each logged step, thick smoothed within its stage. The whole run's axis leaves out what
    lies above the losses after its first twentieth, so that what follows can be seen.
    """
    steps = [record for record in records if "loss" in record]
    parts = split(steps)
    boundaries = [part[0]["step"] for part in parts[1:]]
    shown = boundaries[-_MOST_PANELS:]
    figure, grid = plt.subplots(
        2 if shown else 1,
        max(1, len(shown)),
        figsize=(9, 7.5 if shown else 4.5),
        layout="constrained",
        squeeze=False,
        height_ratios=(3, 2) if shown else None,
    )
    for axes in grid[0]:
        axes.remove()
    whole = figure.add_subplot(grid[0][0].get_gridspec()[0, :])
    panels = list(grid[1]) if shown else []
    for axes in (whole, *panels):
        for part in parts:
            x, loss = [r["step"] for r in part], [r["loss"] for r in part]
            color = COLORS[attention_of(part[0])]
            axes.plot(x, loss, color=color, linewidth=0.6, alpha=0.5)
            axes.plot(x, smoothed(loss, SMOOTH_STEPS), color=color, linewidth=1.8)
        for key, marker in (("validation_loss", "k."), ("validation_dense_loss", "r.")):
            points = [(r["step"], r[key]) for r in records if key in r]
            if points:
                axes.plot(*zip(*points, strict=True), marker, markersize=5)
        for boundary in boundaries:
            axes.axvline(boundary, color="gray", linestyle="--", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.set_xlabel("training step")
    for attention in dict.fromkeys(attention_of(part[0]) for part in parts):
        whole.plot([], [], color=COLORS[attention], linewidth=1.8, label=attention)
    for key, label, marker in (
        ("validation_loss", "validation", "k."),
        ("validation_dense_loss", "validation, if it were dense", "r."),
    ):
        if any(key in record for record in records):
            whole.plot([], [], marker, label=label)
    _clip(whole, [r["loss"] for r in steps[len(steps) // 20 :]])
    for number, (axes, boundary) in enumerate(zip(panels, shown, strict=True)):
        index = next(i for i, record in enumerate(steps) if record["step"] == boundary)
        near = steps[max(0, index - SPIKE_STEPS) : index + SPIKE_STEPS]
        axes.set_xlim(near[0]["step"], near[-1]["step"] + 1)
        _clip(axes, [record["loss"] for record in near])
        stage = report.stages[len(report.stages) - len(shown) + number]
        length = f", {stage.seq_len:,} tokens" if stage.seq_len else ""
        axes.set_title(f"step {boundary:,}: {stage.attention}{length}", fontsize="small")
        if stage.loss_before is not None:
            axes.axhline(stage.loss_before, color="gray", linestyle=":", linewidth=0.8)
    whole.set_ylabel("cross-entropy loss (nats per token)")
    whole.set_title(
        f"{name}{': ' if name else ''}thin: logged steps, thick: mean of {SMOOTH_STEPS}",
        fontsize="small",
    )
    whole.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _clip(axes: Axes, losses: Sequence[float]) -> None:
    """Show these losses, with a margin."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite and max(finite) > min(finite):
        margin = 0.05 * (max(finite) - min(finite))
        axes.set_ylim(min(finite) - margin, max(finite) + margin)


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
    folders = parser.parse_args(arguments).folders
    try:
        records = join_runs(folders)
        published = any(map(has_published_selection, folders))
        end = diverged(folders[-1])
        report = summarize(records, newest_checkpoint(folders[-1]), published, end)
    except ValueError as error:
        parser.error(str(error))
    output = folders[-1]
    plot_loss(records, report, output / "loss.png", output.resolve().name)
    (output / "report.json").write_text(to_json(asdict(report)) + "\n", encoding="utf-8")
    print(format_table(report))
    print(f"loss curve: {output / 'loss.png'}")


if __name__ == "__main__":
    main()
