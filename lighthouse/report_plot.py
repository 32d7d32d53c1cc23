"""The loss curve of a run as an image."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, needs no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from lighthouse.runs.metrics import Record
from lighthouse.runs.run_report import Report
from lighthouse.runs.stage_reports import SMOOTH_STEPS, SPIKE_STEPS, attention_of, smoothed, split

COLORS = {"lighthouse": "tab:blue", "dense": "tab:orange", "window": "tab:green"}
_VALIDATIONS = {
    "validation_loss": ("validation", "k."),
    "validation_dense_loss": ("validation, if it were dense", "r."),
}
_MOST_PANELS = 4
"""Boundaries that are drawn large."""


def plot_loss(records: Sequence[Record], report: Report, path: Path, name: str = "") -> None:
    """Write the loss curve as PNG: the whole run, and each boundary between stages large.

    Thin for each logged step, thick smoothed within its stage. The whole run's axis leaves out what
    lies above the losses after its first twentieth, validation's among them, so that what follows
    can be seen.
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
            marker = "o" if len(x) == 1 else "None"  # a line of one point can't be seen
            mean = smoothed(loss, SMOOTH_STEPS)
            axes.plot(x, mean, color=color, linewidth=1.8, marker=marker, markersize=4)
        for key, (_, marker) in _VALIDATIONS.items():
            points = [(r["step"], r[key]) for r in records if key in r]
            if points:
                axes.plot(*zip(*points, strict=True), marker, markersize=5)
        for boundary in boundaries:
            axes.axvline(boundary, color="gray", linestyle="--", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.set_xlabel("training step")
        axes.xaxis.get_major_locator().set_params(integer=True)
    for attention in dict.fromkeys(attention_of(part[0]) for part in parts):
        whole.plot([], [], color=COLORS[attention], linewidth=1.8, label=attention)
    for key, (label, marker) in _VALIDATIONS.items():
        if any(key in record for record in records):
            whole.plot([], [], marker, label=label)
    _clip(whole, records, steps[len(steps) // 20 :])
    for number, (axes, boundary) in enumerate(zip(panels, shown, strict=True)):
        index = next(i for i, record in enumerate(steps) if record["step"] == boundary)
        near = steps[max(0, index - SPIKE_STEPS) : index + SPIKE_STEPS]
        axes.set_xlim(near[0]["step"], near[-1]["step"] + 1)
        _clip(axes, records, near)
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


def _clip(axes: Axes, records: Sequence[Record], steps: Sequence[Record]) -> None:
    """Show the losses of these steps and of validation at them, with a margin."""
    inside = [r for r in records if steps and steps[0]["step"] <= r["step"] <= steps[-1]["step"]]
    losses = [record[key] for key in ("loss", *_VALIDATIONS) for record in inside if key in record]
    finite = [loss for loss in losses if math.isfinite(loss)]
    margin = 0.05 * (max(finite) - min(finite)) if finite else 0
    if 0 < margin < math.inf:
        axes.set_ylim(min(finite) - margin, max(finite) + margin)
