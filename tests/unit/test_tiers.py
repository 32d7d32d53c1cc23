"""The tests marked thorough: left out unless asked for, and counted; of each file others remain."""

import ast
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest import leave_out_thorough_ones
from tests.support import ROOT
from tests.support.processes import python, run

TESTS = ROOT / "tests"
TWO_TIERS = """
import pytest


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_sizes(size):
    pass


@pytest.mark.thorough
def test_again():
    pass
"""


def test_what_is_marked_is_left_out_unless_asked_for() -> None:
    def item(*marks: str) -> Any:
        return SimpleNamespace(get_closest_marker=lambda name: name in marks)

    for thorough in (False, True):
        quick, marked, reported = item(), item("thorough"), []
        hook = SimpleNamespace(pytest_deselected=lambda items, to=reported: to.extend(items))
        items = [quick, marked]
        leave_out_thorough_ones(
            cast(Any, SimpleNamespace(getoption=lambda _, given=thorough: given, hook=hook)), items
        )
        assert (items, reported) == (([quick, marked], []) if thorough else ([quick], [marked]))


@pytest.mark.thorough
@pytest.mark.parametrize("processes", [0, 2])
def test_pytest_says_how_many_are_left_out(tmp_path: Path, processes: int) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_two_tiers.py").write_text(TWO_TIERS)
    command = [python(), "-m", "pytest", "-p", "no:cacheprovider", f"-n{processes}", str(tmp_path)]
    for option, found in ((), "1 passed, 2 deselected"), (["--thorough"], "3 passed"):
        code, printed = run([*command, *option], {"PYTHONPATH": str(ROOT)}, tmp_path)
        assert code == 0 and found in printed, printed


def test_of_each_file_something_is_in_the_quick_tier() -> None:
    for file in TESTS.rglob("test_*.py"):
        tests = [
            node
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        quick = [test for test in tests if "mark.thorough" not in marks_of_all(test)]
        assert quick, f"{file}: nothing is tested without --thorough"


def marks_of_all(test: ast.FunctionDef) -> str:
    """Marks of the test, not of one of its parameters."""
    return " ".join(
        ast.unparse(mark) for mark in test.decorator_list if not isinstance(mark, ast.Call)
    )
