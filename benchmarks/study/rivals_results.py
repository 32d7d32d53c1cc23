"""The runs of ``benchmarks.study.rivals``: from their folders to JSON, from that to docs/study.md.

python -m benchmarks.study.rivals_results collect STUDY --device NAME --torch VERSION [--machine N]
python -m benchmarks.study.rivals_results page
"""

import argparse
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import commit
from benchmarks.study.rivals import SETTINGS, Setting, short_name
from lighthouse.runs.metrics import read_metrics
from lighthouse.runs.stage_reports import stage_reports

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/recipes.json"
PAGE = ROOT / "docs/study.md"
TEMPLATE = Path(__file__).with_name("page.md")

BESIDE_SETTINGS = ("attention", "seq_len", "steps")
"""Keys of a stage that its results have beside ``settings``."""

Run = dict[str, Any]


def collect(study: Path, device: str, torch: str, machine: int) -> dict[str, Run]:
    """Runs that were evaluated: where they began, stages, seconds, losses, what they can do."""
    where = f"{device}, machine {machine}" if machine > 1 else device
    found: dict[str, Run] = {}
    for path in sorted(study.glob("*/evaluate-step-*.json")):
        name = path.parent.name
        match = re.fullmatch(
            r"(?P<setting>[^-]+)-(?P<recipe>.+)-(?P<rate>\d.*e-\d)-(?P<seed>\d)", name
        )
        if match is None or match["recipe"] not in SETTINGS[match["setting"]].recipes:
            continue  # no run of a recipe, or of one that is tried no more
        records = read_metrics(path.parent)
        asked = json.loads(path.read_text())
        found[f"{name} on {where}"] = {
            **match.groupdict(),
            "begun_at": _short_stage_loss(study, match["setting"], int(match["seed"])),
            "stages": _stages(records, SETTINGS[match["setting"]], match["recipe"]),
            "validation": [
                (record["step"], round(record["validation_loss"], 4))
                for record in records
                if "validation_loss" in record
            ],
            **{key: asked[key] for key in ("positions", "needle", "recall", "variables")},
            "device": device,
            "machine": machine,
            "torch": torch,
            "commit": commit(),
        }
    return found


def _short_stage_loss(study: Path, setting: str, seed: int) -> float | None:
    """Held-out loss of the short stage at its end; None from scratch."""
    if not SETTINGS[setting].after_short:
        return None
    records = read_metrics(study / short_name(setting, seed))
    losses = [record["validation_loss"] for record in records if "validation_loss" in record]
    return round(losses[-1], 3)


def _stages(
    records: Sequence[dict[str, Any]], setting: Setting, recipe: str
) -> list[dict[str, Any]]:
    """Of each stage: its settings, the seconds of its steps at the median speed, and its start."""
    reports = stage_reports([record for record in records if "loss" in record])
    found = []
    for stage, report in zip(setting.recipes[recipe], reports, strict=True):
        assert report.tokens_per_second is not None
        found.append(
            {
                "attention": report.attention,
                "seq_len": report.seq_len,
                "steps": stage["steps"],
                "settings": {k: v for k, v in stage.items() if k not in BESIDE_SETTINGS},
                "tokens_per_second": round(report.tokens_per_second),
                "seconds": round(stage["steps"] * setting.tokens / report.tokens_per_second, 1),
                "loss_before": report.loss_before,
                "spike": report.spike,
                "steps_to_recover": report.steps_to_recover,
                "final_loss": report.final_loss,
            }
        )
    return found


def seconds(run: Run) -> float:
    """Of all steps."""
    return sum(stage["seconds"] for stage in run["stages"])


def right(run: Run, task: str, longest: bool = False) -> float:
    """Share of answers that are right, at the longest length or at all."""
    cells = run[task]
    at = [cell for cell in cells if cell["length"] == max(c["length"] for c in cells)]
    chosen = at if longest else cells
    shares = [cell["right"] / cell.get("trials", 1) for cell in chosen]
    return statistics.fmean(shares)


