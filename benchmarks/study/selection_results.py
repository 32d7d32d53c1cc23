"""The figures of docs/selection.md: from the runs' folders to JSON, from that to tables and plots.

    python -m benchmarks.study.selection_results collect STUDY_FOLDER --device NAME --torch VERSION
                                                         [--add]
    python -m benchmarks.study.selection_results show

``collect`` writes benchmarks/results/selection_study.json, with ``--add`` onto what it has: a run
that is there twice is the new one, with the old leaks where it has none. ``show`` prints the tables
of that file and draws docs/selection_losses.png and docs/selection_tails.png.
"""

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import commit
from lighthouse.runs.metrics import Record, read_metrics
from lighthouse.runs.stage_reports import SPIKE_STEPS, highest, smoothed, steps_to_recover

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/selection_study.json"
NAMES = {
    "published": "published",
    "causal": "causal",
    "random": "causal, random scores",
    "quota": "causal, strata of 2",
}
COLORS = {"published": "tab:red", "causal": "tab:blue", "random": "tab:gray", "quota": "tab:green"}
SMOOTH = 10

Run = dict[str, Any]


def collect(study: Path) -> dict[str, Run]:
    """Every run's curves, and what its leak was."""
    folders = sorted(path.parent for path in study.glob("*/metrics.jsonl"))
    return {folder.name: _of_run(folder) for folder in folders}


def _of_run(folder: Path) -> Run:
    records = read_metrics(folder)
    steps = [record for record in records if "loss" in record]
    tail = re.search(r"-tail-", folder.name) is not None
    losses = [record["loss"] for record in steps]
    shown = losses if tail else smoothed(losses, SMOOTH)
    kept = [i for i in range(len(steps)) if tail or (i + 1) % SMOOTH == 0]
    return {
        "last_step": steps[-1]["step"],
        "steps": [steps[i]["step"] for i in kept],
        "losses": [round(shown[i], 4) for i in kept],
        "validation": _points(records, "validation_loss"),
        "validation_dense": _points(records, "validation_dense_loss"),
        "leaks": [json.loads(file.read_text()) for file in sorted(folder.glob("leak-step-*.json"))],
    }


def _points(records: Iterable[Record], key: str) -> list[tuple[int, float]]:
    return [(record["step"], round(record[key], 4)) for record in records if key in record]


