"""The build of torchtitan/: on a small made-up release, and on the real series."""

import difflib
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

import pytest

import titan_tree
from titan_tree import TreeError

UPSTREAM = {
    "torchtitan/__init__.py": "",
    "torchtitan/a.py": "".join(f"a = {i}\n" for i in range(1, 21)),
    "torchtitan/old/b.py": "b = 1\nb = 2",
    "torchtitan-1.0.dist-info/licenses/LICENSE": "licence\n",
}
# Subject -> the files that the patch changes, and what they become (None: deleted).
SERIES = {
    "Change two places": {
        "torchtitan/a.py": UPSTREAM["torchtitan/a.py"]
        .replace("a = 3\n", "a = 3\nnew\n")
        .replace("a = 15\n", "")
    },
    "Move b, and end it with a newline": {
        "torchtitan/old/b.py": None,
        "torchtitan/new/b.py": "b = 1\n\x0cb = 2\n",
        "torchtitan/new/__init__.py": "",
    },
    "Change below the first change": {
        "torchtitan/a.py": UPSTREAM["torchtitan/a.py"]
        .replace("a = 3\n", "a = 3\nnew\n")
        .replace("a = 15\n", "")
        .replace("a = 19\n", "a = nineteen\n")
    },
}


def diff(path: str, before: str | None, after: str | None) -> str:
    """One file's part of a git diff with a line of context."""
    text = f"diff --git a/{path} b/{path}\n"
    text += "new file mode 100644\n" if before is None else ""
    text += "deleted file mode 100644\n" if after is None else ""
    lines = difflib.unified_diff(
        titan_tree.split_lines(before or ""),
        titan_tree.split_lines(after or ""),
        "/dev/null" if before is None else f"a/{path}",
        "/dev/null" if after is None else f"b/{path}",
        n=1,
        lineterm="\n",
    )
    for line in lines:
        text += line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
    return text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a release, its pin, a series of patches and a tracked README."""
    root = tmp_path / "repository"
    for folder in ("patches", "torchtitan"):
        (root / folder).mkdir(parents=True)
    (root / "torchtitan" / "README.md").write_text("tracked\n")
    wheel = root / "release.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in UPSTREAM.items():
            archive.writestr(path, text)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (root / "patches" / "UPSTREAM").write_text(
        f'version = "1.0"\nwheel = "torchtitan-1.0.whl"\nsha256 = "{sha256}"\n'
    )
    files: dict[str, str | None] = dict(UPSTREAM)
    for number, (subject, changes) in enumerate(SERIES.items(), start=1):
        parts = [diff(path, files.get(path), after) for path, after in sorted(changes.items())]
        text = f"Subject: {subject}\n\nWhy.\n---\n" + "".join(parts)
        (root / "patches" / f"{number:04}-x.patch").write_text(text)
        files.update(changes)
    return root


def build(root: Path, force: bool = False) -> bool:
    return titan_tree.build(root, root / "release.whl", force)


def contents(tree: Path) -> dict[str, str]:
    return {path: (tree / path).read_text() for path in titan_tree.tree_hashes(tree)}


def test_build_applies_the_series(root: Path) -> None:
    assert build(root)
    expected = {
        "__init__.py": "",
        "LICENSE": "licence\n",
        "a.py": SERIES["Change below the first change"]["torchtitan/a.py"],
        "new/__init__.py": "",
        "new/b.py": "b = 1\n\x0cb = 2\n",
    }
    assert contents(root / "torchtitan") == expected
    assert (root / "torchtitan" / "README.md").read_text() == "tracked\n"
    assert sorted(path.name for path in root.iterdir() if path.name.startswith(".")) == [".cache"]


def test_second_build_does_nothing(root: Path) -> None:
    build(root)
    (root / "torchtitan" / "__pycache__").mkdir()
    (root / "torchtitan" / "__pycache__" / "a.pyc").write_text("")
    (root / "release.whl").unlink()
    assert not titan_tree.build(root)


def test_changed_series_is_rebuilt_from_the_kept_wheel(root: Path) -> None:
    build(root)
    (root / "patches" / "0003-x.patch").unlink()
    assert titan_tree.build(root)
    assert "nineteen" not in (root / "torchtitan" / "a.py").read_text()


def test_wrong_hash_is_refused(root: Path) -> None:
    with (root / "release.whl").open("ab") as file:
        file.write(b"x")
    with pytest.raises(TreeError, match="is not the pinned wheel: its sha256 is"):
        build(root)
    assert contents(root / "torchtitan") == {}
    assert list((root / ".cache").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "old", "new", "message"),
    [
        (1, "@@ -3,2 +3,3 @@", "@@ -4,2 +4,3 @@", r"0001-x.patch does not apply: .*a.py, line 4:"),
        (1, "@@ -14,3 +15,2 @@", "@@ -14,3 +14,2 @@", r"at line 14 says .* line 14, .* line 15"),
        (1, " a = 4\n", " a = 5\n", r"line 4:\n  expected 'a = 5\\n'\n  found    'a = 4\\n'"),
        (1, "-a = 15\n", "-a = 51\n", r"line 15:\n  expected 'a = 51\\n'\n  found"),
        (1, "@@ -3,2 +3,3 @@", "@@ -3,2 +3,9 @@", r"does not have the lines it announces"),
        (1, "---\ndiff", "diff", r"0001-x.patch: expected 'Subject: "),
        (2, "new file mode 100644", "old mode 100644", r"cannot use 'old mode 100644'"),
        (2, "torchtitan/old/b.py", "torchtitan/old/c.py", r"old/c.py does not exist"),
        (2, "torchtitan/new/__init__.py", "torchtitan/__init__.py", r"to be created but exists"),
        (3, "a = 19", "a = 18", r"0003-x.patch does not apply: .*a.py, line 19:"),
    ],
)
def test_inexact_patch_is_refused(
    root: Path, number: int, old: str, new: str, message: str
) -> None:
    build(root)
    before = contents(root / "torchtitan")
    patch = root / "patches" / f"{number:04}-x.patch"
    assert old in patch.read_text()
    patch.write_text(patch.read_text().replace(old, new))
    with pytest.raises(TreeError, match=message):
        build(root)
    assert contents(root / "torchtitan") == before


def test_edit_by_hand_is_refused(root: Path) -> None:
    build(root)
    built = contents(root / "torchtitan")
    (root / "torchtitan" / "a.py").write_text("edited\n")
    (root / "torchtitan" / "mine.py").write_text("")
    with pytest.raises(TreeError, match=r"changed by hand .*: a.py, mine.py\.[^$]*--force"):
        build(root)
    assert build(root, force=True)
    assert contents(root / "torchtitan") == built


def test_interrupted_swap_is_repaired(root: Path) -> None:
    build(root)
    (root / "torchtitan").rename(root / ".torchtitan.old")
    (root / ".torchtitan.new").mkdir()
    assert not build(root)
    assert (root / "torchtitan" / "README.md").exists()


def test_installed_torchtitan_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "torchtitan-0.2.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchtitan\nVersion: 0.2.1\n")
    monkeypatch.syspath_prepend(str(info.parent))
    assert importlib.metadata.version("torchtitan") == "0.2.1"
    with pytest.raises(TreeError, match=r"torchtitan 0\.2\.1 is installed .*pip uninstall"):
        build(root)


def test_export_of_a_checkout_changes_nothing(root: Path, tmp_path: Path) -> None:
    titan_tree.checkout(root, tmp_path / "git", root / "release.whl")
    names = titan_tree.export(root, tmp_path / "git")
    assert names[0] == "0001-change-two-places.patch"
    first = {name: (root / "patches" / name).read_text() for name in names}
    titan_tree.checkout(root, tmp_path / "again", root / "release.whl")
    titan_tree.export(root, tmp_path / "again")
    assert first == {path.name: path.read_text() for path in titan_tree.patch_paths(root)}
    assert build(root)
    assert (root / "torchtitan" / "new" / "b.py").read_text() == "b = 1\n\x0cb = 2\n"


def test_export_takes_a_new_commit(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "git"
    titan_tree.checkout(root, folder, root / "release.whl")
    (folder / "torchtitan" / "a.py").write_text("short\n")
    titan_tree.git(folder, "commit", "--all", "--message", "Shorten a")
    assert titan_tree.export(root, folder)[-1] == "0004-shorten-a.patch"
    build(root)
    assert (root / "torchtitan" / "a.py").read_text() == "short\n"


def test_checkout_needs_an_empty_folder(root: Path) -> None:
    with pytest.raises(TreeError, match="is not empty"):
        titan_tree.checkout(root, root)


def test_the_real_tree_is_built_and_round_trips(tmp_path: Path) -> None:
    assert not titan_tree.build(titan_tree.ROOT)

    patches = tmp_path / "patches"
    patches.mkdir()
    for path in [titan_tree.ROOT / "patches/UPSTREAM", *titan_tree.patch_paths(titan_tree.ROOT)]:
        (patches / path.name).write_bytes(path.read_bytes())
    wheel = titan_tree.ROOT / ".cache" / titan_tree.read_upstream(titan_tree.ROOT).wheel
    titan_tree.checkout(tmp_path, tmp_path / "git", wheel)
    titan_tree.export(tmp_path, tmp_path / "git")
    for path in titan_tree.patch_paths(titan_tree.ROOT):
        assert (patches / path.name).read_bytes() == path.read_bytes()
    assert len(titan_tree.patch_paths(tmp_path)) == len(titan_tree.patch_paths(titan_tree.ROOT))
