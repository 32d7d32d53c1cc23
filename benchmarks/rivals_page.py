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

TEMPLATE = """# Rivals

Made by `python -m benchmarks.rivals_page`; do not edit.

One attention layer of ours beside other ways to train at length. What it costs is measured here;
what a model learns with it is not: for Lighthouse, windows, short blocks, MoBA and dense attention
that is in [the study](study.md).

## When to take which

| | new parameters | weights of a dense model | a token can reach | afterwards |
| --- | --- | --- | --- | --- |
| dense | none | are these | all before it | as it is |
| short blocks | none | serve | its block | dense steps at length |
| window | none | serve | 8,192 tokens, in each layer | as it is, or dense steps |
| MoBA, InfLLM-v2 | none | serve | blocks that it selects | as it is, or dense |
| Lighthouse | none | serve | all, by a pyramid | dense steps: it is for training only |
| NSA | gates; in the paper, what compresses blocks | are a beginning | all, by means of blocks; \
blocks that it selects; the last 512 | as it is, with kernels of its own |
| DSA | an indexer with a loss of its own | serve, and the indexer is trained | 2,048 keys that it \
selects | as it is, with kernels of its own |
| simple GLA, gated delta rule, KDA | gates, often convolutions | do not serve | all, by a state \
of fixed size | as it is: memory does not grow at inference |
| log-linear | gates, level by level | do not serve | all, by log N such states | as it is |

- **The checkpoint has to be an ordinary one**, at the end or at the beginning: dense, short blocks,
  a window, Lighthouse, MoBA, block selection. Any inference engine runs it after dense steps.
- **A first stage, or short documents**: short blocks need no kernel. Nothing further apart than a
  block is learned from until a later stage.
- **Long documents, and dense attention in the end**: Lighthouse, then dense steps. It alone of
  these makes queries fewer, too. That is where its speed comes from, and why it does not generate.
- **Sparse attention in the end, too**: MoBA, where heads are not grouped; NSA, where 16 or more
  query heads share a key and the model is trained for it from the start.
- **Inference whose memory does not grow**: gated linear attention and the delta rules, in a model
  that is made for them.
- **A few thousand tokens**: dense attention by cuDNN. The rest of a step costs more than it there.

The trainer takes dense attention, windows, Lighthouse and sequences of any length
([stages](training.md)). What changes the checkpoint (the delta rules, Mamba-2, NSA's gates, DSA's
indexer) is not in it: such a model cannot pass on to a dense stage, which is what a run here ends
with, and its export would not be a Llama. MoBA would change no weights. Its library takes no
grouped heads, breaks a compiled graph and runs on GPUs alone, so it is measured here and is no
stage; [the study](study.md) trains with it in the place of windows
([how](../benchmarks/study/moba.py)).

## Time and memory

{measured}

## How they are called

At their authors' settings, bf16, batch 1, heads of 128; libraries alone, no kernel of a rival is
ours. "{heads}" have as many key heads; "{grouped}" is the least sharing that NSA takes.

| | settings | layouts |
| --- | --- | --- |
{settings}

- The kernels of
  [flash-linear-attention](https://github.com/fla-org/flash-linear-attention), fla-core 0.6.0, are
  tuned by Triton at 32,768 tokens before they are timed. It makes NSA's compressed blocks by their
  means; in the paper that is learned, from overlapping blocks of 32.
- With Triton 3.4 to 3.7.0 on Hopper the library refuses `chunk_simple_gla` and the gated delta rule
  backward, because their gradients would be wrong. Simple GLA is its `fused_chunk` form therefore.
- MoBA and NSA's window call flash-attn 2. PyTorch's own copy of its kernels stands in for it
  ([shim](../benchmarks/flash_attn_shim.py)), which copies MoBA's gradients once more.
- InfLLM-v2's own kernels are a CUDA build without a wheel. FlexAttention has the same blocks for
  all queries of a block; InfLLM-v2 selects for each token.
- DSA's fast kernels for training are for other GPUs (SM100).
- HISA (arXiv 2603.28458) takes the place of DSA's indexer at inference. It is no way to train, so
  it has no row.
- The published Lighthouse is its authors' code, compiled, on an H100 with torch 2.11.0, with the
  same L, p and k. Its figures are taken over, not measured here: at 98,304 tokens 3.04 / 8.52 ms,
  at 131,072 4.41 / 12.71, at 262,144 12.07 / 40.23; at 524,288 it fails. It has the published
  selection and no way to group heads.

Each row is first checked at small size, output and all gradients, against a naive form in float32
that attends to what was selected. Rounding the inputs of the naive form to bf16 changes its result,
and a result is rounded itself; four times both together is allowed
([check](../benchmarks/rivals_check.py)).
"""

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
    return TEMPLATE.format(
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
