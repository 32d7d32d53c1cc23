"""The figures of docs/study.md: from the runs' folders to JSON, from that to a table.

python -m benchmarks.study.rivals_results collect STUDY_FOLDER --device NAME --torch VERSION
python -m benchmarks.study.rivals_results show
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.provenance import commit
from benchmarks.study.rivals import STEPS
from lighthouse.runs.metrics import read_metrics

RESULTS = Path(__file__).parents[2] / "benchmarks/results/rivals_65k.json"


def collect(study: Path) -> dict[str, Any]:
    """Arms that ended, each with its stages' seconds, held-out losses and losses by position."""
    found: dict[str, Any] = {}
    for path in sorted(study.glob("rival-*/evaluate-step-*.json")):
        folder = path.parent
        match = re.fullmatch(r"rival-(?P<arm>.+)-(?P<rate>\d.*e-\d)-(?P<seed>\d)", folder.name)
        assert match is not None
        parts = (
            [folder] if match["arm"] not in ("grow", "short") else [Path(f"{folder}-first"), folder]
        )
        stages: list[dict[str, Any]] = []
        for part in parts:
            stages += _stages(part)
        found[folder.name] = {
            **match.groupdict(),
            "stages": stages,
            "validation": [
                (record["step"], round(record["validation_loss"], 4))
                for record in read_metrics(folder)
                if "validation_loss" in record
            ],
            "positions": json.loads(path.read_text())["positions"],
        }
    return found


def _stages(folder: Path) -> list[dict[str, Any]]:
    """Steps and seconds of training of each stage in a folder, from its median step."""
    steps = [record for record in read_metrics(folder) if "tokens_per_second" in record]
    found = []
    for key in dict.fromkeys((record["attention"], record["seq_len"]) for record in steps):
        own = [r for r in steps if (r["attention"], r["seq_len"]) == key]
        rates = sorted(record["tokens_per_second"] for record in own)
        rate = rates[len(rates) // 2]
        count = own[-1]["step"] - own[0]["step"] + 1
        found.append(
            {
                "attention": key[0],
                "seq_len": key[1],
                "steps": count,
                "tokens_per_second": round(rate),
                "seconds": round(count * 131072 / rate, 1),
            }
        )
    return found


def table(runs: dict[str, Any]) -> str:
    """Markdown, the lowest loss beyond half the length first."""
    lines = [
        "| arm | rate | steps before, dense at 65,536 | seconds of training | loss | beyond 32,768 "
        "| there with another text before |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in sorted(runs.values(), key=lambda run: run["positions"]["far"]):
        steps, first = STEPS[run["arm"]]
        at = run["positions"]
        seconds = sum(stage["seconds"] for stage in run["stages"])
        lines.append(
            f"| {run['arm']} | {run['rate']} | {first} + {steps - first} | {seconds:.0f} "
            f"| {at['loss']:.3f} | {at['far']:.3f} | {at['far_foreign']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("study", type=Path)
    collecting.add_argument("--device", required=True)
    collecting.add_argument("--torch", required=True)
    commands.add_parser("show")
    options = parser.parse_args()
    if options.command == "collect":
        report = {
            "device": options.device,
            "torch": options.torch,
            "commit": commit(),
            "runs": collect(options.study),
        }
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(table(json.loads(RESULTS.read_text())["runs"]))


if __name__ == "__main__":
    main()
