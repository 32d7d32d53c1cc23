"""Texts that ask for something far back."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighthouse.tasks import SHORTEST, mixed_in, needle, recall, variables

MAKE = {
    "needle": lambda rng, length: needle(rng, length, 0.5),
    "recall": recall,
    "variables": variables,
}


@pytest.mark.parametrize("name", MAKE)
@given(seed=st.integers(0, 100), length=st.integers(900, 3000))
def test_a_text_has_its_length_and_a_seed_gives_it_again(name: str, seed: int, length: int) -> None:
    task = MAKE[name](random.Random(seed), length)
    assert task == MAKE[name](random.Random(seed), length)
    assert len(task.text) == length and task.text.isascii()
    assert task.answers[-1][1] == len(task.text)


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_the_digit_stands_at_its_depth_and_is_asked_for(depth: float) -> None:
    task = needle(random.Random(1), 2000, depth)
    (said,) = re.finditer(r"\nThe hidden digit is (\d)\.\n", task.text)
    ((start, end),) = task.answers
    assert task.text[start:end] == said[1] and task.text.endswith(f"digit is {said[1]}")
    asked = task.text.rindex("\nThe hidden")
    assert said.start() / (asked - len(said[0])) == pytest.approx(depth, abs=0.01)


def test_keys_have_the_values_that_were_set() -> None:
    task = recall(random.Random(2), 3000, pairs=6, queries=4)
    values = dict(re.findall(r"\nset (\w+) (\w+)\n", task.text))
    asked = re.findall(r"\nget (\w+) (\w+)", task.text)
    assert len(values) == 6 and len(asked) == len(task.answers) == 4
    assert len({key for key, _ in asked}) == 4
    for (key, value), (start, end) in zip(asked, task.answers, strict=True):
        assert task.text[start:end] == value == values[key]


def test_variables_lead_to_their_number() -> None:
    task = variables(random.Random(3), 3000, chains=2, hops=3)
    told = dict(re.findall(r"\nvar (\w+) = (\w+)\n", task.text))
    asked = re.findall(r"\nvalue (\w+) = (\w+)", task.text)
    assert len(told) == 6 and len(asked) == 2
    for name, value in asked:
        hops = 0
        while not name.isdigit():
            place = task.text.index(f"\nvar {name} =")
            name, hops = told[name], hops + 1
            # What a line needs stands before it.
            assert name.isdigit() or task.text.index(f"\nvar {name} =") < place
        assert (name, hops) == (value, 3)


def test_mixed_in_tasks_make_up_their_share_and_as_much_of_each_octave() -> None:
    texts = [f"{i}" * 500 for i in range(4000)]
    tasks = [task for text in texts for task in mixed_in(text, 0.25, 4096)]
    share = sum(map(len, tasks)) / (sum(map(len, tasks)) + sum(map(len, texts)))
    assert share == pytest.approx(0.25, abs=0.02)
    assert all(SHORTEST <= len(task) <= 4096 for task in tasks)
    octaves = [
        sum(len(task) for task in tasks if first <= len(task) < 2 * first)
        for first in (512, 1024, 2048)
    ]
    assert max(octaves) < 1.3 * min(octaves)
    for question in ("get ", "value ", "The hidden digit is "):
        assert any(question in task for task in tasks)


def test_what_is_mixed_in_depends_on_the_text_alone() -> None:
    assert list(mixed_in("ab" * 9000, 0.5, 2048)) == list(mixed_in("ab" * 9000, 0.5, 2048))
    assert list(mixed_in("ab" * 9000, 0.5, 2048)) != list(mixed_in("ba" * 9000, 0.5, 2048))
    assert not list(mixed_in("ab" * 9000, 0.0, 2048))
    assert all(len(task) == SHORTEST for task in mixed_in("a" * 5000, 0.5, SHORTEST))
