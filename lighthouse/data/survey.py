"""What is in a text: read once, counted, and set against the steps of a run."""

import hashlib
import sys
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torchtitan.components.tokenizer import BaseTokenizer

from lighthouse.titan.config.stages import Stages
from lighthouse.titan.data.document_packing import Packer, Packing
from lighthouse.titan.data.rows import Block
from lighthouse.titan.data.source_tables import Source, sources_of
from lighthouse.titan.data.sources import TextReader, checked_files
from lighthouse.titan.data.tally import (
    FULL,
    LEFT,
    MENDED,
    OF_DOCUMENTS,
    PADDING,
    PAIRS,
    SKIPPED,
    Tally,
)
from lighthouse.titan.data.text_files import unread_files
from lighthouse.titan.data.token_streams import encoded
from lighthouse.titan.data.tokenizer import ByteTokenizer, build_tokenizer, read_tokenizer

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

PERCENTILES = (0, 1, 10, 50, 90, 99, 100)
_SECONDS_BETWEEN = 1.0


@dataclass(frozen=True)
class Packed:
    """What ``training.document_mask`` makes of a source, in the order of its files.

    Attributes:
        seq_len: tokens of a sequence.
        multiple: what documents begin at multiples of.
        sequences: that are filled; the last, incomplete one is not counted.
        documents: of a sequence, on average; the parts of one that is cut count each.
        padding: share of the sequences' tokens.
        full: share of the sequences that end because they hold ``training.max_documents``.
        pairs: share of the pairs of causal attention that documents leave.
    """

    seq_len: int
    multiple: int
    sequences: int
    documents: float
    padding: float
    full: float
    pairs: float


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        files, unread: that are read, and that are not.
        bytes: of the texts as UTF-8.
        tokens: with those around documents.
        lengths: tokens of a document, by percentile.
        duplicates: documents that are the same as one before, of this source or another.
        bad_rows, broken_utf8: rows that are no text, and texts with bytes that are not UTF-8.
        share: of a run's tokens; None where there is no run.
        epochs: that the run's steps make of it.
        packed: of each kind of sequences that the run has, if it tells documents apart.
    """

    path: str
    files: int
    unread: int
    documents: int
    bytes: int
    tokens: int
    lengths: dict[int, int]
    duplicates: int
    bad_rows: int
    broken_utf8: int
    share: float | None = None
    epochs: float | None = None
    packed: tuple[Packed, ...] = ()


def survey_of_path(path: Path, column: str, tokenizer: str) -> list[Survey]:
    """That of a folder or a file.

    Args:
        tokenizer: ``"byte"``, or a folder of Hugging Face files.

    Raises:
        ValueError: no text there, or a damaged file; a tokenizer that ends no documents.
    """
    used: BaseTokenizer = ByteTokenizer()
    if tokenizer != "byte":
        if not Path(tokenizer).is_dir():
            raise ValueError(f"--tokenizer {tokenizer!r}: is no folder; name one, or byte")
        used = read_tokenizer(tokenizer, "--tokenizer")
    return [_survey(Source(str(path), text=column), "PATH", used, _Hashes())]


def survey_of_toml(file: Path, gpus: int) -> list[Survey]:
    """Those of a run's sources, with the epochs that its steps are.

    Raises:
        ValueError: the trainer would refuse the run, or it trains on other than local text.
    """
    from torchtitan.config import ConfigManager

    from lighthouse.cost.rates import CPU
    from lighthouse.titan.check.job import check_job
    from lighthouse.titan.plan.job import machine_of, plan

    job = ConfigManager(checked=False).parse_args(["--job.config_file", str(file)])
    training = job.training
    if training.dataset.lower() != "local":
        raise ValueError(
            f'training.dataset = {training.dataset!r}: can\'t be checked; "local" text can'
        )
    training.dataset_bad_rows = "skip"  # which are counted here
    check_job(job, machine_of(CPU, gpus))
    listed = sources_of(job)
    sources = listed or [Source(str(training.dataset_path), text=training.dataset_text)]
    stages = plan(job, gpus, CPU).stages
    # Tasks are mixed in by characters.
    of_text = (1 - training.task_rate) * sum(s.steps * s.tokens_per_step for s in stages)
    tokenizer, hashes, packings = build_tokenizer(job), _Hashes(), _packings_of(job)
    weights = sum(source.weight for source in sources)
    found = []
    for number, source in enumerate(sources, start=1):
        key = f"training.sources.{number}.path" if listed else "training.dataset_path"
        share = source.weight / weights
        of_run = share, share * of_text, packings
        found.append(_survey(source, key, tokenizer, hashes, *of_run))
    return found


def _packings_of(job: "JobConfig") -> list[Packing]:
    """Of the run's sequences, each once; none where documents are not told apart."""
    if not job.training.document_mask:
        return []
    return list(dict.fromkeys(Packing.of_training(job, stage) for stage in Stages.of(job)))


