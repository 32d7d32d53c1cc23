"""A plan as a table for people."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lighthouse.cost.rates import CPU

if TYPE_CHECKING:
    from lighthouse.titan.plan.job import Plan


TITLE, WIDTH = 18, 80


def table(result: "Plan") -> str:
    """The plan for people."""
    layout = result.layout
    degrees = {
        "replicas": layout.dp_replicate,
        "shards": layout.dp_shard,
        "context parallel": layout.cp,
        "tensor parallel": layout.tp,
    }

    def in_layers(found: dict[int, int]) -> str:
        return ", ".join(f"{size:,} in {n} layers" for size, n in found.items())

    size = "" if result.parameters is None else f", {result.parameters:,} parameters"
    kind = "CPU processes" if result.device == CPU else f"x {result.device}"
    of_degrees = ", ".join(f"{name} {degree}" for name, degree in degrees.items())
    of_step = f"{result.tokens_per_step:,} tokens in sequences of {result.seq_len:,}"
    lines = [
        _said("model", f"{result.flavor}{size}"),
        _said("GPUs", f"{result.gpus} {kind}: {of_degrees}"),
        _said("step", f"{of_step}, {result.accumulation} micro-batches"),
        _said("tokens", f"{result.tokens:,} in all steps"),
    ]
    if result.gathered_len:
        lines.append(_said("S", in_layers(result.gathered_len)))
    if result.windows:
        lines.append(_said("windows", in_layers(result.windows)))
    if result.checkpoint_bytes is not None:
        lines.append(_said("checkpoint", f"{_size(result.checkpoint_bytes)}, to go on from"))
    lines.append("")
    columns = [*result.stages, result.all_dense]

    def row(title: str, cells: Sequence[float | None], form: str) -> None:
        if any(cell is not None for cell in cells):
            shown = ("-" if cell is None else format(cell, form) for cell in cells)
            lines.append(f"{title:<26}" + "".join(f"{cell:>13}" for cell in shown))

    lines.append(f"{'':<26}" + "".join(f"{stage.name:>13}" for stage in columns))
    row("steps", [stage.steps for stage in columns], ",")
    if len({stage.seq_len for stage in columns}) > 1:
        row("tokens of a sequence", [stage.seq_len for stage in columns], ",")
        row("tokens per step", [stage.tokens_per_step for stage in columns], ",")
    gflops = [s.flops_per_token and s.flops_per_token / 1e9 for s in columns]
    row("GFLOPs per token", gflops, ".2f")
    row("tokens/s per GPU", [stage.tokens_per_second for stage in columns], ",.0f")
    row("MFU", [stage.mfu for stage in columns], ".1%")
    row("seconds per step", [stage.step_seconds for stage in columns], ".3f")
    for part in result.all_dense.seconds_by_part:
        seconds = [stage.seconds_by_part[part] for stage in columns]
        if any(seconds):
            row(f"  {part}", seconds, ".3f")
    row("GiB per GPU", [stage.memory_gib for stage in columns], ".1f")
    for part in result.all_dense.gib_by_part:
        sizes = [stage.gib_by_part[part] for stage in columns]
        if any(sizes):
            row(f"  {part}", sizes, ".1f")
    if any(stage.host_gib for stage in columns):
        row("GiB of a node's host", [stage.host_gib for stage in columns], ".1f")
    row("largest micro-batch", [stage.largest_local_batch for stage in columns], ",")
    row("hours", [stage.hours for stage in columns], ".1f")
    lines.append("")
    if result.hours is not None:
        dense = f"as fast as all dense at {result.all_dense.seq_len:,} tokens"
        hours = f"{result.hours:.1f} hours, {result.gpu_hours:,.0f} GPU-hours"
        lines.append(_said("the run", f"{hours}, {result.speedup:.2f} x {dense}"))
    lines += _memory(result)
    if (workers := result.loader_workers) is not None:
        suffice = "worker a rank suffices" if workers == 1 else "workers a rank suffice"
        each = f"each reads {result.loader_rate / 1e6:.1f} M tokens/s"
        lines.append(
            _said("loader", f"{workers} {suffice} (training.dataloader.num_workers); {each}")
        )
    lines += [_said("note", remark) for remark in result.remarks]
    return "\n".join(lines)


def _said(title: str, text: str) -> str:
    """Under a title, in lines of a terminal."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"{title:<{TITLE}}",
        subsequent_indent=" " * TITLE,
        break_long_words=False,
        break_on_hyphens=False,
    )


_AMPLE = 0.1
"""Share of the memory from which on nobody asks what would make a stage smaller."""


def _memory(result: "Plan") -> list[str]:
    """Of each stage whether it fits, and by how much."""
    limit = result.memory_limit_gib
    if limit is None:
        return []
    alike: dict[str, list[int]] = {}  # the stages of which the same is said
    for number, (stage, part) in enumerate(
        zip(result.stages, result.largest_parts, strict=True), start=1
    ):
        left = limit - (stage.memory_gib or 0.0)
        fits = f"fits, {left:.1f}" if left >= 0 else f"does not fit, {-left:.1f}"
        rest = "GiB to spare" if left >= 0 else "GiB too many"
        ample = left >= _AMPLE * limit
        said = f"{stage.name}: {fits} {rest} of {limit:.1f}" + ("" if ample else f"; {part}")
        alike.setdefault(said, []).append(number)
    return [
        _said("memory", f"stage {' and '.join(map(str, numbers))}, {said}")
        for said, numbers in alike.items()
    ]


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
