"""How much of a run's loss is owed to tokens that come after: what its selection gives away.

    python -m lighthouse.leak RUN_FOLDER [--step N] [--text PATH] [--output FOLDER]

At sampled positions of held-out text the loss is measured twice under the attention of the run's
stage: with the text as it goes on, and with everything behind the position replaced by another
text. A language model has the same loss both times. Beside them stands the loss of the same weights
under dense attention, which sees no future. Prints a table and writes ``leak-step-N.json`` into the
run's folder, or into ``--output``. One process, on a GPU if there is one; no gradient, nothing of
the run is changed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from lighthouse.refusal import refuse
from lighthouse.runs.files import check_writable, write_atomic
from lighthouse.runs.means import mean_of
from lighthouse.runs.metrics import to_json
from lighthouse.titan.distributed.device import device_of
from lighthouse.titan.llama3.layers import dense_stage
from lighthouse.titan.run.future import Leak, draw_positions, leak_of, with_other_future
from lighthouse.titan.trained import Trained, load_run

_TOKENS_AT_A_TIME = 65536


@dataclass(frozen=True)
class LeakReport:
    """What :func:`measure` found.

    Attributes:
        step: of the weights.
        seq_len, sequences: of the held-out text.
        selections: of the Lighthouse layers.
        own: losses under the stage's own attention at the sampled positions.
        dense: mean loss under dense attention at the same positions.
        own_everywhere, dense_everywhere: means over all positions of the same sequences.
    """

    step: int
    seq_len: int
    sequences: int
    selections: list[str]
    own: Leak
    dense: float
    own_everywhere: float
    dense_everywhere: float


def measure(
    run: Trained, text: Sequence[tuple[Tensor, Tensor]], positions: int, seed: int = 0
) -> LeakReport:
    """Measure what the attention of a run's stage tells of the future.

    Args:
        text: pairs of tokens and labels, each int64 (N,) on the model's device, at least two. The
            other future of each is the next one's.
        positions: how many are drawn, shared out among the sequences.

    Raises:
        ValueError: no layer runs Lighthouse Attention in this stage, or documents were kept apart.
    """
    if run.job_config.training.document_mask:
        raise ValueError(
            "training.document_mask = true: other futures are not cut into documents, so what this "
            "run's loss owes to them can't be measured"
        )
    selecting = run.selecting
    if not selecting:
        raise ValueError(
            f"step {run.step} is in a dense stage, which sees no future: name a step of a "
            "Lighthouse stage with --step"
        )
    seq_len = text[0][0].shape[0]
    at_a_time = max(1, _TOKENS_AT_A_TIME // seq_len)
    true: list[float] = []
    other: list[float] = []
    dense: list[float] = []
    everywhere: list[tuple[float, float]] = []
    for number, (tokens_N, labels_N) in enumerate(text):
        own_N = run.losses(tokens_N[None], labels_N[None])[0]
        with dense_stage([run.body]):
            dense_N = run.losses(tokens_N[None], labels_N[None])[0]
        everywhere.append((own_N.mean().item(), dense_N.mean().item()))
        count = positions * (number + 1) // len(text) - positions * number // len(text)
        drawn = draw_positions(count, seq_len, seed + number)
        position_P = torch.tensor(drawn, dtype=torch.int64, device=tokens_N.device)
        true += own_N[position_P].tolist()
        dense += dense_N[position_P].tolist()
        future_N = text[(number + 1) % len(text)][0]
        for at_B in position_P.split(at_a_time):
            changed_BN = with_other_future(tokens_N[None], at_B, future_N[None])
            other += run.losses(changed_BN, labels_N[at_B, None], at_B[:, None])[:, 0].tolist()
        print(f"\rleak: {number + 1} of {len(text)} sequences", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    own_everywhere, dense_everywhere = map(mean_of, zip(*everywhere, strict=True))
    return LeakReport(
        step=run.step,
        seq_len=seq_len,
        sequences=len(text),
        selections=sorted({config.selection for config in selecting}),
        own=leak_of(true, other),
        dense=mean_of(dense),
        own_everywhere=own_everywhere,
        dense_everywhere=dense_everywhere,
    )


def table(report: LeakReport) -> str:
    """The report for people."""
    own = report.own
    error = "" if own.standard_error is None else f" ± {own.standard_error:.4f}"
    rows = [
        ("selection", ", ".join(report.selections)),
        ("step", f"{report.step:,}"),
        ("text", f"{report.sequences} sequences of {report.seq_len:,} tokens"),
        ("positions", f"{own.draws:,}"),
        ("loss, true future", f"{own.true_future:.4f}"),
        ("loss, another future", f"{own.other_future:.4f}"),
        ("leak", f"{own.leak:.4f}{error}  (standard error)"),
        ("loss, dense attention", f"{report.dense:.4f}"),
        ("loss at all positions", f"{report.own_everywhere:.4f}"),
        ("dense, all positions", f"{report.dense_everywhere:.4f}"),
    ]
    return "\n".join(f"{name:<22}  {value}" for name, value in rows)


def held_out(run: Trained, sequences: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """The first sequences of the run's validation text.

    Raises:
        ValueError: it has fewer than two.
    """
    text = run.held_out(sequences, device)
    if len(text) < 2:
        raise ValueError(
            f"the held-out text makes {len(text)} sequence of "
            f"{run.job_config.validation.seq_len:,} tokens: two or more are needed, since one's "
            "other future is another one's text; name a longer text with --text"
        )
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.leak",
        description="What the selection of a run's Lighthouse layers tells of later tokens.",
    )
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--step", type=int, help="of a checkpoint; default: the last")
    parser.add_argument("--text", help="held-out files; default: the run's validation text")
    parser.add_argument("--positions", type=int, default=384)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--output", type=Path, help="folder of the results; default: RUN_FOLDER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.positions < 2 or options.sequences < 2:
        parser.error("--positions and --sequences must be at least 2")
    output = options.output or options.folder
    one_at_a_time = ("--validation.local_batch_size", "1")
    try:
        device = device_of(options.device)
        run = load_run(options.folder, options.step, device, *one_at_a_time, text=options.text)
        text = held_out(run, options.sequences, device)
        check_writable(output)
        report = measure(run, text, options.positions)
    except (ValueError, OSError) as error:  # the error of a disk names the file
        refuse(error)
    print(table(report))
    file = output / f"leak-step-{report.step}.json"
    try:
        write_atomic(file, to_json(asdict(report), indent=1) + "\n")
    except OSError as error:  # the disk is full, say; the table stands there
        refuse(error)
    print(f"written: {file}")


if __name__ == "__main__":
    main()
