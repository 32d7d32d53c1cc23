"""Build `torchtitan/` from the pinned upstream release and the patches in `patches/`.

    python scripts/titan_tree.py                 build torchtitan/; does nothing if it is up to date
    python scripts/titan_tree.py checkout DIR    DIR becomes a git repository, a commit per patch
    python scripts/titan_tree.py export DIR      write the commits of DIR back to patches/

It runs before anything is installed: the standard library and pip are all that `build` needs; the
other two also need git. Patches are applied strictly: a hunk whose lines are not found exactly
where its header says stops the build. See patches/README.md.
"""

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "torchtitan"
MANIFEST = ".built.json"
# The only tracked file of the built tree: it says what will be there, and a build keeps it.
TRACKED = "README.md"

# Relative path of a file -> its bytes.
Files = dict[str, bytes]


class TreeError(Exception):
    """A reason to stop; its text is written for the person who runs the script."""


@dataclass(frozen=True)
class Upstream:
    """The pinned release, as patches/UPSTREAM names it."""

    version: str
    wheel: str
    sha256: str


@dataclass(frozen=True)
class Hunk:
    """One `@@` block; each line is (tag, text), tag one of " ", "-", "+", text with its newline."""

    old_start: int
    new_start: int
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FileChange:
    """What a patch does to one file; kind is "modify", "create" or "delete"."""

    path: str
    kind: str
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True)
class Patch:
    """A parsed patch file."""

    name: str
    subject: str
    body: str
    changes: tuple[FileChange, ...]


# Upstream ---------------------------------------------------------------------------------------


def read_upstream(root: Path) -> Upstream:
    """Read patches/UPSTREAM."""
    with (root / "patches" / "UPSTREAM").open("rb") as file:
        return Upstream(**tomllib.load(file))


def refuse_installed_torchtitan() -> None:
    """Raise if the running environment has a distribution named torchtitan.

    Two packages of one name: which of them is imported would depend on the working directory.
    """
    try:
        found = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return
    raise TreeError(
        f"torchtitan {found.version} is installed in this environment, in "
        f"{found.locate_file('')}. This project brings its own patched torchtitan/, and the two "
        f"would shadow each other. Remove it first: {sys.executable} -m pip uninstall torchtitan"
    )


def check_wheel(path: Path, upstream: Upstream) -> None:
    """Raise unless the file is, byte for byte, the pinned wheel."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != upstream.sha256:
        raise TreeError(
            f"{path} is not the pinned wheel: its sha256 is {found}, patches/UPSTREAM says "
            f"{upstream.sha256}"
        )


def pinned_wheel(root: Path, upstream: Upstream, given: Path | None) -> Path:
    """Return the verified wheel: the given one, else the one in .cache/, else pip's download.

    Whichever it was, it lies in .cache/ afterwards, and later builds need no network.
    """
    cached = root / ".cache" / upstream.wheel
    if given is None and cached.exists():
        check_wheel(cached, upstream)
        return cached
    cached.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
        wheel = Path(folder, upstream.wheel)
        if given is None:
            download_wheel(upstream, wheel)
        else:
            shutil.copyfile(given, wheel)
        check_wheel(wheel, upstream)
        wheel.replace(cached)
    return cached


def download_wheel(upstream: Upstream, target: Path) -> None:
    """Let pip download the release's wheel to the target."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--dest={target.parent}", f"{PACKAGE}=={upstream.version}"]
    if subprocess.run(command).returncode != 0:
        raise TreeError(
            f"pip could not download {PACKAGE}=={upstream.version} (its message is above). "
            f"Without network access, copy {upstream.wheel} here and build with --wheel PATH."
        )
    if not target.exists():
        raise TreeError(f"pip downloaded {os.listdir(target.parent)} instead of {upstream.wheel}")


def unpack_wheel(path: Path) -> Files:
    """Return the package's files and, as torchtitan/LICENSE, its licence text."""
    files: Files = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith(f"{PACKAGE}/") and not name.endswith("/"):
                files[name] = archive.read(name)
            elif re.fullmatch(r"[^/]+\.dist-info/(licenses/)?LICENSE", name):
                files[f"{PACKAGE}/LICENSE"] = archive.read(name)
    if f"{PACKAGE}/LICENSE" not in files:
        raise TreeError(f"{path} carries no licence text")
    return files


