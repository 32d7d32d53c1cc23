"""Loss curves of all runs over steps, tokens and GPU-hours, and final loss against cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # writes files, needs no display
import matplotlib.pyplot as plt

from lighthouse.runs.metrics import read_metrics
from lighthouse.runs.stage_report import SMOOTH_STEPS, smoothed
from lighthouse.sweep.run_folder import Run, active_seconds

AXES = {"steps": "training step", "tokens": "tokens", "gpu_hours": "GPU-hours"}
LOSS = "cross-entropy loss (nats per token)"


@dataclass(frozen=True)
class _Curve:
    """A run's loss, smoothed, and where it stood at each logged step."""

    name: str
    x: dict[str, list[float]]
    loss: list[float]
    done: bool


def plot_sweep(runs: Sequence[Run], output: Path) -> list[Path]:
    """Write a PNG for each of `AXES`, and the scatter of final loss against GPU-hours.

    Raises:
        ValueError: no run has logged a step.
    """
    curves = [curve for curve in map(_curve, runs) if curve is not None]
    if not curves:
        raise ValueError(f"{output}: no run has logged a step yet")
    colors = [plt.get_cmap("turbo")((i + 0.5) / len(curves)) for i in range(len(curves))]
    paths = []
    for axis, label in AXES.items():
        figure, axes = _figure(label)
        for curve, color in zip(curves, colors, strict=True):
            axes.plot(curve.x[axis], curve.loss, color=color, linewidth=1.2, label=curve.name)
        axes.set_title(f"mean of {SMOOTH_STEPS} logged steps", fontsize="small")
        paths.append(_save(figure, axes, output / f"loss_over_{axis}.png"))

    figure, axes = _figure(AXES["gpu_hours"])
    for curve, color in zip(curves, colors, strict=True):
        face = color if curve.done else "none"
        cost, loss = curve.x["gpu_hours"][-1], curve.loss[-1]
        axes.scatter(cost, loss, edgecolors=color, facecolors=face, label=curve.name)
    axes.set_title("latest loss against cost; hollow: not done", fontsize="small")
    paths.append(_save(figure, axes, output / "loss_against_cost.png"))
    return paths


def _curve(run: Run) -> _Curve | None:
    try:
        records = [record for record in read_metrics(run.folder) if "loss" in record]
    except ValueError:
        return None
    if not records:
        return None
    attempts = run.attempts()
    hours = [active_seconds(attempts, r["time"]) * run.processes / 3600 for r in records]
    x = {
        "steps": [r["step"] for r in records],
        "tokens": [r["tokens_seen"] for r in records],
        "gpu_hours": hours,
    }
    return _Curve(run.name, x, smoothed([r["loss"] for r in records], SMOOTH_STEPS), run.done)


def _figure(label: str) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    axes.set_xlabel(label)
    axes.set_ylabel(LOSS)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> Path:
    # Beside the curves, which many names would cover.
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="x-small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
