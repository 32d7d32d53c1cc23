"""What a model can do with a long context, under dense attention.

    python -m lighthouse.evaluate FOLDER [--step N] [--text PATH] [--lengths 4096 16384 ...]

FOLDER is that of a run, or a model in Hugging Face's format. Measured are the held-out loss by
position, what the right far context is worth, a digit in filler at several depths, and the values
of keys and of variables that stand far back. Prints a table; writes ``evaluate-step-N.json`` and
``.png`` into the folder, or into ``--output``. One process, on a GPU if there is one.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from lighthouse.evaluate.measures import ask, check_fits, find_needles, positions
from lighthouse.evaluate.subject import Subject, is_hugging_face, of_hugging_face, of_run
from lighthouse.refusal import refuse
from lighthouse.runs.files import check_writable, write_atomic
from lighthouse.runs.metrics import to_json
from lighthouse.tasks import Task, needle, recall, variables

if TYPE_CHECKING:
    from torch import Tensor

DEPTHS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)
LENGTHS = (4096, 8192, 16384, 32768, 65536, 98304)
TASKS = {"recall": recall, "variables": variables}
MAKERS: dict[str, Callable[[Random, int], Task]] = {
    "needle": partial(needle, depth=0.5),
    **TASKS,
}
MEASURES = ("positions", *MAKERS)


def evaluate(subject: Subject, text: "Sequence[tuple[Tensor, Tensor]]", options: Any) -> Any:
    """All that is asked for, as one JSON object."""

    def progress(line: str) -> None:
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    asked = [make for name, make in MAKERS.items() if name in options.measures]
    of_tasks = options.lengths if asked else []
    lengths = [length for length in of_tasks if length <= subject.longest]
    if asked and not lengths and "positions" not in options.measures:
        raise ValueError(
            f"--lengths = {options.lengths}: positions end at {subject.longest:,}, which leaves "
            "nothing to measure; name shorter ones"
        )
    found: dict[str, Any] = {
        "name": subject.name,
        "step": subject.step,
        "longest": subject.longest,
        "seed": options.seed,
        "lengths_left_out": [length for length in of_tasks if length > subject.longest],
    }
    if lengths:
        check_fits(subject, min(lengths), asked)
    if "positions" in options.measures:
        found["positions"] = asdict(positions(subject, text, progress))
    if "needle" in options.measures:
        cells = find_needles(subject, lengths, DEPTHS, options.trials, options.seed, progress)
        found["needle"] = [asdict(cell) for cell in cells]
    for name, make in TASKS.items():
        if name in options.measures:
            rows = ask(subject, name, make, lengths, options.trials, options.seed, progress)
            found[name] = [asdict(row) for row in rows]
    print(file=sys.stderr)
    return found


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [found["name"]]
    if "positions" in found:
        at = found["positions"]
        lines += [
            "",
            f"held-out loss, dense, {at['sequences']} sequences of {at['seq_len']:,} tokens",
            *(f"  {first:>9,} - {end:>9,}  {loss:.4f}" for first, end, loss in at["bins"]),
            f"  all                    {at['loss']:.4f}",
            f"  behind {at['far_from']:>9,}       {at['far']:.4f} ± {at['far_error']:.4f}",
            f"  with a foreign start   {at['far_foreign']:.4f}",
            f"  the right one is worth {at['gain']:.4f} ± {at['gain_error']:.4f}",
        ]
    if found.get("needle"):
        depths = sorted({cell["depth"] for cell in found["needle"]})
        lines += ["", "digit in filler, share right by depth (one in ten by chance)"]
        lines.append("  tokens   " + "".join(f"{depth:>6.0%}" for depth in depths))
        for length in dict.fromkeys(cell["length"] for cell in found["needle"]):
            row = {c["depth"]: c for c in found["needle"] if c["length"] == length}
            shares = "".join(f"{row[d]['right'] / row[d]['trials']:>6.1f}" for d in depths)
            lines.append(f"  {length:>7,}  {shares}")
    for name in TASKS:
        if found.get(name):
            lines += ["", f"{name}: log-probability of an answer, share right"]
            lines += [
                f"  {row['length']:>7,}  {row['log_probability']:8.3f}  {row['right']:.2f}"
                for row in found[name]
            ]
    if found["lengths_left_out"]:
        left_out = ", ".join(f"{length:,}" for length in found["lengths_left_out"])
        ends = f"positions end at {found['longest']:,}"
        lines += ["", f"left out: {left_out} tokens; {ends}, and --lengths names shorter ones"]
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """The loss by position, and the needle as a heat map."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [name for name in ("positions", "needle") if found.get(name)]
    if not panels:
        return
    figure, grid = plt.subplots(
        1, len(panels), figsize=(6 * len(panels), 4.5), layout="constrained", squeeze=False
    )
    for axes, name in zip(grid[0], panels, strict=True):
        if name == "positions":
            bins = found["positions"]["bins"]
            axes.plot([end for _, end, _ in bins], [loss for *_, loss in bins], "o-")
            axes.set_xscale("log", base=2)
            axes.set_xlabel("position (tokens, up to)")
            axes.set_ylabel("held-out loss (nats a token)")
            axes.grid(alpha=0.3)
        else:
            depths = sorted({cell["depth"] for cell in found["needle"]})
            lengths = list(dict.fromkeys(cell["length"] for cell in found["needle"]))
            share = {(c["length"], c["depth"]): c["right"] / c["trials"] for c in found["needle"]}
            rows = [[share[length, depth] for length in lengths] for depth in depths]
            image = axes.imshow(rows, aspect="auto", vmin=0, vmax=1, cmap="RdYlGn")
            axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
            axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
            axes.set_xlabel("tokens")
            axes.set_ylabel("depth of the digit")
            figure.colorbar(image, ax=axes, label="share right")
    figure.suptitle(found["name"], fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.evaluate",
        description="What a model can do with a long context, under dense attention.",
    )
    parser.add_argument("folder", type=Path, help="of a run, or a Hugging Face model")
    parser.add_argument("--step", type=int, help="of a run's checkpoint; default: the last")
    parser.add_argument("--text", type=Path, help="held-out files; default: what validated the run")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--seq-len", type=int, help="of the held-out text; default: the longest")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder of the results; default: FOLDER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _check_length(subject: Subject, options: Any) -> None:
    if options.seq_len is not None and options.seq_len > subject.longest:
        raise ValueError(
            f"--seq-len = {options.seq_len}: positions end at {subject.longest:,}; use at most that"
        )