# Patches ----------------------------------------------------------------------------------------


def split_lines(text: str) -> list[str]:
    """Split at "\\n" only, keeping it (str.splitlines also splits at form feeds and others)."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def parse_patch(name: str, text: str) -> Patch:
    """Parse a patch as `export` writes it: `Subject:`, the body, `---`, a git diff."""
    header, separator, diff = text.partition("\n---\ndiff --git ")
    if not separator or not header.startswith("Subject: "):
        raise TreeError(f"{name}: expected 'Subject: ...', text, '---' and a git diff")
    subject, _, body = header.removeprefix("Subject: ").partition("\n")
    changes = tuple(
        _parse_file(name, split_lines(section))
        for section in re.split(r"^diff --git ", diff, flags=re.MULTILINE)
    )
    return Patch(name, subject.strip(), body.strip(), changes)


def _parse_file(name: str, lines: list[str]) -> FileChange:
    match = re.fullmatch(r"a/(\S+) b/(\S+)\n", lines[0])
    if match is None or match[1] != match[2]:
        raise TreeError(f"{name}: cannot use 'diff --git {lines[0].strip()}'")
    path, kind, i = match[1], "modify", 1
    while i < len(lines) and not lines[i].startswith("@@ "):
        if lines[i] == "new file mode 100644\n":
            kind = "create"
        elif lines[i] == "deleted file mode 100644\n":
            kind = "delete"
        elif not lines[i].startswith(("index ", "--- ", "+++ ")):
            raise TreeError(f"{name}: {path}: cannot use '{lines[i].strip()}'")
        i += 1
    hunks = []
    while i < len(lines):
        hunk, i = _parse_hunk(name, path, lines, i)
        hunks.append(hunk)
    return FileChange(path, kind, tuple(hunks))


def _parse_hunk(name: str, path: str, lines: list[str], i: int) -> tuple[Hunk, int]:
    """Parse the hunk whose header is lines[i]; return it and the index of the line after it."""
    match = re.match(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", lines[i])
    if match is None:
        raise TreeError(f"{name}: {path}: expected a hunk header, found {lines[i]!r}")
    old_start, new_start = int(match[1]), int(match[3])
    old_left = 1 if match[2] is None else int(match[2])
    new_left = 1 if match[4] is None else int(match[4])
    body: list[tuple[str, str]] = []
    i += 1
    while i < len(lines) and (old_left or new_left or lines[i].startswith("\\")):
        tag, text = lines[i][0], lines[i][1:]
        if tag == "\\":  # "\ No newline at end of file", about the line before
            body[-1] = (body[-1][0], body[-1][1].removesuffix("\n"))
        elif tag in " -+":
            body.append((tag, text))
            old_left -= tag != "+"
            new_left -= tag != "-"
        else:
            break
        i += 1
    if old_left or new_left:
        raise TreeError(f"{name}: {path}: hunk {match[0]} does not have the lines it announces")
    return Hunk(old_start, new_start, tuple(body)), i


def apply_patch(files: Files, patch: Patch) -> Files:
    """Return the files after the patch; raise where they are not exactly what it expects."""
    files = dict(files)
    for change in patch.changes:
        exists = change.path in files
        if change.kind == "create" and exists:
            raise TreeError(f"{patch.name}: {change.path} is to be created but exists")
        if change.kind != "create" and not exists:
            raise TreeError(f"{patch.name}: {change.path} does not exist")
        old = split_lines(files.pop(change.path, b"").decode())
        new = _apply_hunks(old, change, patch.name)
        if change.kind != "delete":
            files[change.path] = "".join(new).encode()
        elif new:
            raise TreeError(f"{patch.name}: {change.path} is to be deleted but has other lines")
    return files


def _apply_hunks(old: list[str], change: FileChange, name: str) -> list[str]:
    new: list[str] = []
    done = 0  # lines of `old` already copied or dropped
    for hunk in change.hunks:
        # A hunk without old lines names the line before it.
        start = hunk.old_start - any(tag != "+" for tag, _ in hunk.lines)
        new.extend(old[done:start])
        done = start
        new_start = len(new) + any(tag != "-" for tag, _ in hunk.lines)
        if hunk.new_start != new_start:
            raise TreeError(
                f"{name}: {change.path}: the hunk at line {hunk.old_start} says that it becomes "
                f"line {hunk.new_start}, but it becomes line {new_start}"
            )
        for tag, text in hunk.lines:
            if tag == "+":
                new.append(text)
                continue
            found = old[done] if done < len(old) else "the end of the file"
            if found != text:
                raise TreeError(
                    f"{name} does not apply: {change.path}, line {done + 1}:\n"
                    f"  expected {text!r}\n  found    {found!r}"
                )
            if tag == " ":
                new.append(text)
            done += 1
    return new + old[done:]


def patch_paths(root: Path) -> list[Path]:
    """The patch files in the order in which they apply."""
    return sorted((root / "patches").glob("[0-9][0-9][0-9][0-9]-*.patch"))


def read_patches(root: Path) -> list[Patch]:
    """Parse the series."""
    return [parse_patch(path.name, path.read_bytes().decode()) for path in patch_paths(root)]


# build ------------------------------------------------------------------------------------------


def inputs_digest(root: Path) -> str:
    """A digest of everything that the built tree depends on."""
    digest = hashlib.sha256()
    for path in [Path(__file__), root / "patches" / "UPSTREAM", *patch_paths(root)]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def tree_hashes(tree: Path) -> dict[str, str]:
    """sha256 of every file of the built tree, but for the tracked one, the manifest and caches."""
    return {
        path.relative_to(tree).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(tree.rglob("*"))
        if path.is_file()
        and "__pycache__" not in path.parts
        and path not in (tree / MANIFEST, tree / TRACKED)
    }


def refuse_edited_tree(tree: Path, built: dict[str, str], found: dict[str, str]) -> None:
    """Raise if the tree is not what the last build wrote: someone's work would be lost."""
    edited = sorted(
        path for path in built.keys() | found.keys() if built.get(path) != found.get(path)
    )
    if edited:
        listed = ", ".join(edited[:5]) + (f" and {len(edited) - 5} more" if edited[5:] else "")
        raise TreeError(
            f"{tree} was changed by hand since it was built: {listed}.\n"
            "To keep the changes, make them a patch: `python scripts/titan_tree.py checkout DIR`, "
            "repeat them in DIR, commit, `python scripts/titan_tree.py export DIR` "
            "(see patches/README.md).\nTo throw them away, build with --force."
        )


