"""Figures in the README are those of the results files."""

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_readme_are_made_from_the_results() -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    results = json.loads((ROOT / "benchmarks/results/attention_h100.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert made["table"](results) in readme
    assert made["step_table"](results) in readme


def test_the_tables_of_training_are_made_from_the_results() -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "training_table.py"))
    readme = " ".join((ROOT / "README.md").read_text().split())
    for table in made["tables"]():
        assert " ".join(table.split()) in readme


def test_the_figures_of_the_data_loader_are_those_of_the_results() -> None:
    results = json.loads((ROOT / "benchmarks/results/data_cpu.json").read_text())["results"]
    rates = [r["tokens_per_second"] / 1e6 for r in results if r["workers"]]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"delivers {min(rates):.0f} to {max(rates):.0f} million tokens/s" in readme
