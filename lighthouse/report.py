"""What happened in a run: the loss before and after the switch to dense attention, and the speed.

    python -m lighthouse.report RUN_FOLDER [RUN_FOLDER ...]

reads `metrics.jsonl`, prints a table, and writes `loss.png` and `report.json` into the last folder.
Several folders are the parts of one run in order of training (stage 1, then stage 2).
"""

import argparse
import itertools
import math
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files, needs no display
import matplotlib.pyplot as plt

from lighthouse.runs.folder import RESOLVED_FILE, newest_checkpoint
from lighthouse.runs.metrics import Record, join_runs, to_json

STAGES = ("lighthouse", "dense")
COLORS = {"lighthouse": "tab:blue", "dense": "tab:orange"}

# Counted in logged steps.
SPIKE_STEPS = 50
SMOOTH_STEPS = 10


@dataclass(frozen=True)
class Report:
    """None stands for what the run does not have (yet).

    Attributes:
        last_step: latest logged training step.
        loss_before_switch: mean loss of the last `loss_before_steps` logged steps in the
            lighthouse stage, at most `SMOOTH_STEPS`.
        foreseen_loss: validation loss under dense attention when it was last measured in the
            lighthouse stage, at `foreseen_step`: where the loss would jump to.
        switch_step: first logged step in the dense stage that follows.
        spike: highest loss in the first `SPIKE_STEPS` logged steps of the dense stage.
        steps_to_recover: steps from `switch_step` until the mean of the last `SMOOTH_STEPS` logged
            dense steps, all of them dense, is first at or below `loss_before_switch`.
        final_loss: mean loss of the last `final_steps` logged steps, at most `SMOOTH_STEPS`, all of
            the stage that the run is in.
        lighthouse_tokens_per_second, dense_tokens_per_second: median per device, without the
            first logged step of the stage, which has warm-up and compilation in it.
        leak: what the loss of the lighthouse stage owed to later tokens, when last measured.
        sees_future: whether that stage's selection is one that tells of later tokens, so that its
            loss is not that of a language model.
        checkpoint: newest finished checkpoint.
    """

    last_step: int
    loss_before_switch: float | None
    loss_before_steps: int
    foreseen_loss: float | None
    foreseen_step: int | None
    switch_step: int | None
    spike: float | None
    steps_to_recover: int | None
    final_loss: float
    final_steps: int
    lighthouse_tokens_per_second: float | None
    dense_tokens_per_second: float | None
    leak: float | None
    sees_future: bool
    checkpoint: str | None


def summarize(
    records: Sequence[Record], checkpoint: Path | None = None, published: bool = False
) -> Report:
    """Measure the switch in `records`, which are in order of steps.

    Args:
        checkpoint: the run's newest one.
        published: whether the run's Lighthouse layers have the published selection.

    Raises:
        ValueError: no training record.
    """
    steps = [record for record in records if "loss" in record]
    if not steps:
        raise ValueError("no training step logged yet")
    stages = [_stage(record) for record in steps]
    dense_from = _switch_index(stages)

    before = spike = recovered = switch_step = None
    before_steps = 0
    if dense_from is not None:
        last = [record["loss"] for record in steps[:dense_from]][-SMOOTH_STEPS:]
        before, before_steps = statistics.fmean(last), len(last)
        after = steps[dense_from:]
        losses = [record["loss"] for record in after]
        switch_step = after[0]["step"]
        spike = max(losses[:SPIKE_STEPS], key=lambda loss: math.inf if math.isnan(loss) else loss)
        smooth = smoothed(losses, SMOOTH_STEPS)
        full_windows = list(zip(after, smooth, strict=True))[SMOOTH_STEPS - 1 :]
        recovered = next((r["step"] - switch_step for r, s in full_windows if s <= before), None)
    final = [r["loss"] for r, stage in zip(steps, stages, strict=True) if stage == stages[-1]]
    final = final[-SMOOTH_STEPS:]
    foreseen = [record for record in records if "validation_dense_loss" in record]
    leaks = [record["validation_leak"] for record in records if "validation_leak" in record]
    return Report(
        last_step=steps[-1]["step"],
        loss_before_switch=before,
        loss_before_steps=before_steps,
        foreseen_loss=foreseen[-1]["validation_dense_loss"] if foreseen else None,
        foreseen_step=foreseen[-1]["step"] if foreseen else None,
        switch_step=switch_step,
        spike=spike,
        steps_to_recover=recovered,
        final_loss=statistics.fmean(final),
        final_steps=len(final),
        lighthouse_tokens_per_second=_speed(steps, "lighthouse"),
        dense_tokens_per_second=_speed(steps, "dense"),
        leak=leaks[-1] if leaks else None,
        sees_future=published and "lighthouse" in stages,
        checkpoint=str(checkpoint) if checkpoint else None,
    )


