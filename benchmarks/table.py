"""Tables of attention.py's results, for docs/speed.md."""

from typing import Any


def pair(values: list[float]) -> str:
    return " / ".join(f"{value:.2f}" if value < 10 else f"{value:.1f}" for value in values)


def table(report: dict[str, Any]) -> str:
    """Markdown rows of the cases with the default heads, dtype and scorer, once for each shape."""
    lines = [
        "| N, L, p, k -> S | dense | Lighthouse | faster | attention on S alone | around it "
        "(floor) | eager |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    seen: set[str] = set()
    rows = (
        r
        for r in report["results"]
        if (r["heads"], r["head_dim"], r["scorer"], r["dtype"]) == (8, 128, "norm", "bfloat16")
        and r["kv_heads"] == 8
    )
    for r in sorted(rows, key=lambda r: (r["seq_len"], r["gathered_len"])):
        shape = (
            f"{r['seq_len']:,}, {r['num_levels']}, {r['pooling_factor']}, {r['topk']:,} -> "
            f"{r['gathered_len']:,}"
        )
        if shape in seen:
            continue
        seen.add(shape)
        dense = pair(r["dense_ms"]) if "dense_ms" in r else "not run"
        faster = " / ".join(f"{x:.1f}x" for x in r["speedup"]) if "speedup" in r else ""
        lines.append(
            f"| {shape} | {dense} | {pair(r['lighthouse_ms'])} | {faster} | {pair(r['inner_ms'])} "
            f"| {pair(r['overhead_ms'])} ({pair(r['floor_ms'])}) | {pair(r['eager_ms'])} |"
        )
    return "\n".join(lines)


def step_bytes(r: dict[str, Any]) -> dict[str, int]:
    """Bytes that each step moves, every tensor counted once where it is read or written."""
    token_out = r["heads"] * r["head_dim"] * (4 if r["dtype"] == "float32" else 2)
    token_in = token_out * (r["heads"] + 2 * r["kv_heads"]) // r["heads"]
    p, levels, rows, tokens = r["pooling_factor"], r["num_levels"], r["gathered_len"], r["seq_len"]
    coarsest = tokens // p ** (levels - 1)
    refined = r["topk"] * sum(p**level for level in range(1, levels))
    return {
        "summarize": (tokens + coarsest) * token_in,
        "gather": (refined + coarsest + rows) * token_in,
        "scatter": (rows + tokens) * token_out,
        "scatter backward": (tokens + refined + rows) * token_out,
        "gather backward": (rows + tokens) * token_in,
    }


def step_table(report: dict[str, Any]) -> str:
    """Markdown rows of the steps of the first case."""
    result = report["results"][0]
    moved = step_bytes(result)
    lines = ["| step | ms | TB/s | of a copy |", "| --- | --- | --- | --- |"]
    for step, ms in result["stages_ms"].items():
        rate = moved[step] / ms / 1e9 if step in moved else None
        share = f"{rate:.2f} | {rate / report['copy_tb_per_s']:.0%}" if rate else "- | -"
        lines.append(f"| {step} | {ms:.3f} | {share} |")
    return "\n".join(lines)


def documents_table(report: dict[str, Any]) -> str:
    """Markdown rows of documents.py's results: forward / forward + backward, and the bars."""
    shown = (
        ("dense", "dense", None),
        ("dense, documents", "dense, documents", 0),
        ("the same by FlexAttention", "flex, documents", None),
        ("Lighthouse", "Lighthouse", None),
        ("Lighthouse, documents", "Lighthouse, documents", 0),
        ("the same with a place for each 256 tokens", "Lighthouse, documents", 1),
        ("attention on S", "attention on S", None),
        ("attention on S, documents", "attention on S, documents", 0),
        ("the same by FlexAttention, its mask included", "flex on S, documents", None),
    )
    lines = ["| ms | 8 key/value heads | 2 |", "| --- | --- | --- |"]
    for name, what, nth in shown:
        cells = []
        for kv_heads in (8, 2):
            rows = [r for r in report["rows"] if (r["what"], r["kv_heads"]) == (what, kv_heads)]
            ms = rows[nth or 0].get("ms") if len(rows) > (nth or 0) else None
            cells.append(pair(ms) if ms else "not run")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def documents_ring_table(before: dict[str, Any], report: dict[str, Any]) -> str:
    """Markdown rows of two runs of documents_ring.py: forward / forward + backward."""
    lines = [
        "| ms | 8 key/value heads, before | now | 2 key/value heads, before | now |",
        "| --- " * 5 + "|",
    ]
    for what in dict.fromkeys(row["what"] for row in report["rows"]):
        cells = [
            pair(row["ms"])
            for kv_heads in (8, 2)
            for run in (before, report)
            for row in run["rows"]
            if (row["what"], row["kv_heads"]) == (what, kv_heads)
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def documents_parts(report: dict[str, Any]) -> str:
    """Markdown rows of each step around attention, without documents and with them."""
    without, with_them = (
        next(r["ms"] for r in report["rows"] if r["what"] == what)
        for what in ("parts", "parts, documents")
    )
    lines = ["| step, ms | without | with documents |", "| --- | --- | --- |"]
    for step, ms in with_them.items():
        before = f"{without[step]:.3f}" if step in without else "-"
        lines.append(f"| {step} | {before} | {ms:.3f} |")
    return "\n".join(lines)