def _held_out(subject: Subject, options: Any) -> "list[tuple[Tensor, Tensor]]":
    """Sequences of held-out text."""
    from lighthouse.titan.data.sources import open_source

    if options.text is None:
        raise ValueError(
            f"--text is missing: {options.folder} is no run, so it names no held-out text; give a "
            "folder of text files"
        )
    _check_length(subject, options)
    seq_len = options.seq_len or subject.longest
    documents, text_of = open_source("--text", "local", str(options.text), key="--text")
    ids: list[int] = []
    for document in documents:
        ids += subject.encode(text_of(document))[0]
        if subject.end is not None and ids[-1:] != [subject.end]:
            ids.append(subject.end)
        if len(ids) > options.sequences * seq_len:
            break
    stream = torch.tensor(ids, device=subject.device)
    pieces = range(0, len(ids) - seq_len, seq_len)
    return [
        (stream[at : at + seq_len], stream[at + 1 : at + seq_len + 1])
        for at in itertools.islice(pieces, options.sequences)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    from lighthouse.titan.distributed.device import device_of

    parser = _parser()
    options = parser.parse_args(arguments)
    if options.sequences < 2 or options.trials < 1:
        parser.error("--sequences must be at least 2, --trials at least 1")
    for length in (*options.lengths, *([] if options.seq_len is None else [options.seq_len])):
        if length < 1:
            parser.error(f"--lengths and --seq-len are numbers of tokens, got {length}")
    output = options.output or options.folder
    try:
        device = device_of(options.device)
        if is_hugging_face(options.folder):
            subject = of_hugging_face(options.folder, device)
            text = _held_out(subject, options) if "positions" in options.measures else []
        else:
            subject, text = _run_and_text(options, device)
        if "positions" in options.measures and len(text) < 2:
            raise ValueError(f"the held-out text makes {len(text)} sequences; 2 are needed")
        check_writable(output)
        found = evaluate(subject, text, options)
    except (ValueError, OSError) as error:  # the error of a disk names the file
        refuse(error)
    name = "evaluate" if found["step"] is None else f"evaluate-step-{found['step']}"
    print(table(found), flush=True)
    try:
        write_atomic(output / f"{name}.json", to_json(found, indent=1) + "\n")
        plot(found, output / f"{name}.png")
    except OSError as error:  # the disk is full, say; the table stands there
        refuse(error)
    print(f"written: {output / name}.json")


def _run_and_text(
    options: Any, device: torch.device
) -> "tuple[Subject, list[tuple[Tensor, Tensor]]]":
    """A run's model, and its validation text or the text that is named."""
    overrides = ["--validation.local_batch_size", "1"]
    if options.seq_len is not None:
        overrides += ["--validation.seq_len", str(options.seq_len)]
    subject, held_out = of_run(options.folder, options.step, device, *overrides, text=options.text)
    _check_length(subject, options)
    wanted = "positions" in options.measures
    return subject, held_out(options.sequences, device) if wanted else []


if __name__ == "__main__":
    main()