def by_recipe(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs that differ in nothing but the seed."""
    found = defaultdict(list)
    for run in runs:
        found[run["recipe"], run["rate"]].append(run)
    return dict(found)


def by_seed(group: Sequence[Run]) -> list[Run]:
    return sorted(group, key=lambda run: run["seed"])


def _far(group: Sequence[Run]) -> list[float]:
    """Losses beyond the far border, by seed."""
    return [run["positions"]["far"] for run in by_seed(group)]


def best_rates(groups: dict[tuple[str, str], list[Run]]) -> dict[str, tuple[str, list[Run]]]:
    """Of each recipe, the rate whose first seed ends lowest beyond half the length."""
    best: dict[str, tuple[str, list[Run]]] = {}

    for (recipe, rate), runs in groups.items():
        if recipe not in best or _far(runs)[0] < _far(best[recipe][1])[0]:
            best[recipe] = rate, runs
    return best


def table(runs: Sequence[Run], seq_len: int) -> str:
    """Markdown: each recipe at its best rate, by the loss beyond the middle."""
    rates: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        rates[run["recipe"]].add(run["rate"])
    best = best_rates(by_recipe(runs))
    lines = [
        "| recipe | stages | rate, of | seconds | tokens/s | begun at | far loss "
        "| its far context is worth | needle at full length | recall | variables |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]

    for recipe, (rate, group) in sorted(best.items(), key=lambda item: _far(item[1][1])[0]):
        tokens = [
            sum(stage["seconds"] * stage["tokens_per_second"] for stage in run["stages"])
            for run in group
        ]
        speed = statistics.fmean(t / seconds(run) for t, run in zip(tokens, group, strict=True))
        shares = " | ".join(
            f"{statistics.fmean(right(run, task, longest=task == 'needle') for run in group):.2f}"
            for task in ("needle", "recall", "variables")
        )
        gain = statistics.fmean(run["positions"]["gain"] for run in group)
        begun = ", ".join(f"{run['begun_at'] or 'scratch'}" for run in by_seed(group))
        lines.append(
            f"| {recipe} | {stages_in_words(group[0]['stages'], seq_len)} "
            f"| {rate}, {len(rates[recipe])} "
            f"| {statistics.fmean(seconds(run) for run in group):.0f} | {speed / 1000:,.0f}k "
            f"| {begun} | {', '.join(f'{loss:.3f}' for loss in _far(group))} | {gain:.3f} "
            f"| {shares} |"
        )
    return "\n".join(lines)


def switches(runs: Iterable[Run]) -> str:
    """Markdown: what happened to the training loss where the last stage began."""
    lines = [
        "| recipe | steps before, behind | loss before | spike | steps to recover | at the end "
        "| held-out |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in sorted(runs, key=lambda run: run["stages"][-1]["steps"]):
        *before, last = run["stages"]
        if not before or last.get("spike") is None:
            continue
        recovered = last["steps_to_recover"]
        lines.append(
            f"| {run['recipe']} | {sum(stage['steps'] for stage in before)}, {last['steps']} "
            f"| {last['loss_before']:.3f} | {last['spike']:.3f} "
            f"| {'not yet' if recovered is None else recovered} | {last['final_loss']:.3f} "
            f"| {run['positions']['loss']:.3f} |"
        )
    return "\n".join(lines)


def stages_in_words(stages: Sequence[dict[str, Any]], seq_len: int) -> str:
    words = []
    for stage in stages:
        word = f"{stage['steps']} {stage['attention']}"
        if stage["seq_len"] != seq_len:
            word += f" at {stage['seq_len']:,}"
        extra = [f"{key} {value}" for key, value in stage["settings"].items()]
        words.append(word + (f" ({', '.join(extra)})" if extra else ""))
    return ", ".join(words)


def by_machine(runs: dict[str, Run], setting: str) -> dict[tuple[str, int], list[Run]]:
    """Runs of a setting: each machine has short stages of its own; from scratch all are alike."""
    of_setting = [run for run in runs.values() if run["setting"] == setting]
    found = defaultdict(list)
    for run in of_setting:
        found[run["device"], run["machine"]].append(run)
    if SETTINGS[setting].after_short or not found:
        return dict(found)
    return {(" and ".join(sorted({device for device, _ in found})), 1): of_setting}


def picture(setting: str, device: str, machine: int) -> Path:
    card = "_".join(words.split()[1].lower() for words in device.split(" and "))
    return RESULTS.with_name(f"recipes_{setting}_{card}{f'_{machine}' if machine > 1 else ''}.png")


def frontier(runs: Sequence[Run], setting: str, device: str, path: Path) -> None:
    """Loss beyond the middle against seconds, and the loss by position."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    best = best_rates(by_recipe(runs))
    order = sorted(best, key=lambda name: _far(best[name][1])[0])
    figure, (left, other) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for number, recipe in enumerate(order):
        group = best[recipe][1]
        color = plt.get_cmap("tab20")(number % 20)
        ends = [run["positions"]["far"] for run in group]
        took = [seconds(run) for run in group]
        left.plot(took, ends, "o", color=color)
        # Below the best and above the next, which may be as good.
        away = (5, -10) if number % 2 == 0 else (5, 3)
        left.annotate(
            recipe, (took[0], ends[0]), xytext=away, textcoords="offset points", fontsize=8
        )
        bins = group[0]["positions"]["bins"]
        losses = [
            statistics.fmean(run["positions"]["bins"][i][2] for run in group)
            for i in range(len(bins))
        ]
        other.plot([end for _, end, _ in bins], losses, "o-", ms=3, color=color, label=recipe)
    far_from = best[order[0]][1][0]["positions"]["far_from"]
    short = " after the short stage" if SETTINGS[setting].after_short else ""
    left.set_xlabel(f"seconds of training{short}")
    left.set_ylabel(f"held-out dense loss beyond {far_from:,} tokens (nats a byte)")
    left.grid(alpha=0.3)
    # Equal times look equal, and there is room for the names.
    first, last = (edge(map(seconds, runs)) for edge in (min, max))
    room = max(0.3 * (last - first), 0.1 * last)
    left.set_xlim(first - room, last + room)
    other.set_xscale("log", base=2)
    other.set_xlabel("position (tokens, up to)")
    other.set_ylabel("held-out dense loss (nats a byte)")
    other.grid(alpha=0.3)
    other.legend(fontsize=8, ncols=2)
    figure.suptitle(f"Recipes at {SETTINGS[setting].seq_len:,} tokens, {device}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def page(runs: dict[str, Run]) -> str:
    """docs/study.md: the template with a table and a picture of each setting."""
    filled = TEMPLATE.read_text(encoding="utf-8")
    for setting, at in SETTINGS.items():
        of = by_machine(runs, setting)
        above = [device for device, _ in of]
        shown = [
            f"On {'another' if device in above[:number] else 'one'} {device}:\n\n"
            f"![Loss against seconds, and by position](../benchmarks/results/"
            f"{picture(setting, device, machine).name})\n\n"
            f"{table(found, at.seq_len)}"
            for number, ((device, machine), found) in enumerate(of.items())
        ]
        filled = filled.replace(f"{{{setting}}}", "\n\n".join(shown) or "Not measured yet.")
    from_scratch = [run for run in runs.values() if run["setting"] == "scratch"]
    return filled.replace("{switches}", switches(from_scratch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect", help="add a folder's runs to the JSON")
    collecting.add_argument("study", type=Path)
    collecting.add_argument("--device", required=True)
    collecting.add_argument("--torch", required=True)
    collecting.add_argument("--machine", type=int, default=1, help="of several with such a GPU")
    commands.add_parser("page", help="write the page and its pictures")
    options = parser.parse_args()
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.command == "collect":
        runs |= collect(options.study, options.device, options.torch, options.machine)
        RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
    for setting in SETTINGS:
        for (device, machine), found in by_machine(runs, setting).items():
            frontier(found, setting, device, picture(setting, device, machine))
    PAGE.write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
