"""What a wheel gets, by the hook that hatch calls; hatch itself is a stand-in."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.support import ROOT


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    name = "hatchling.builders.hooks.plugin.interface"
    interface = ModuleType(name)
    interface.BuildHookInterface = SimpleNamespace().__class__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "torchtitan").mkdir()
    (tmp_path / "torchtitan" / "README.md").touch()  # all that git has of it
    return module.BuiltTree(root=str(tmp_path))


def test_a_wheel_has_the_tree_where_no_other_torchtitan_is(hook: Any) -> None:
    tree = Path(hook.root) / "torchtitan"
    for name in (".built.json", "train.py", "tools/utils.py", "__pycache__/train.pyc"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
    data: dict[str, Any] = {"force_include": {}}
    hook.initialize("standard", data)
    places = {place.removeprefix("lighthouse/_torchtitan/torchtitan/")
              for place in data["force_include"].values()}  # fmt: skip
    assert places == {"README.md", "train.py", "tools/utils.py"}


def test_a_wheel_without_the_tree_is_refused(hook: Any) -> None:
    with pytest.raises(RuntimeError, match=r"torchtitan is not built, .*scripts/titan_tree.py"):
        hook.initialize("standard", {"force_include": {}})
    hook.initialize("editable", {"force_include": {}})  # which is installed before it is built


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """As pip lays a wheel out, beside a torchtitan of the user's."""
    for name in ("__init__.py", "titan/__init__.py"):
        (tmp_path / "lighthouse" / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "lighthouse" / name, tmp_path / "lighthouse" / name)
    for tree, word in ((tmp_path, "theirs"), (tmp_path / "lighthouse" / "_torchtitan", "ours")):
        (tree / "torchtitan").mkdir(parents=True)
        (tree / "torchtitan" / "__init__.py").write_text(f"word = {word!r}\n")
    return tmp_path


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_library_leaves_a_torchtitan_of_the_users_alone(installed: Path) -> None:
    print_word = "import torchtitan; print(torchtitan.word)"
    assert run(f"import lighthouse; {print_word}", installed).stdout == "theirs\n"
    assert run(f"import lighthouse.titan; {print_word}", installed).stdout == "ours\n"


def test_two_of_them_are_not_mixed(installed: Path) -> None:
    mixed = run("import torchtitan, lighthouse.titan", installed)
    assert "which lacks the patches" in mixed.stderr and mixed.returncode == 1
