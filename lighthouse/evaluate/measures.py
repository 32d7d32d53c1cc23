"""What is measured of a subject. All of it is a function of the weights, the text and the seed."""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lighthouse.evaluate.subject import Subject
from lighthouse.runs.means import mean_of, standard_error
from lighthouse.tasks import DIGITS, Task, needle

FIRST_BIN = 256
FAR = 32768
"""Tokens behind this are the far ones."""

Text = Sequence[tuple[Tensor, Tensor]]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Positions:
    """Loss by position, in nats.

    Attributes:
        sequences, seq_len: of the text.
        loss: mean over all positions.
        bins: (first, end, mean loss) between powers of two.
        far: mean behind ``FAR`` tokens, or behind half of a shorter sequence, with its standard
            error over sequences.
        far_foreign: the same positions, with everything before them from another sequence.
        gain, gain_error: of the right far context: the difference, with its standard error.
    """

    sequences: int
    seq_len: int
    loss: float
    bins: list[tuple[int, int, float]]
    far_from: int
    far: float
    far_error: float
    far_foreign: float
    gain: float
    gain_error: float


def positions(subject: Subject, text: Text, progress: Progress) -> Positions:
    """Held-out loss by position, with its own and with another text's far context.

    Args:
        text: at least two pairs of tokens and labels, each int64 (N,) of one N.
    """
    seq_len = text[0][0].shape[0]
    far_from = FAR if seq_len > FAR else seq_len // 2
    own, foreign = [], []
    for number, (tokens_N, labels_N) in enumerate(text):
        own.append(subject.losses(tokens_N, labels_N).cpu())
        other_N = text[(number + 1) % len(text)][0]
        mixed_N = torch.cat((other_N[:far_from], tokens_N[far_from:]))
        foreign.append(subject.losses(mixed_N, labels_N)[far_from:].cpu())
        progress(f"positions: {number + 1} of {len(text)} sequences")
    own_SN, foreign_SF = torch.stack(own), torch.stack(foreign)
    edges = [0]
    while edges[-1] < seq_len:
        edges.append(min(seq_len, max(FIRST_BIN, 2 * edges[-1])))
    far_S = own_SN[:, far_from:].mean(1)
    gain_S = foreign_SF.mean(1) - far_S
    return Positions(
        sequences=len(text),
        seq_len=seq_len,
        loss=own_SN.mean().item(),
        bins=[
            (first, end, own_SN[:, first:end].mean().item())
            for first, end in itertools.pairwise(edges)
        ],
        far_from=far_from,
        far=far_S.mean().item(),
        far_error=standard_error(far_S.tolist()),
        far_foreign=foreign_SF.mean().item(),
        gain=gain_S.mean().item(),
        gain_error=standard_error(gain_S.tolist()),
    )


@dataclass(frozen=True)
class NeedleCell:
    """Trials of one length and depth: how many were right, by the largest of ten digits."""

    length: int
    depth: float
    trials: int
    right: int


def find_needles(
    subject: Subject,
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int,
    seed: int,
    progress: Progress,
) -> list[NeedleCell]:
    """A digit in alphanumeric filler, at several depths of contexts of several lengths."""
    digits = [subject.encode(f" {digit}")[0][-1] for digit in DIGITS]
    cells = []
    for length in lengths:
        for depth in depths:
            right = 0
            for trial in range(trials):
                # Of a length alone: the depths of a trial differ in nothing else.
                name = f"{seed} needle {length} {trial}"
                task = _fitting(subject, length, name, partial(needle, depth=depth))
                (answer,) = _answers(subject, task)
                token = answer.labels[-1:]
                of_digits = answer.logits[-1, digits]
                right += digits[int(of_digits.argmax())] == token.item()
            cells.append(NeedleCell(length, depth, trials, right))
            progress(f"needle: {length:,} tokens, depth {depth:.0%}: {right} of {trials}")
    return cells


@dataclass(frozen=True)
class Answers:
    """Answers at one length.

    Attributes:
        answers: how many were asked for.
        log_probability: mean over answers of the sum over an answer's tokens, nats.
        right: share of answers whose every token is the most likely one.
    """

    length: int
    answers: int
    log_probability: float
    right: float


def ask(
    subject: Subject,
    name: str,
    make: Callable[[random.Random, int], Task],
    lengths: Sequence[int],
    trials: int,
    seed: int,
    progress: Progress,
) -> list[Answers]:
    """Log-probabilities of the answers of a task, each behind the right answers before it."""
    found = []
    for length in lengths:
        logs: list[float] = []
        right: list[bool] = []
        for trial in range(trials):
            task = _fitting(subject, length, f"{seed} {name} {length} {trial}", make)
            for answer in _answers(subject, task):
                log_PV = answer.logits.log_softmax(-1)
                logs.append(log_PV.gather(1, answer.labels[:, None]).sum().item())
                right.append(bool((log_PV.argmax(-1) == answer.labels).all()))
        share = sum(right) / len(right)
        found.append(Answers(length, len(logs), mean_of(logs), share))
        progress(f"{name}: {length:,} tokens: {share:.0%} of {len(right)}")
    return found


@dataclass(frozen=True)
class _Answer:
    """Tokens of an answer (P,), and what is predicted for each, fp32 (P, V)."""

    labels: Tensor
    logits: Tensor


def _answers(subject: Subject, task: Task) -> Iterator[_Answer]:
    ids, spans = subject.encode(task.text)
    tokens_N = torch.tensor(ids, device=subject.device)
    places = [
        [i for i, (start, end) in enumerate(spans) if start < last and end > first]
        for first, last in task.answers
    ]
    flat = torch.tensor([i - 1 for place in places for i in place], device=subject.device)
    logits = subject.logits(tokens_N, flat)
    for place, of_answer in zip(places, logits.split([len(p) for p in places]), strict=True):
        yield _Answer(tokens_N[place], of_answer)


def check_fits(
    subject: Subject,
    length: int,
    tasks: Iterable[Callable[[random.Random, int], Task]],
) -> None:
    """See that tasks are no longer than a number of tokens, before anything is measured.

    Raises:
        ValueError: one is.
    """
    for make in tasks:
        _fitting(subject, length, "", make)


def _fitting(
    subject: Subject, length: int, seed: str, make: Callable[[random.Random, int], Task]
) -> Task:
    """A task of at most so many tokens, and of nearly as many."""
    sample = "the quick 8brown fox0 jumps" * 40
    chars = int(length * len(sample) / len(subject.encode(sample)[0]))
    while True:
        task = make(random.Random(seed), chars)
        tokens = len(subject.encode(task.text)[0])
        if tokens <= length:
            return task
        if chars <= 0:
            raise ValueError(
                f"--lengths: {length} tokens are too few for a task, which takes {tokens}; name "
                "longer ones, or other --measures"
            )
        chars = int(chars * length / tokens) - 1