def has_published_selection(folder: Path) -> bool:
    """Whether a run's Lighthouse layers may select by tokens that come later.

    Runs from before there was a choice all do. False where the run's configuration is not there.
    """
    resolved = folder / RESOLVED_FILE
    if not resolved.is_file():
        return False
    section = tomllib.loads(resolved.read_text(encoding="utf-8")).get("lighthouse", {})
    in_layers = any("selection=published" in entry for entry in section.get("layer_overrides", ()))
    return section.get("selection", "published") == "published" or in_layers


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and up to `width - 1` before it."""
    return [statistics.fmean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def _stage(record: Record) -> str:
    # Older runs say "stage", and nothing where all layers are always dense.
    stage: str = record.get("attention") or record.get("stage") or "dense"
    return stage


def _switch_index(stages: Sequence[str]) -> int | None:
    """Index of the first dense step after a lighthouse step."""
    pairs = itertools.pairwise(stages)
    return next((i for i, pair in enumerate(pairs, start=1) if pair == STAGES), None)


def _speed(steps: Sequence[Record], stage: str) -> float | None:
    speeds = [record["tokens_per_second"] for record in steps if _stage(record) == stage]
    return statistics.median(speeds[1:]) if len(speeds) > 1 else None


def format_table(report: Report) -> str:
    """The report as lines of "name  value"."""
    rows = [("last step", f"{report.last_step:,}")]
    if report.foreseen_step is not None:
        where = f"(dense validation loss at step {report.foreseen_step:,})"
        rows.append(("spike foreseen", f"{report.foreseen_loss:.4f}  {where}"))
    if report.switch_step is not None:
        recovery = "not yet" if report.steps_to_recover is None else f"{report.steps_to_recover:,}"
        rows += [
            ("switch to dense at step", f"{report.switch_step:,}"),
            (
                "loss before the switch",
                f"{report.loss_before_switch:.4f}  {_mean_of(report.loss_before_steps)}",
            ),
            ("spike after the switch", f"{report.spike:.4f}"),
            ("steps to recover", recovery),
        ]
    rows.append(("final loss", f"{report.final_loss:.4f}  {_mean_of(report.final_steps)}"))
    for stage in STAGES:
        speed = getattr(report, f"{stage}_tokens_per_second")
        text = "not measured" if speed is None else f"{speed:,.0f} tokens/s per device"
        rows.append((f"{stage} speed", text))
    if report.leak is not None:
        rows.append(("owed to later tokens", f"{report.leak:.4f} of the lighthouse stage's loss"))
    if report.sees_future:
        why = 'lighthouse.selection = "published" tells of later tokens'
        rows.append(("note", f"the lighthouse stage's loss is no language model's: {why}"))
    rows.append(("checkpoint", report.checkpoint or "none"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _mean_of(steps: int) -> str:
    return f"(mean of the last {steps} logged steps)"


def plot_loss(records: Sequence[Record], report: Report, path: Path) -> None:
    """Write the loss curve as PNG: thin for each logged step, thick smoothed within its stage."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    steps = [record for record in records if "loss" in record]
    for stage in STAGES:
        part = [record for record in steps if _stage(record) == stage]
        if part:
            x = [record["step"] for record in part]
            loss = [record["loss"] for record in part]
            color = COLORS[stage]
            axes.plot(x, loss, color=color, linewidth=0.6, alpha=0.5)
            axes.plot(x, smoothed(loss, SMOOTH_STEPS), color=color, linewidth=1.8, label=stage)
    for key, label, marker in (
        ("validation_loss", "validation", "k."),
        ("validation_dense_loss", "validation, if it were dense", "r."),
    ):
        validation = [record for record in records if key in record]
        if validation:
            x = [record["step"] for record in validation]
            axes.plot(x, [r[key] for r in validation], marker, markersize=5, label=label)
    if report.switch_step is not None and report.loss_before_switch is not None:
        axes.axvline(report.switch_step, color="gray", linestyle="--", label="switch to dense")
        axes.axhline(report.loss_before_switch, color="gray", linestyle=":", linewidth=0.8)
    axes.set_xlabel("training step")
    axes.set_ylabel("cross-entropy loss (nats per token)")
    axes.set_title(f"thin: logged steps, thick: mean of {SMOOTH_STEPS}", fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.report",
        description="Table, loss.png and report.json of a run, from its metrics.jsonl.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="RUN_FOLDER",
        help="parts of one run in order of training; files are written into the last",
    )
    folders = parser.parse_args(arguments).folders
    try:
        records = join_runs(folders)
        published = any(map(has_published_selection, folders))
        report = summarize(records, newest_checkpoint(folders[-1]), published)
    except ValueError as error:
        parser.error(str(error))
    output = folders[-1]
    plot_loss(records, report, output / "loss.png")
    (output / "report.json").write_text(to_json(asdict(report)) + "\n", encoding="utf-8")
    print(format_table(report))
    print(f"loss curve: {output / 'loss.png'}")


if __name__ == "__main__":
    main()
