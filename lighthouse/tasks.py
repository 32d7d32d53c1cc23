"""Texts that ask for something far back: a digit, values of keys, values of variables.

A text is plain ASCII, and says where in it the answers stand. Each comes from a random generator
alone, so that a seed gives the same texts on any machine.
"""

import hashlib
import math
import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

DIGITS = tuple("0123456789")
_LETTERS = string.ascii_lowercase
_ALPHANUMERIC = string.ascii_lowercase + string.digits
# Of 256 values of a byte one in six is a space, the others are all letters and digits equally.
_FILLER = bytes((_ALPHANUMERIC * 6 + " " * 40).encode())

SHORTEST = 512
"""Characters of the shortest task that is mixed into training."""


@dataclass(frozen=True)
class Task:
    """A text, and the places of its answers.

    Attributes:
        text: with the answers in it.
        answers: (start, end) of each, in characters; in order, behind all that they depend on.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


def needle(rng: random.Random, length: int, depth: float) -> Task:
    """A digit in alphanumeric filler, asked for at the end.

    Args:
        length: characters, about.
        depth: where the digit stands, 0 (the start) to 1 (right before the question).
    """
    digit = rng.choice(DIGITS)
    said, asked = f"\nThe hidden digit is {digit}.\n", "\nThe hidden digit is "
    room = max(0, length - len(said) - len(asked) - 1)
    filler = _filler(rng, room)
    cut = round(depth * len(filler))
    start = f"{filler[:cut]}{said}{filler[cut:]}{asked}"
    return Task(f"{start}{digit}", ((len(start), len(start) + 1),))


def recall(rng: random.Random, length: int, pairs: int = 16, queries: int = 8) -> Task:
    """Values of keys, spread over filler; some keys are asked for at the end, in another order."""
    keys = _distinct(rng, pairs, _LETTERS)
    values = {key: _word(rng, _LETTERS, 4) for key in keys}
    said = [f"\nset {key} {value}\n" for key, value in values.items()]
    asked = [(f"\nget {key} ", values[key]) for key in rng.sample(keys, min(queries, pairs))]
    return _spread(rng, length, said, asked)


def variables(rng: random.Random, length: int, chains: int = 3, hops: int = 4) -> Task:
    """Variables that are set to a number or to one another, spread over filler.

    Asked for is the number that the last one of each chain has.
    """
    names = iter(_distinct(rng, chains * hops, _LETTERS))
    lines: list[list[str]] = []
    asked: list[tuple[str, str]] = []
    for _ in range(chains):
        value, name = _word(rng, string.digits, 5), next(names)
        lines.append([f"\nvar {name} = {value}\n"])
        for _ in range(hops - 1):
            before, name = name, next(names)
            lines[-1].append(f"\nvar {name} = {before}\n")
        asked.append((f"\nvalue {name} = ", value))
    # A link of each chain in turn: no line stands before what it needs.
    said = [line for link in zip(*lines, strict=True) for line in link]
    return _spread(rng, length, said, asked)


def mixed_in(text: str, rate: float, longest: int) -> Iterator[str]:
    """Tasks to train on behind a text, so that they make up a share of all characters.

    How many, which and how long they are depends on the text alone, so that there is no state to
    resume. Lengths lie between `SHORTEST` and `longest`, with as many characters in each octave.

    Args:
        rate: the share, at least 0 and below 1, which holds over many texts.
        longest: characters, at least `SHORTEST`.
    """
    if rate == 0:
        return
    rng = random.Random(hashlib.sha256(text.encode(errors="replace")).digest())
    mean = math.log(longest / SHORTEST) / (1 / SHORTEST - 1 / longest) if longest > SHORTEST else 0
    wanted = len(text) * rate / (1 - rate) / max(mean, SHORTEST)
    for _ in range(int(wanted) + (rng.random() < wanted % 1)):
        length = round(1 / rng.uniform(1 / longest, 1 / SHORTEST))
        kind = rng.randrange(3)
        if kind == 0:
            yield needle(rng, length, rng.random()).text
        else:
            yield (recall if kind == 1 else variables)(rng, length).text


def _spread(
    rng: random.Random, length: int, said: Sequence[str], asked: Sequence[tuple[str, str]]
) -> Task:
    """Lines at random places of filler, in order, then the questions with their answers."""
    used = sum(map(len, said)) + sum(len(question) + len(answer) for question, answer in asked)
    filler = _filler(rng, max(0, length - used))
    cuts = sorted(rng.randrange(len(filler) + 1) for _ in said)
    text, last = "", 0
    for line, cut in zip(said, cuts, strict=True):
        text += filler[last:cut] + line
        last = cut
    text += filler[last:]
    answers = []
    for question, answer in asked:
        text += question
        answers.append((len(text), len(text) + len(answer)))
        text += answer
    return Task(text, tuple(answers))


def _filler(rng: random.Random, length: int) -> str:
    return rng.randbytes(length).translate(_FILLER).decode()


def _word(rng: random.Random, letters: str, length: int) -> str:
    return "".join(rng.choices(letters, k=length))


def _distinct(rng: random.Random, count: int, letters: str) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[_word(rng, letters, 4)] = None
    return list(found)
