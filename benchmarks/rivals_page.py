"""docs/rivals.md and its plot from benchmarks/results/rivals*.json.

python -m benchmarks.rivals_page
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rivals_methods import GROUPED, HEAD_DIM, HEADS, LAYOUTS, METHODS
from benchmarks.table import pair
from benchmarks.training_table import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "rivals.md"
FOUND, PLOT = RESULTS / "rivals.json", RESULTS / "rivals.png"
REST = RESULTS / "rivals_h200.json"
"""Rows for which the first run had no time, beside two that it has."""

Row = dict[str, Any]

TEMPLATE = Path(__file__).with_suffix(".md")

MEASURED = """One {device}, torch {torch}, all from one run of `python -m benchmarks.rivals` \
([results](../benchmarks/results/rivals.json)). Medians of replayed CUDA graphs, but for what \
is named below. Memory is the peak of forward + backward over inputs, output and their gradients.

![Forward + backward against length](../benchmarks/results/rivals.png)

{tables}

{notes}"""

MORE = """That run had no time for all lengths of two rows. Another, on one {device}, has two rows \
of the above beside them ([results](../benchmarks/results/{name})):

{tables}

{notes}"""


def seq_lens(rows: list[Row]) -> list[int]:
    return sorted({row["seq_len"] for row in rows if "ms" in row})


def table(rows: list[Row], layout: str, cell: Callable[[Row], str]) -> str:
    """Markdown: a line for each method that has figures, a column for each length."""
    found = {(r["method"], r["seq_len"]): r for r in rows if "ms" in r and r["layout"] == layout}
    lengths = seq_lens(rows)
    lines = [
        "| | " + " | ".join(f"{n // 1024}K" for n in lengths) + " |",
        "| --- " * (len(lengths) + 1) + "|",
    ]
    for name, method in METHODS.items():
        cells = [cell(found[name, n]) if (name, n) in found else "" for n in lengths]
        if any(cells):
            lines.append(f"| {method.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(rows: list[Row]) -> str:
    """Why a figure is not there, or is of another kind."""
    lines = []
    for row in rows:
        if "reason" in row:
            where = [METHODS[row["method"]].name, row.get("layout", "")]
            where.append(f"{row['seq_len']:,} tokens" if "seq_len" in row else "")
            lines.append(f"- {', '.join(filter(None, where))}: {row['reason']}.")
    eager = {METHODS[row["method"]].name for row in rows if row.get("graph") is False}
    if eager:
        lines.append(f"- Without a CUDA graph, so with Python's share: {', '.join(sorted(eager))}.")
    return "\n".join(lines)


def tables(rows: list[Row]) -> str:
    parts = []
    for layout in LAYOUTS:
        parts.append(f"{layout}, forward / forward + backward, milliseconds:")
        parts.append(table(rows, layout, lambda row: pair(row["ms"])))
        parts.append(f"{layout}, extra memory, GiB:")
        parts.append(table(rows, layout, lambda row: f"{row['extra_memory_gib']:.2f}"))
    return "\n\n".join(parts)


def measured(report: dict[str, Any] | None, rest: dict[str, Any] | None = None) -> str:
    if report is None:
        return "Not measured yet: `python -m benchmarks.rivals`, on one H100."
    text = MEASURED.format(
        device=report["device"],
        torch=report["torch"],
        tables=tables(report["rows"]),
        notes=notes(report["rows"]),
    ).rstrip()
    if rest is None:
        return text
    more = MORE.format(
        device=rest["device"],
        name=REST.name,
        tables=tables(rest["rows"]),
        notes=notes(rest["rows"]),
    )
    return f"{text}\n\n{more.rstrip()}"


def found() -> list[dict[str, Any]]:
    """The results that there are, the first run's first."""
    return [json.loads(path.read_text()) for path in (FOUND, REST) if path.is_file()]


def page(report: dict[str, Any] | None = None, rest: dict[str, Any] | None = None) -> str:
    """The page's text, of results or of none."""
    settings = "\n".join(
        f"| {method.name} | {method.settings} | {', '.join(method.layouts)} |"
        for method in METHODS.values()
    )
    return TEMPLATE.read_text(encoding="utf-8").format(
        measured=measured(report, rest), settings=settings, heads=HEADS, grouped=GROUPED
    )


def plot(rows: list[Row], path: Path) -> None:
    """Forward + backward against length, both axes logarithmic; a panel for each layout."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lengths = seq_lens(rows)
    figure, panels = plt.subplots(1, 2, figsize=(12, 6), sharey=True, layout="constrained")
    colors = plt.get_cmap("tab20").colors
    for axes, layout in zip(panels, LAYOUTS, strict=True):
        for number, (name, method) in enumerate(METHODS.items()):
            curve = [
                (row["seq_len"], row["ms"][1])
                for row in rows
                if row["method"] == name and row.get("layout") == layout and "ms" in row
            ]
            if not curve:
                continue
            ours = name == "lighthouse"
            style = {"color": "black", "linewidth": 2.5} if ours else {"color": colors[number]}
            axes.loglog(*zip(*curve, strict=True), "o-", markersize=4, label=method.name, **style)
        axes.set_title(f"{layout}, {HEAD_DIM} wide")
        axes.set_xlabel("tokens")
        axes.set_xticks(lengths, [f"{n // 1024}K" for n in lengths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("forward + backward, ms")
    shown = {}
    for axes in panels:
        shown |= {
            label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    figure.legend(shown.values(), shown.keys(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    reports = found()
    if reports:
        plot(reports[0]["rows"], PLOT)
    PAGE.write_text(page(*reports))


if __name__ == "__main__":
    main()
