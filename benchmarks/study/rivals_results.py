"""The figures of docs/study.md: from the runs' folders to JSON, from that to a table.

python -m benchmarks.study.rivals_results collect STUDY_FOLDER --device NAME --torch VERSION
python -m benchmarks.study.rivals_results show
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import commit
from benchmarks.study.rivals import STEPS
from lighthouse.runs.metrics import join_runs, read_metrics
from lighthouse.runs.stage_reports import stage_reports

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
        found[folder.name] = {
            **match.groupdict(),
            "stages": _stages(parts),
            "validation": [
                (record["step"], round(record["validation_loss"], 4))
                for record in read_metrics(folder)
                if "validation_loss" in record
            ],
            "positions": json.loads(path.read_text())["positions"],
        }
    return found


def _stages(parts: Sequence[Path]) -> list[dict[str, Any]]:
    """Steps of each stage, and the seconds that they take at its median speed."""
    steps = [record for record in join_runs(parts) if "loss" in record]
    found = []
    for stage in stage_reports(steps):
        assert stage.tokens is not None and stage.tokens_per_second is not None
        found.append(
            {
                "attention": stage.attention,
                "seq_len": stage.seq_len,
                "steps": stage.last_step - stage.first_step + 1,
                "tokens_per_second": round(stage.tokens_per_second),
                "seconds": round(stage.tokens / stage.tokens_per_second, 1),
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