def build(root: Path, wheel: Path | None = None, force: bool = False) -> bool:
    """Make torchtitan/ what patches/ says.

    Args:
        root: The repository.
        wheel: The upstream wheel; None lets pip download it.
        force: Overwrite a tree that was changed by hand.

    Returns:
        False if the tree was up to date already.

    Raises:
        TreeError: whatever stands in the way. The tree is then as it was before.
    """
    refuse_installed_torchtitan()
    tree, fresh, retired = root / PACKAGE, root / ".torchtitan.new", root / ".torchtitan.old"
    if retired.exists() and not tree.exists():  # interrupted between the two renames below
        retired.rename(tree)

    digest = inputs_digest(root)
    manifest = tree / MANIFEST
    built = json.loads(manifest.read_text()) if manifest.exists() else {}
    built_files: dict[str, str] = built.get("files", {})
    found = tree_hashes(tree)
    if not force:
        refuse_edited_tree(tree, built_files, found)
    if built.get("inputs") == digest and built_files == found:
        return False

    files = unpack_wheel(pinned_wheel(root, read_upstream(root), wheel))
    for patch in read_patches(root):
        files = apply_patch(files, patch)

    for leftover in (fresh, retired):
        if leftover.exists():
            shutil.rmtree(leftover)
    write_files(fresh, {path.removeprefix(f"{PACKAGE}/"): data for path, data in files.items()})
    manifest_data = {"inputs": digest, "files": tree_hashes(fresh)}
    (fresh / MANIFEST).write_text(json.dumps(manifest_data, indent=1))
    if (tree / TRACKED).exists():
        shutil.copyfile(tree / TRACKED, fresh / TRACKED)
    if tree.exists():
        tree.rename(retired)
    fresh.rename(tree)
    if retired.exists():
        shutil.rmtree(retired)
    return True


