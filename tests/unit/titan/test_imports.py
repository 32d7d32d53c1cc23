"""The table of docs/architecture.md: which modules may import torchtitan at the top.

torchtitan's own modules import those of ``lighthouse.titan``: a module that its lowest ones need
would otherwise be imported in a circle, or not, by the order in which things are imported.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.processes import python

TITAN = ROOT / "lighthouse" / "titan"
MAY = {
    *("data/loaders.py", "data/packing.py", "data/sources.py", "data/tokenizer.py"),
    *("data/mixture.py", "data/token_streams.py", "data/tokenizer_checks.py"),
    *("run/stop.py", "export.py", "tokenizer_files.py", "trained.py"),
}
MODULES = sorted(str(file.relative_to(TITAN)) for file in TITAN.rglob("*.py"))


def imported_at_the_top(file: Path) -> Iterator[str]:
    """Names of modules; what stands in functions or under TYPE_CHECKING is not imported there."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("module", MODULES)
def test_only_some_import_torchtitan_at_the_top(module: str) -> None:
    names = imported_at_the_top(TITAN / module)
    imports = any(name.split(".")[0] == "torchtitan" for name in names)
    assert imports == (module in MAY)


def test_nothing_else_imports_the_trainer_at_the_top() -> None:
    """But for what looks at a run's model or text, and for a sweep's question to the trainer."""
    may = {"leak.py", "sweep/resolve.py", "data/survey.py"}
    library = ROOT / "lighthouse"
    for file in library.rglob("*.py"):
        path = str(file.relative_to(library))
        if not path.startswith("titan/") and path not in may:
            names = list(imported_at_the_top(file))
            assert not any(name.startswith(("torchtitan", "lighthouse.titan")) for name in names)


def test_the_dry_run_is_below_nothing_but_the_hooks() -> None:
    """Not in functions either."""
    for module in MODULES:
        if not module.startswith("plan/") and module != "hooks.py":
            assert "from lighthouse.titan.plan" not in (TITAN / module).read_text(), module


@pytest.mark.parametrize(
    "first", ["torchtitan.config", "torchtitan.train", "lighthouse.titan.hooks", "lighthouse.leak"]
)
def test_any_module_may_be_imported_first(first: str) -> None:
    subprocess.run([python(), "-c", f"import {first}"], cwd=ROOT, check=True)


def test_no_two_modules_have_one_name() -> None:
    files = [f for f in (ROOT / "lighthouse").rglob("*.py") if not f.name.startswith("__")]
    names = sorted(file.name for file in files)
    assert names == sorted(set(names))