class _Packed:
    """Counts what a packing makes of documents."""

    def __init__(self, packing: Packing) -> None:
        self._packing, self._tally = packing, Tally(0, OF_DOCUMENTS)
        self._packer = Packer(packing, self._tally)
        self._sequences = self._documents = 0

    def add(self, tokens: np.ndarray) -> None:
        for _, (inputs, _) in self._packer.add(tokens):
            self._sequences += 1
            self._documents += int((inputs["attention_masks"] < self._packing.seq_len).sum())

    def counted(self) -> Packed:
        seq_len, counts = self._packing.seq_len, self._tally.totals()
        many = max(1, self._sequences)
        return Packed(
            seq_len=seq_len,
            multiple=self._packing.multiple,
            sequences=self._sequences,
            documents=self._documents / many,
            padding=counts[PADDING] / (many * seq_len),
            full=counts[FULL] / many,
            pairs=counts[LEFT] / max(1, counts[PAIRS]),
        )


class _Hashes:
    """Of documents, eight bytes each."""

    def __init__(self) -> None:
        self._seen = np.empty(0, dtype=np.uint64)

    def add(self, found: array) -> int:
        """Add those of a source; returns how many were there already, or twice among them."""
        before = len(self._seen)
        self._seen = np.unique(np.concatenate([self._seen, np.asarray(found, dtype=np.uint64)]))
        return before + len(found) - len(self._seen)


def _survey(
    source: Source,
    key: str,
    tokenizer: BaseTokenizer,
    hashes: _Hashes,
    share: float | None = None,
    wanted: float | None = None,
    packings: Iterable[Packing] = (),
) -> Survey:
    """Read a source; `hashes` has documents of the ones before."""
    tally = Tally(workers=0)
    reader = TextReader(key, source.text, skip_bad=True, tally=tally)
    files = checked_files(key, source.path, reader)
    lengths, digests, size, said = array("q"), array("Q"), 0, time.monotonic()
    packed = [_Packed(packing) for packing in packings]
    for at, file in enumerate(files):
        for text, _ in reader.texts(Block(file)):
            data = text.encode(errors="replace")
            tokens = encoded(tokenizer, text)
            lengths.append(len(tokens))
            for one in packed:
                one.add(tokens)
            size += len(data)
            digests.frombytes(hashlib.blake2b(data, digest_size=8).digest())
            if time.monotonic() - said > _SECONDS_BETWEEN:
                said = time.monotonic()
                progress = f"file {at + 1} of {len(files)}, {len(lengths):,} documents"
                print(f"{source.path}: {progress}, {size / 1e6:,.0f} MB", file=sys.stderr)
    counts, total = tally.totals(), sum(lengths)
    at_percentiles = np.percentile(lengths, PERCENTILES, method="nearest").tolist()
    return Survey(
        path=source.path,
        files=len(files),
        unread=len(unread_files(Path(source.path))),
        documents=len(lengths),
        bytes=size,
        tokens=total,
        lengths=dict(zip(PERCENTILES, at_percentiles, strict=True)),
        duplicates=hashes.add(digests),
        bad_rows=counts[SKIPPED],
        broken_utf8=counts[MENDED],
        share=share,
        epochs=None if wanted is None else wanted / total,
        packed=tuple(one.counted() for one in packed),
    )


def table(found: Sequence[Survey]) -> str:
    """Markdown, one column a source."""
    rows: list[tuple[str, list[str]]] = [
        ("files", [f"{one.files:,}" for one in found]),
        ("files not read", [f"{one.unread:,}" for one in found]),
        ("documents", [f"{one.documents:,}" for one in found]),
        ("bytes", [f"{one.bytes:,}" for one in found]),
        ("tokens", [f"{one.tokens:,}" for one in found]),
        *(
            (f"tokens of a document, {p}%", [f"{one.lengths[p]:,}" for one in found])
            for p in PERCENTILES
        ),
        ("duplicates", [f"{one.duplicates:,}" for one in found]),
        ("rows that are no text", [f"{one.bad_rows:,}" for one in found]),
        ("texts with broken UTF-8", [f"{one.broken_utf8:,}" for one in found]),
    ]
    if any(one.share is not None for one in found):
        rows.append(("share of the run", [f"{one.share or 0:.1%}" for one in found]))
        rows.append(("epochs in the run", [f"{one.epochs or 0:.3g}" for one in found]))
    for number in range(len(found[0].packed)):
        packed = [one.packed[number] for one in found]
        of = f"at {packed[0].seq_len:,} tokens, documents at multiples of {packed[0].multiple}"
        rows += [
            (f"{of}: sequences", [f"{one.sequences:,}" for one in packed]),
            ("documents of a sequence", [f"{one.documents:.1f}" for one in packed]),
            ("padding", [f"{one.padding:.2%}" for one in packed]),
            ("sequences with max_documents", [f"{one.full:.1%}" for one in packed]),
            ("pairs of causal attention that are left", [f"{one.pairs:.1%}" for one in packed]),
        ]
    lines = [["", *(one.path for one in found)], ["---", *("---" for _ in found)]]
    lines += [[name, *cells] for name, cells in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
