"""Loss curves of all runs over steps, tokens and GPU-hours, and final loss against cost.

Runs that differ in their seed alone are one curve: the mean, and a band from the lowest to the
highest. The first axis of the sweep has the colors, the second the dashes.
What some seeds have logged further than others is thin.
"""

import math
import statistics
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # writes files, needs no display
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lighthouse.runs.means import mean_of
from lighthouse.runs.metrics import Record, read_metrics
from lighthouse.runs.stage_reports import SMOOTH_STEPS, smoothed, split
from lighthouse.sweep.run_folder import Run, active_seconds, run_names
from lighthouse.sweep.spec import SEED, TEXT_SEED

AXES = {"steps": "training step", "tokens": "tokens", "gpu_hours": "GPU-hours"}
LOSS = "cross-entropy loss (nats per token)"
LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # of lines and of points


@dataclass(frozen=True)
class _Curve:
    """A run's loss, smoothed within its stages, and where it stood at each logged step.

    Attributes:
        x: for each of `AXES`, at each logged step; NaN where its metrics don't say.
        loss: at each logged step.
        switches: indices of the first logged step of each later stage.
        validation: index of the logged step at or before it, and the loss.
    """

    x: dict[str, list[float]]
    loss: list[float]
    switches: list[int]
    validation: list[tuple[int, float]]
    done: bool


@dataclass(frozen=True)
class _Group:
    """Runs that differ in their seed alone, how they are called together and how they look."""

    label: str
    curves: list[_Curve]
    color: Any
    look: tuple[str, str]

    def mean(self) -> tuple[_Curve, list[float], list[float]]:
        """Means over the runs at the steps that all have logged, lowest and highest losses."""
        places = [{step: i for i, step in enumerate(c.x["steps"])} for c in self.curves]
        steps = [s for s in places[0] if all(s in place for place in places)]

        def at(values: Sequence[Sequence[float]]) -> list[list[float]]:
            each = zip(values, places, strict=True)
            return [[found[place[s]] for s in steps] for found, place in each]

        losses = list(zip(*at([c.loss for c in self.curves]), strict=True))
        x = {
            axis: [mean_of(v) for v in zip(*at([c.x[axis] for c in self.curves]), strict=True)]
            for axis in AXES
        }
        first = self.curves[0]
        index = {step: i for i, step in enumerate(steps)}
        switched = [index.get(first.x["steps"][i]) for i in first.switches]
        mean = _Curve(
            x,
            [mean_of(found) for found in losses],
            [i for i in switched if i is not None],
            self._validation(steps),
            all(curve.done for curve in self.curves),
        )
        return mean, [min(found) for found in losses], [max(found) for found in losses]

    def _validation(self, steps: Sequence[float]) -> list[tuple[int, float]]:
        """Where all runs were validated."""
        at_step = [{c.x["steps"][i]: loss for i, loss in c.validation} for c in self.curves]
        return [
            (i, mean_of([found[step] for found in at_step]))
            for i, step in enumerate(steps)
            if all(step in found for found in at_step)
        ]


def plot_sweep(runs: Sequence[Run], output: Path) -> list[Path]:
    """Write a PNG for each of `AXES`, and the scatter of final loss against GPU-hours.

    Says on stderr of how many curves an axis has not all, since their metrics don't say.

    Raises:
        ValueError: no run has logged a step.
    """
    groups = _groups(runs)
    if not groups:
        raise ValueError(f"{output}: no run has logged a step yet")
    curves = [curve for group in groups for curve in group.curves]
    for axis, name in AXES.items():
        lacking = sum(not all(map(math.isfinite, curve.x[axis])) for curve in curves)
        if lacking:
            left_out = f"{lacking} of {len(curves)} curves are not drawn, or not all of them"
            print(f"note: over {name} {left_out}: metrics lack it", file=sys.stderr)
    return [
        *(_save(_over(groups, axis), output / f"loss_over_{axis}.png") for axis in AXES),
        _save(_against_cost(groups), output / "loss_against_cost.png"),
    ]


def _groups(runs: Sequence[Run]) -> list[_Group]:
    """Runs with something logged, by all that varies but the seed."""
    seeds = (SEED, TEXT_SEED)
    points = [{k: v for k, v in run.overrides.items() if k not in seeds} for run in runs]
    labels = run_names(points) if any(points) else [run.name for run in runs]
    values: dict[str, list[str]] = {}
    for point in points:
        for key, value in point.items():
            found = values.setdefault(key, [])
            found += [str(value)] * (str(value) not in found)
    axes = [key for key, found in values.items() if len(found) > 1]
    curves: dict[str, list[_Curve]] = {}
    looks: dict[str, tuple[Any, tuple[str, str]]] = {}
    for number, (run, point, label) in enumerate(zip(runs, points, labels, strict=True)):
        curve = _curve(run)
        if curve is None:
            continue
        curves.setdefault(label, []).append(curve)

        def place(axis: int, point: dict[str, Any] = point) -> tuple[int, int]:
            # A point without the axis comes after those with it.
            known = values[axes[axis]]
            value = str(point.get(axes[axis]))
            return known.index(value) if value in known else len(known), len(known) + 1

        hue, of = place(0) if axes else (number, len(runs))
        look = place(1)[0] if len(axes) > 1 else 0
        color = plt.get_cmap("turbo")((hue + 0.5) / of)
        # Points beside the axes can share an axis value with a run of the grid.
        like = [LOOKS[(look + more) % len(LOOKS)] for more in range(len(LOOKS))]
        taken = [found for other, found in looks.items() if other != label]
        looks[label] = color, next((at for at in like if (color, at) not in taken), like[0])
    return [_Group(label, found, *looks[label]) for label, found in curves.items()]