def write_files(folder: Path, files: Files) -> None:
    """Write each file under the folder."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


# checkout and export ----------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    """Run git in the folder, free of the user's settings, and return what it printed."""
    identity = {"NAME": "Lighthouse", "EMAIL": "lighthouse@localhost", "DATE": "2000-01-01T00:00Z"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {f"GIT_AUTHOR_{key}": value for key, value in identity.items()}
    environment |= {f"GIT_COMMITTER_{key}": value for key, value in identity.items()}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(folder), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True)
    if result.returncode != 0:
        raise TreeError(f"{' '.join(command)} failed: {result.stderr.decode().strip()}")
    return result.stdout.decode()


def checkout(root: Path, folder: Path, wheel: Path | None = None) -> None:
    """Make the folder a git repository: upstream as its first commit, then one commit per patch."""
    if folder.exists() and any(folder.iterdir()):
        raise TreeError(f"{folder} is not empty")
    upstream = read_upstream(root)
    files = unpack_wheel(pinned_wheel(root, upstream, wheel))
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=patched")
    (folder / ".git" / "info" / "exclude").write_text("__pycache__/\n")
    write_files(folder, files)
    _commit(folder, f"torchtitan {upstream.version}")
    for patch in read_patches(root):
        before, files = files, apply_patch(files, patch)
        for path in before.keys() - files.keys():
            (folder / path).unlink()
        write_files(folder, {p: data for p, data in files.items() if before.get(p) != data})
        _commit(folder, f"{patch.subject}\n\n{patch.body}")


def _commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all", "--force", "--", PACKAGE)
    git(folder, "commit", "--quiet", "--message", message)


def export(root: Path, folder: Path) -> list[str]:
    """Replace the series in patches/ by the commits of the folder; return the new names."""
    if git(folder, "status", "--porcelain", "--untracked-files=no"):
        print(f"note: {folder} has uncommitted changes; they are not exported", file=sys.stderr)
    commits = git(folder, "rev-list", "--reverse", "HEAD").split()
    texts: dict[str, str] = {}
    for number, (parent, commit) in enumerate(itertools.pairwise(commits), start=1):
        subject, _, body = git(folder, "log", "-1", "--format=%B", commit).strip().partition("\n")
        if git(folder, "rev-parse", f"{commit}^@").split() != [parent]:
            raise TreeError(f"'{subject}': the history of {folder} is not a single line of commits")
        changed = git(folder, "diff", "--no-renames", "--name-only", parent, commit).split()
        if not changed or not all(path.startswith(f"{PACKAGE}/") for path in changed):
            raise TreeError(f"'{subject}' must change files of {PACKAGE}/ and no others: {changed}")
        diff = git(folder, "diff", "--unified=1", "--no-renames", "--text", parent, commit)
        # Blob ids say nothing that the lines do not, and their length varies by repository.
        diff = re.sub(r"^index .*\n", "", diff, flags=re.MULTILINE)
        words = re.sub(r"[^a-z0-9]+", "-", subject.lower()).strip("-")
        slug = re.match(r".{0,50}(?=-|$)", words)
        name = f"{number:04}-{slug[0] if slug else words}.patch"
        message = f"{subject}\n\n{body.strip()}".strip()
        texts[name] = f"Subject: {message}\n---\n{diff}"
        parse_patch(name, texts[name])
    for path in patch_paths(root):
        path.unlink()
    for name, text in texts.items():
        (root / "patches" / name).write_bytes(text.encode())
    return list(texts)


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.set_defaults(command="build", wheel=None, force=False)
    commands = parser.add_subparsers()
    for name, text in (
        ("build", "make torchtitan/ what patches/ says (the default)"),
        ("checkout", "make DIR a git repository with one commit per patch"),
        ("export", "write the commits of DIR back to patches/"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(command=name)
        if name != "build":
            command.add_argument("folder", type=Path, metavar="DIR")
        if name != "export":
            command.add_argument("--wheel", type=Path, help="upstream wheel, instead of a download")
        if name == "build":
            command.add_argument("--force", action="store_true", help="overwrite changes by hand")
    arguments = parser.parse_args()
    try:
        if arguments.command == "build":
            changed = build(ROOT, arguments.wheel, arguments.force)
            print(f"{PACKAGE}/ {'built' if changed else 'is up to date'}")
        elif arguments.command == "checkout":
            checkout(ROOT, arguments.folder, arguments.wheel)
            print(f"{arguments.folder}: upstream and one commit per patch")
        else:
            print("\n".join(export(ROOT, arguments.folder)))
    except TreeError as error:
        sys.exit(f"titan_tree: {error}")


if __name__ == "__main__":
    main()
