"""Held-out dense loss by position, and what the far context is worth, of runs of the study.

    python -m benchmarks.study.positions RUN_FOLDER... [--sequences 16]

For each run's last checkpoint: the mean loss in bins of positions between powers of two, and the
loss of the second half of each sequence behind its own and behind another sequence's first half.
Writes ``positions.json`` into each folder.
"""

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path

import torch

from lighthouse.leak import held_out
from lighthouse.titan.llama3.layers import dense_stage
from lighthouse.titan.trained import load_run


def measure(folder: Path, sequences: int, device: torch.device) -> dict[str, object]:
    run = load_run(folder, None, device)
    text = held_out(run, sequences, device)
    n = text[0][0].shape[0]
    own, foreign = [], []
    with dense_stage([run.body]):
        for number, (tokens_N, labels_N) in enumerate(text):
            own.append(run.losses(tokens_N[None], labels_N[None])[0])
            other_N = text[(number + 1) % len(text)][0]
            mixed_N = torch.cat((other_N[: n // 2], tokens_N[n // 2 :]))
            foreign.append(run.losses(mixed_N[None], labels_N[None])[0])
    own_SN, foreign_SN = torch.stack(own), torch.stack(foreign)
    edges = [0, *(2**i for i in range(8, n.bit_length()))]
    bins = [
        (low, high, own_SN[:, low:high].mean().item()) for low, high in itertools.pairwise(edges)
    ]
    far = own_SN[:, n // 2 :].mean(1)
    gain = foreign_SN[:, n // 2 :].mean(1) - far
    return {
        "step": run.step,
        "sequences": len(text),
        "loss": own_SN.mean().item(),
        "bins": bins,
        "second_half": far.mean().item(),
        "foreign_first_half": foreign_SN[:, n // 2 :].mean().item(),
        "gain_of_far_context": gain.mean().item(),
        "gain_standard_error": statistics.stdev(gain.tolist()) / len(text) ** 0.5,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--sequences", type=int, default=16)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for folder in options.folders:
        try:
            found = measure(folder, options.sequences, device)
        except (ValueError, OSError) as error:
            print(f"{folder}: {error}", file=sys.stderr)
            continue
        (folder / "positions.json").write_text(json.dumps(found, indent=1) + "\n")
        print(folder.name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
