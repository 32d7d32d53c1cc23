"""Tables of a layer without its attention, by norms.py and products.py, for docs/speed.md."""

from typing import Any

NAMES = {"liger_kernel": "Liger", "quack": "quack"}
SHOWN = ((98304, 1024), (65536, 4096), (262144, 4096))
"""Rows and channels."""


def norms_table(report: dict[str, Any]) -> str:
    """Backward of a sum and its norm in each form, beside what a copy of its bytes takes."""
    ms: dict[tuple[int, int, int], dict[str, float]] = {}
    for row in report["rows"]:
        ms.setdefault((row["rows"], row["channels"], row["products"]), {})[row["form"]] = row["ms"]
    forms = list(next(iter(ms.values())))
    head = ["rows, channels, products", "bytes", *(NAMES.get(form, form) for form in forms)]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for (rows, channels, products), of_form in ms.items():
        if (rows, channels) in SHOWN:
            # Reads the gradients of the products, that of the sum, and the sum; writes one.
            floor = 2 * (products + 3) * rows * channels / report["copy_tb_per_s"] / 1e9
            cells = [f"{rows:,}, {channels:,}, {products}"]
            cells += [f"{value:.2f}" for value in (floor, *(of_form[form] for form in forms))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def products_table(report: dict[str, Any]) -> str:
    """Products with the norm before them, and for a feed-forward all of it, in each form."""
    lines = [
        "| | form | forward | forward + backward | products at the rate of a large one |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        forward, both = row["ms"]
        lines.append(
            f"| {row['what']} | {NAMES.get(row['form'], row['form'])} | {forward:.2f} | {both:.2f} "
            f"| {row['products_ms'][1]:.2f} |"
        )
    return "\n".join(lines)
