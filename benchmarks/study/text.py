"""Text of long-context byte models: the program sources in Debian packages.

    python -m benchmarks.study.text OUT [--packages NAME[=VERSION] ...] [--most MB] [--cache FOLDER]

Packages come by ``apt-get download``; those of the Linux kernel are refused, its sources are for
checking results. The files of a directory, together with its neighbours' if it is small, follow
each other in documents of up to 200 KB, so that a long sequence has use of what is far back.
Whole directories are held out. Writes ``train/*.jsonl``, ``val/val.jsonl`` and ``text.json`` into
OUT; the same packages give the same bytes. The share of the training text that one package can have
is limited by ``--most``, and that of test suites, which are small files much alike, to 15 %.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any

# The first of two files that are nearly the same is kept, so the order matters.
PACKAGES = """
    gcc-12-source openjdk-17-source glibc-source binutils-source gdb-source libpython3.11-stdlib
    python3-django python3-scipy python3-sympy golang-1.19-src rust-src bazel-bootstrap-source
    openjfx-source xorg-server-source openvswitch-source newlib-source libboost1.74-dev
""".split()
SUFFIXES = set(
    """
    .C .S .ad .adb .ads .awk .c .c++ .cc .cpp .cs .cxx .el .erl .f .f90 .go .h .hh .hpp .hrl .hs
    .hxx .inc .inl .java .js .lisp .lpr .lua .m .ml .mli .mll .mly .mm .mod .pas .pl .pm .pp .py
    .pyx .rb .rs .s .scm .sh .tcl .tcc .ts .y
    """.split()
)
ARCHIVE = re.compile(r"\.(tar(\.\w+)?|tgz|zip)$")
TESTS = re.compile(r"([\w.+-]*[_.-]|unit)?test(s|suites?|ing|data|cases)?", re.IGNORECASE)
GENERATED = re.compile(
    rb"do not (edit|modify)|(automatically|auto|machine|code)[- ]*generated|generated auto",
    re.IGNORECASE,
)
NUMBER = re.compile(rb"\b0x[0-9a-f]+|[^a-z\s]+", re.IGNORECASE)

DOCUMENT = 200_000  # bytes of a document at most, and so of a file
NEIGHBOURS = 65_536  # directories are joined until they have this much
HELD_OUT = 0.02  # of a package's bytes
HELD_OUT_AT_ONCE = 0.03  # no directory with more than that
TEST_SHARE = 0.15
SEEN_BEFORE = 0.8  # of a file's lines: a near duplicate
REPETITIVE = 10  # times as large as compressed; sources are 3 to 6 times
LONG_LINE = 2000
SHARD = 16 << 20


@dataclass(frozen=True)
class Document:
    """Files of one directory or of neighbouring ones; those with the same ``folder`` share some."""

    text: str
    folder: str
    files: int
    size: int
    tests: bool

    @property
    def order(self) -> bytes:
        """What documents are sorted by: the same on every machine, and as good as random."""
        return hashlib.sha256(self.text.encode()).digest()


def field(deb: Path, name: str) -> str:
    command = ["dpkg-deb", "--field", str(deb), name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def download(package: str, cache: Path) -> Path:
    """The package's file, in ``cache`` if that has one of it."""
    name, _, version = package.partition("=")
    refusal = f"{package}: the Linux kernel's sources are reserved for checking results"
    if name.startswith("linux"):
        raise SystemExit(refusal)
    pattern = f"{name}_{version.replace(':', '%3a') or '*'}_*.deb"
    if not any(cache.glob(pattern)):
        subprocess.run(["apt-get", "download", "-q", package], check=True, cwd=cache)
    found = sorted(cache.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{package}: {cache} has {len(found)} packages that match, not one")
    if field(found[0], "Source").startswith("linux"):
        raise SystemExit(refusal)
    return found[0]


def archived(stream: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of the source files in an archive, and in the archives that it holds.

    Those among tests are left: some are broken on purpose.
    """
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(stream.read())) as archive:
            for path in archive.namelist():
                if PurePosixPath(path).suffix in SUFFIXES:
                    yield path, archive.read(path)
        return
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            if ARCHIVE.search(path) and not is_tests(path):
                yield from archived(content, path)
            elif PurePosixPath(path).suffix in SUFFIXES:
                yield re.sub(r"^usr/(src|share|lib|include)/", "", path), content.read()


def sources(deb: Path) -> dict[str, bytes]:
    """Content of a package's source files by their path."""
    files: dict[str, bytes] = {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for path, data in archived(process.stdout, "package.tar"):
            files.setdefault(path, data)
    if process.returncode:
        raise SystemExit(f"{deb}: dpkg-deb failed")
    return files


def is_tests(path: str) -> bool:
    """Whether a file is in a folder of tests."""
    return any(map(TESTS.fullmatch, PurePosixPath(path).parent.parts))


def is_data(data: bytes) -> bool:
    """Whether the file is a table of numbers, repeats itself, or has lines that nobody wrote."""
    blank = len(data) - len(b"".join(data.split()))
    numbers = sum(map(len, NUMBER.findall(data)))
    return (
        numbers > 0.9 * (len(data) - blank)
        or len(data) > REPETITIVE * len(zlib.compress(data))
        or max(map(len, data.splitlines())) > LONG_LINE
    )


class Filter:
    """Decodes files, and refuses those not worth learning from or seen before."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self._contents: set[bytes] = set()
        self._lines: set[int] = set()

    def text(self, path: str, data: bytes) -> str | None:
        """The file under a line with its path; None if it is skipped."""
        text = f"// file: {path}\n"
        reason = "not UTF-8"
        try:
            text += data.decode("utf-8-sig").replace("\r\n", "\n").rstrip() + "\n"
            reason = self._reason(data, len(text.encode()))
        except UnicodeDecodeError:
            pass
        if reason:
            self.skipped[reason] += 1
        return None if reason else text

    def _reason(self, data: bytes, size: int) -> str:
        if not data.strip():
            return "empty"
        if size > DOCUMENT:
            return "large"
        if b"\0" in data or is_data(data):
            return "data"
        if GENERATED.search(data[:1000]):
            return "generated"
        content = hashlib.sha256(data).digest()
        if content in self._contents:
            return "duplicate"
        self._contents.add(content)
        lines = {zlib.crc32(line) for line in map(bytes.strip, data.splitlines()) if len(line) > 15}
        if lines and len(lines & self._lines) > SEEN_BEFORE * len(lines):
            return "near duplicate"
        self._lines |= lines
        return ""


def neighbourhoods(files: list[tuple[str, str]]) -> Iterator[tuple[str, bool, list[str]]]:
    """Joins small directories to the ones after them, tests only to tests.

    Yields:
        (path of the first directory, whether it has tests, texts of the files).
    """
    for tests in (False, True):
        first, texts = "", list[str]()
        ordered = sorted(
            (str(PurePosixPath(path).parent), path, text)
            for path, text in files
            if is_tests(path) == tests
        )
        for folder, group in groupby(ordered, key=lambda file: file[0]):
            first = first or folder
            texts += [text for _, _, text in group]
            if sum(map(len, texts)) >= NEIGHBOURS:
                yield first, tests, texts
                first, texts = "", []
        if texts:
            yield first, tests, texts


def documents(folder: str, tests: bool, texts: list[str]) -> Iterator[Document]:
    """Documents of like size."""
    sizes = [len(text.encode()) for text in texts]
    enough = sum(sizes) / -(-sum(sizes) // DOCUMENT)
    start = total = 0
    for i, size in enumerate(sizes):
        if start < i and (total >= enough or total + size > DOCUMENT):
            yield Document("".join(texts[start:i]), folder, i - start, total, tests)
            start, total = i, 0
        total += size
    yield Document("".join(texts[start:]), folder, len(texts) - start, total, tests)


def size_of(chosen: Iterable[Document]) -> int:
    return sum(document.size for document in chosen)


def limit(ordered: Iterable[Document], most: float) -> list[Document]:
    """The first documents, of ``most`` bytes together."""
    chosen, total = [], 0
    for document in ordered:
        total += document.size
        if total > most:
            break
        chosen.append(document)
    return chosen


def choose(found: list[Document], most: float) -> list[Document]:
    """At most so many bytes of a package's documents, and no more than its share of tests."""
    found = sorted(found, key=lambda document: document.order)
    tests = [document for document in found if document.tests]
    others = [document for document in found if not document.tests]
    tests = limit(tests, TEST_SHARE * min(most, size_of(others) / (1 - TEST_SHARE)))
    return tests + limit(others, most - size_of(tests))


def held_out_folders(chosen: list[Document]) -> set[str]:
    """Folders with about the share to hold out, by the hash of their paths."""
    sizes: Counter[str] = Counter()
    for document in chosen:
        sizes[document.folder] += document.size
    folders: set[str] = set()
    held_out = 0
    for folder in sorted(sizes, key=lambda path: hashlib.sha256(path.encode()).digest()):
        if held_out >= HELD_OUT * sizes.total():
            break
        if sizes[folder] <= HELD_OUT_AT_ONCE * sizes.total():
            folders.add(folder)
            held_out += sizes[folder]
    return folders


def write(documents: list[Document], folder: Path, name: str, shard: float) -> list[Path]:
    """JSON lines in one or several files."""
    for old in folder.glob("*.jsonl"):
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    lines: list[str] = []
    size = 0
    for i, document in enumerate(documents):
        lines.append(json.dumps({"text": document.text}) + "\n")
        size += len(lines[-1])
        if size >= shard or i == len(documents) - 1:
            paths.append(folder / name.format(len(paths)))
            paths[-1].write_text("".join(lines))
            lines, size = [], 0
    return paths


def counts(chosen: list[Document]) -> dict[str, int]:
    return {
        "bytes": size_of(chosen),
        "test_bytes": size_of(document for document in chosen if document.tests),
        "files": sum(document.files for document in chosen),
        "documents": len(chosen),
    }


def build(out: Path, packages: list[str], most: float, cache: Path) -> dict[str, Any]:
    """Writes the text and returns what ``text.json`` says of it."""
    cache.mkdir(parents=True, exist_ok=True)
    debs = [download(package, cache) for package in packages]
    train: list[Document] = []
    val: list[Document] = []
    described = []
    skipped: Counter[str] = Counter()
    files = Filter()
    for deb in debs:
        name = field(deb, "Package")
        files.skipped = Counter()
        content = sources(deb)
        texts = [(path, files.text(path, data)) for path, data in sorted(content.items())]
        kept = [(path, text) for path, text in texts if text is not None]
        found = [part for joined in neighbourhoods(kept) for part in documents(*joined)]
        chosen = choose(found, most)
        folders = held_out_folders(chosen)
        train_part = [document for document in chosen if document.folder not in folders]
        val_part = [document for document in chosen if document.folder in folders]
        train += train_part
        val += val_part
        skipped += files.skipped
        described.append(
            {
                "package": name,
                "version": field(deb, "Version"),
                "architecture": field(deb, "Architecture"),
                "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(),
                "source_files": len(content),
                "skipped": dict(sorted(files.skipped.items())),
                "available_bytes": size_of(found),
                "train": counts(train_part),
                "val": counts(val_part),
            }
        )
        print(json.dumps(described[-1]), flush=True)
    train.sort(key=lambda document: document.order)
    val.sort(key=lambda document: document.order)
    paths = write(train, out / "train", "{:02}.jsonl", SHARD)
    paths += write(val, out / "val", "val.jsonl", float("inf"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return {
        "train": counts(train),
        "val": counts(val),
        "skipped": dict(sorted(skipped.items())),
        "sha256": digest.hexdigest(),
        "files": [str(path.relative_to(out)) for path in paths],
        "packages": described,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--packages", nargs="+", default=PACKAGES, metavar="NAME[=VERSION]")
    parser.add_argument("--most", type=float, default=18, help="MB of training text of a package")
    parser.add_argument("--cache", type=Path, help="of packages; OUT's neighbour `packages`")
    args = parser.parse_args()
    cache = args.cache or args.out.resolve().parent / "packages"
    text = build(args.out, args.packages, args.most * 1e6, cache.resolve())
    (args.out / "text.json").write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
