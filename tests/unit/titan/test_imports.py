"""The table of docs/architecture.md: which package imports which, and who torchtitan at the top.

torchtitan's own modules import those of ``lighthouse.titan``: a module that its lowest ones need
would otherwise be imported in a circle, or not, by the order in which things are imported.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.processes import python

LIBRARY = ROOT / "lighthouse"
TITAN = LIBRARY / "titan"
TITANS = "lighthouse.titan"
MAY = {
    *("data/loaders.py", "data/packing.py", "data/sources.py", "data/tokenizer.py"),
    *("data/mixture.py", "data/token_streams.py", "data/tokenizer_checks.py"),
    *("run/stop.py", "export.py", "tokenizer_files.py", "trained.py"),
}
MODULES = sorted(str(file.relative_to(TITAN)) for file in TITAN.rglob("*.py"))
PACKAGES = sorted(file.parent.name for file in TITAN.glob("*/__init__.py"))


def imported_at_the_top(file: Path) -> Iterator[str]:
    """Names of modules; what stands in functions or under TYPE_CHECKING is not imported there."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imported(node: ast.AST) -> Iterator[str]:
    """Names of modules, or of what is in them; in functions too, but not under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from imported(child)


def package_of(name: str) -> str:
    """The package with a module; in `lighthouse` and `lighthouse.titan` the module stands alone."""
    package, *rest = name.split(".")
    while rest and (ROOT / package.replace(".", "/") / rest[0]).is_dir():
        package = f"{package}.{rest.pop(0)}"
    return f"{package}.{rest[0]}" if rest and package in ("lighthouse", TITANS) else package


@pytest.fixture(scope="module")
def packages() -> dict[str, set[str]]:
    """What each package of the library imports of the library."""
    found: dict[str, set[str]] = {}
    for file in LIBRARY.rglob("*.py"):
        package = package_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        names = imported(ast.parse(file.read_text()))
        theirs = {package_of(name) for name in names if name.split(".")[0] == "lighthouse"}
        found.setdefault(package, set()).update(theirs - {package})
    return found


def test_no_package_imports_one_that_imports_it(packages: dict[str, set[str]]) -> None:
    TopologicalSorter(packages).prepare()  # a CycleError names those of a circle


def test_packages_import_those_above_them(packages: dict[str, set[str]]) -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().split("| package of ")[1]
    order = re.findall(r"^\| `(\w+)/` \|", table.split("\n\n")[0], re.MULTILINE)
    assert sorted(order) == PACKAGES
    for number, package in enumerate(order):
        theirs = {name for name in packages[f"{TITANS}.{package}"] if name.startswith(TITANS)}
        assert theirs <= {f"{TITANS}.{above}" for above in order[:number]}, package


@pytest.mark.parametrize("module", MODULES)
def test_only_some_import_torchtitan_at_the_top(module: str) -> None:
    names = imported_at_the_top(TITAN / module)
    imports = any(name.split(".")[0] == "torchtitan" for name in names)
    assert imports == (module in MAY)


def test_nothing_else_imports_the_trainer_at_the_top() -> None:
    """But for what looks at a run's model or text, and for a sweep's question to the trainer."""
    may = {"leak.py", "sweep/resolve.py", "data/survey.py"}
    for file in LIBRARY.rglob("*.py"):
        path = str(file.relative_to(LIBRARY))
        if not path.startswith("titan/") and path not in may:
            names = list(imported_at_the_top(file))
            assert not any(name.startswith(("torchtitan", "lighthouse.titan")) for name in names)


@pytest.mark.parametrize(
    "first", ["torchtitan.config", "torchtitan.train", "lighthouse.titan.hooks", "lighthouse.leak"]
)
def test_any_module_may_be_imported_first(first: str) -> None:
    subprocess.run([python(), "-c", f"import {first}"], cwd=ROOT, check=True)


def test_no_two_modules_have_one_name() -> None:
    """But for a check, which is called what it checks."""
    files = [f for f in LIBRARY.rglob("*.py") if not f.name.startswith("__")]
    names = sorted(file.name for file in files if file.parent != TITAN / "check")
    assert names == sorted(set(names))