def _curve(run: Run) -> _Curve | None:
    if (why := run.unreadable()) is not None:
        print(f"note: {run.name} is not drawn: {why}", file=sys.stderr)
        return None
    try:
        records = read_metrics(run.folder)
    except ValueError:
        return None
    steps = [record for record in records if "loss" in record]
    if not steps:
        return None
    stages = split(steps)
    starts = [sum(map(len, stages[:i])) for i in range(1, len(stages))]
    attempts = run.attempts()
    x = {
        "steps": [r["step"] for r in steps],
        "tokens": [r.get("tokens_seen", math.nan) for r in steps],
        "gpu_hours": [
            active_seconds(attempts, r["time"]) * run.processes / 3600 if "time" in r else math.nan
            for r in steps
        ],
    }
    loss = [s for stage in stages for s in smoothed([r["loss"] for r in stage], SMOOTH_STEPS)]
    return _Curve(x, loss, starts, _validated(records, x["steps"]), run.done)


def _validated(records: Sequence[Record], steps: Sequence[int]) -> list[tuple[int, float]]:
    found = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r]
    places = [(bisect_right(steps, step) - 1, loss) for step, loss in found]
    return [(i, loss) for i, loss in places if i >= 0]


def _over(groups: Sequence[_Group], axis: str) -> tuple[Figure, Axes]:
    figure, axes = _figure(AXES[axis])
    has_validation = has_switch = has_band = False
    for group in groups:
        mean, lowest, highest = group.mean()
        x = mean.x[axis]
        axes.plot(
            x,
            mean.loss,
            color=group.color,
            linestyle=group.look[0],
            linewidth=1.2,
            label=group.label,
        )
        marks = [(mean, i) for i in mean.switches]
        if len(group.curves) > 1:
            has_band = True
            axes.fill_between(x, lowest, highest, color=group.color, alpha=0.2, linewidth=0)
            for curve in group.curves:
                further = bisect_right(curve.x["steps"], mean.x["steps"][-1] if x else 0)
                thin = curve.x[axis][further:], curve.loss[further:]
                axes.plot(*thin, color=group.color, linestyle=group.look[0], linewidth=0.5)
                marks += [(curve, i) for i in curve.switches if i >= further]
        for curve, i in marks:
            has_switch = True
            axes.plot(curve.x[axis][i], curve.loss[i], marker="v", color=group.color, markersize=7)
        if mean.validation:
            has_validation = True
            places, losses = zip(*mean.validation, strict=True)
            axes.plot([x[i] for i in places], losses, "x", color=group.color, markersize=6)
    parts = [f"mean of {SMOOTH_STEPS} logged steps"]
    parts += ["band: lowest to highest of the seeds"] * has_band
    parts += ["triangle: another stage begins"] * has_switch + [
        "cross: validation"
    ] * has_validation
    axes.set_title("; ".join(parts), fontsize="small")
    # Beside the curves, which many names would cover.
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small", handlelength=3)
    return figure, axes


def _against_cost(groups: Sequence[_Group]) -> tuple[Figure, Axes]:
    figure, axes = _figure(AXES["gpu_hours"])
    for group in groups:
        costs = [curve.x["gpu_hours"][-1] for curve in group.curves]
        losses = [curve.loss[-1] for curve in group.curves]
        for curve, cost, loss in zip(group.curves, costs, losses, strict=True):
            face = group.color if curve.done else "none"
            marker = group.look[1]
            axes.scatter(cost, loss, edgecolors=[group.color], facecolors=[face], marker=marker)
        named = losses.index(statistics.median_low(losses))
        if not (math.isfinite(costs[named]) and math.isfinite(losses[named])):
            continue
        axes.annotate(
            group.label,
            (costs[named], losses[named]),
            xytext=(5, 3),
            textcoords="offset points",
            fontsize="x-small",
        )
    axes.margins(x=0.15)  # for the labels
    axes.set_title("latest loss against cost; hollow: not done", fontsize="small")
    return figure, axes


def _figure(label: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    axes.set_xlabel(label)
    axes.set_ylabel(LOSS)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(drawn: tuple[Figure, Axes], path: Path) -> Path:
    figure, _ = drawn
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