def tables(runs: dict[str, Run]) -> str:
    """Markdown: what the stage saw, and what came after the switch."""
    lines = [
        "| run | own loss, true future | another future | leak | dense | own, all | dense, all |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, run in runs.items():
        for leak in run["leaks"]:
            own = leak["own"]
            lines.append(
                f"| {name}, step {leak['step']} | {own['true_future']:.3f} "
                f"| {own['other_future']:.3f} | {own['leak']:.3f} ± {own['standard_error']:.3f} "
                f"| {leak['dense']:.3f} | {leak['own_everywhere']:.3f} "
                f"| {leak['dense_everywhere']:.3f} |"
            )
    lines += ["", "| run | before the switch | highest after it | recovered after | final |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, run in runs.items():
        if "-tail-" in name:
            lines.append(f"| {name} | {' | '.join(_tail(runs, name, run))} |")
    return "\n".join(lines)


def _tail(runs: dict[str, Run], name: str, run: Run) -> list[str]:
    """Cells for a tail: ``-`` where the run did not get there."""
    stage = runs[name.split("-tail-")[0]]
    first = run["steps"][0]
    before = [v for s, v in zip(stage["steps"], stage["losses"], strict=True) if s < first][-1]
    steps = [
        {"step": step, "loss": loss} for step, loss in zip(run["steps"], run["losses"], strict=True)
    ]
    recovered = steps_to_recover(steps, before)
    final = run["validation"][-1] if run["validation"] else (run["last_step"], None)
    cell = "-" if final[1] is None else f"{final[1]:.3f} (step {final[0]})"
    took = "-" if recovered is None else f"{recovered} steps"
    return [f"{before:.3f}", f"{highest(run['losses'][:SPIKE_STEPS]):.3f}", took, cell]


def plot_losses(runs: dict[str, Run], path: Path) -> None:
    """The Lighthouse stage as validation sees it: under its own attention, and dense."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    groups = {
        "extension to 65,536 tokens of a model trained at 2,048": "extension-{}-{}",
        "from scratch at 16,384 tokens, no dense layer": "scratch-none-{}",
    }
    for axes, (title, pattern) in zip(panels, groups.items(), strict=True):
        for selection in ("published", "causal", "random"):
            seeds = (1, 2, 3) if "{}-{}" in pattern else (1,)
            found = [runs.get(pattern.format(selection, seed)) for seed in seeds]
            curves = [run for run in found if run is not None]
            for key, style in (("validation", "-"), ("validation_dense", "--")):
                for number, run in enumerate(curves):
                    points = [point for point in run[key] if point[0] > 1]
                    what = "its own attention" if key == "validation" else "dense attention"
                    axes.plot(
                        *zip(*points, strict=True),
                        style,
                        color=COLORS[selection],
                        linewidth=1.3,
                        label=f"{NAMES[selection]}: {what}" if number == 0 else None,
                    )
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("step of the Lighthouse stage")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("held-out loss (nats a byte)")
    panels[1].legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_tails(runs: dict[str, Run], path: Path) -> None:
    """Training losses around the switch to dense attention."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    groups = (
        ("extension, the last 10% of 400 steps dense", "extension-{}-{}", 10, (1, 2, 3)),
        ("extension, the last 2% of 400 steps dense", "extension-{}-{}", 2, (1, 2, 3)),
    )
    for axes, (title, pattern, tail, seeds) in zip(panels, groups, strict=True):
        for selection in ("published", "causal"):
            for number, seed in enumerate(seeds):
                stage = pattern.format(selection, seed)
                run = runs.get(f"{stage}-tail-{tail}")
                if run is None:
                    continue
                first = run["steps"][0]
                before = [
                    (s, v)
                    for s, v in zip(runs[stage]["steps"], runs[stage]["losses"], strict=True)
                    if first - 60 <= s < first
                ]
                after = list(zip(run["steps"], run["losses"], strict=True))
                axes.plot(
                    *zip(*before, *after, strict=True),
                    color=COLORS[selection],
                    linewidth=1.3,
                    label=NAMES[selection] if number == 0 else None,
                )
        axes.axvline(first, color="gray", linestyle=":", linewidth=1)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set_ylabel("training loss (nats a byte)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread} ({len(values)})"


def summary(runs: dict[str, Run]) -> str:
    """Means over the extension's seeds at step 360 of 400, with their standard deviation."""
    lines = []
    for selection in NAMES:
        pattern = rf"extension-{selection}-\d"
        stages = [run for name, run in runs.items() if re.fullmatch(pattern, name)]
        leaks = [leak for run in stages for leak in run["leaks"] if leak["step"] == 360]
        dense = [dict(run["validation_dense"]).get(360) for run in stages]
        own = [dict(run["validation"]).get(360) for run in stages]
        cells = {
            "leak": [leak["own"]["leak"] for leak in leaks],
            "own": [value for value in own if value is not None],
            "dense": [value for value in dense if value is not None],
        }
        for tail in (2, 10, 30):
            pattern = rf"extension-{selection}-\d-tail-{tail}"
            found = [run for name, run in runs.items() if re.fullmatch(pattern, name)]
            ends = [dict(run["validation"]).get(400) for run in found]
            cells[f"tail {tail}%"] = [value for value in ends if value is not None]
        shown = ", ".join(f"{key} {_mean(v)}" for key, v in cells.items() if v)
        lines.append(f"{NAMES[selection]}: {shown}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("study", type=Path)
    collecting.add_argument("--device", required=True)
    collecting.add_argument("--torch", required=True)
    collecting.add_argument("--note", default="")
    collecting.add_argument("--add", action="store_true")
    commands.add_parser("show")
    options = parser.parse_args()
    if options.command == "collect":
        before = json.loads(RESULTS.read_text())["runs"] if options.add else {}
        found = collect(options.study)
        for name in found.keys() & before.keys():
            found[name]["leaks"] = found[name]["leaks"] or before[name]["leaks"]
        report = {
            "device": options.device,
            "torch": options.torch,
            "commit": commit(),
            "note": options.note,
            "runs": dict(sorted((before | found).items())),
        }
        RESULTS.write_text(json.dumps(report) + "\n")
    runs = json.loads(RESULTS.read_text())["runs"]
    print(summary(runs), tables(runs), sep="\n\n")
    plot_losses(runs, ROOT / "docs/selection_losses.png")
    plot_tails(runs, ROOT / "docs/selection_tails.png")


if __name__ == "__main__":
    main()
