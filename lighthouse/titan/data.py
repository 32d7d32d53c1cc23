"""Text sources, and documents packed into token sequences.

A source is a stream of documents read through the `datasets` library: upstream's registry (C4), a
local folder or file ("local"), or the Python installation's own standard library ("python").
`PackedTextDataset` turns it into sequences for any length up to millions of tokens, with a state of
a few hundred bytes. An upstream dataset read with a Hugging Face tokenizer keeps upstream's loader,
so that its batches stay the ones that upstream gives.
"""

import gzip
import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.distributed import split_dataset_by_node
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import IterableDataset
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.config.job_config import Training, Validation
from torchtitan.hf_datasets import text_datasets as upstream
from torchtitan.tools.logging import logger

from lighthouse.titan.text_files import LOCAL_KINDS, check_text, local_files
from lighthouse.titan.tokenizer import ByteTokenizer

PIECE_BYTES = 4096


class PackedTextDataset(IterableDataset, Stateful):
    """Documents, each between a bos and an eos token, packed into sequences without a gap.

    Sequence i holds tokens i*seq_len .. (i+1)*seq_len of the rank's stream: the label of its last
    token is the first token of the next one, and every token but the first is a label once per
    epoch.

    A fresh iterator starts at the beginning of the stream, unless `load_state_dict` came before it.

    Args:
        documents: stream of samples.
        text_of: the text in a sample.
        tokenizer: a `ByteTokenizer` is used through buffer copies, any other through `encode`.
        seq_len: tokens per sequence.
        dp_rank, dp_world_size: which share of the documents to read; shares do not overlap.
        infinite: start over when the documents end; otherwise stop without the last, incomplete
            sequence.

    Yields:
        ({"input": int64 (seq_len,)}, label int64 (seq_len,)).

    Raises:
        ValueError: this rank or worker gets no tokens, or a finite stream has no complete sequence.
    """

    def __init__(
        self,
        documents: datasets.IterableDataset,
        text_of: Callable[[dict[str, Any]], str],
        tokenizer: BaseTokenizer,
        seq_len: int,
        dp_rank: int,
        dp_world_size: int,
        infinite: bool,
    ) -> None:
        self._documents = split_dataset_by_node(documents, dp_rank, dp_world_size)
        self._text_of = text_of
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._share = f"data-parallel rank {dp_rank} of {dp_world_size}"
        self._infinite = infinite
        self._state = _stream_start()
        self._resume = False

    def state_dict(self) -> dict[str, Any]:
        """Position after the latest sequence.

        `epoch`: passes over the documents finished; `source`: state of `datasets` before the
        current document, None at the start of a pass; `offset`: tokens of that document already
        used; `last_token`: the token that the next sequence begins with, None before the first.
        """
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = dict(state_dict)
        self._resume = True

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        if not self._resume:
            self._state = _stream_start()
        self._resume = False
        epoch, source = self._state["epoch"], self._state["source"]
        offset, last_token = self._state["offset"], self._state["last_token"]
        from_start = last_token is None

        sequence = np.empty(self._seq_len + 1, dtype=np.int64)
        filled = 0
        if last_token is not None:
            sequence[0] = last_token
            filled = 1

        while True:
            whole_epoch = source is None and offset == 0
            epoch_tokens = 0
            # Always said, also with None: `datasets` would begin the next epoch where it resumed.
            self._documents.load_state_dict(source)
            for sample in self._documents:
                # Taken now, because before its first sample `datasets` does not report the state
                # that it was given, and a second resume would then start over.
                next_source = self._documents.state_dict()
                tokens = self._encode(self._text_of(sample))
                epoch_tokens += len(tokens)
                while offset < len(tokens):
                    taken = min(len(sequence) - filled, len(tokens) - offset)
                    sequence[filled : filled + taken] = tokens[offset : offset + taken]
                    filled += taken
                    offset += taken
                    if filled == len(sequence):
                        last_token = int(sequence[-1])
                        self._state = {
                            "epoch": epoch,
                            "source": source,
                            "offset": offset,
                            "last_token": last_token,
                        }
                        pair = torch.from_numpy(sequence)
                        yield {"input": pair[:-1]}, pair[1:]
                        sequence = np.empty_like(sequence)
                        sequence[0] = last_token
                        filled = 1
                source, offset = next_source, 0

            if whole_epoch and epoch_tokens == 0:
                raise ValueError(
                    f"no text for {self._share}: use a dataset with at least as many documents as "
                    "data-parallel ranks and as many files as dataloader.num_workers"
                )
            if not self._infinite:
                if from_start and last_token is None:
                    raise ValueError(
                        f"seq_len = {self._seq_len}: the dataset has only {filled} tokens for "
                        f"{self._share}, {self._seq_len + 1} make one sequence"
                    )
                logger.info(f"The dataset has run out for {self._share}")
                return
            epoch += 1
            source = None
            logger.info(f"The dataset starts over for {self._share}: epoch {epoch}")

    def _encode(self, text: str) -> np.ndarray:
        if isinstance(self._tokenizer, ByteTokenizer):
            return self._tokenizer.encode_array(text, add_bos=True, add_eos=True)
        return np.asarray(self._tokenizer.encode(text, add_bos=True, add_eos=True), dtype=np.int64)


def _stream_start() -> dict[str, Any]:
    return {"epoch": 0, "source": None, "offset": 0, "last_token": None}


def python_pieces() -> list[tuple[Path, int]]:
    """Pieces of the standard library's sources, as (file, number), in an order that mixes them.

    Pieces have about `PIECE_BYTES`, so that the few thousand tokens of a small step are not all of
    one file. The order depends on nothing but relative paths and numbers. Tests are left out, which
    not every installation has, and so are the tables of the character encodings.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "encodings"}
    pieces = [
        (path, number)
        for path in root.rglob("*.py")
        if not skipped.intersection(path.relative_to(root).parts)
        for number in range(-(-path.stat().st_size // PIECE_BYTES))
    ]

    def place(piece: tuple[Path, int]) -> bytes:
        name = f"{piece[0].relative_to(root).as_posix()}:{piece[1]}"
        return hashlib.sha256(name.encode()).digest()

    return sorted(pieces, key=place)


def read_pieces(pieces: list[tuple[Path, int]]) -> Iterator[dict[str, str]]:
    """The pieces as {"text": ...}: the lines that begin within the piece's `PIECE_BYTES`."""
    for file, number in pieces:
        with file.open("rb") as source:
            if number > 0:
                source.seek(number * PIECE_BYTES - 1)
                source.readline()  # the end of a line that began in the piece before
            text = source.read(max(0, (number + 1) * PIECE_BYTES - source.tell()))
            if text and not text.endswith(b"\n"):
                text += source.readline()  # the end of this piece's last line
        if text:
            yield {"text": text.decode("utf-8", errors="replace")}


def read_documents(files: list[Path]) -> Iterator[dict[str, str]]:
    """Documents of `files` as {"text": ...}: a parquet row, a line of JSON, or a whole text file.

    Raises:
        ValueError: a row without a string in "text", or a line that is not JSON.
    """
    for file in files:
        if file.suffix == ".parquet":
            texts = _read_parquet(file)
        elif file.suffix == ".txt":
            texts = iter([file.read_text(encoding="utf-8", errors="replace")])
        else:
            texts = _read_json_lines(file)
        for text in texts:
            yield {"text": text}


def _read_parquet(file: Path) -> Iterator[str]:
    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        if "text" not in schema.names:
            raise ValueError(f'{file} has no column "text", only {schema.names}')
        kind = schema.field("text").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(f'{file}: column "text" holds {kind}, not strings')
        # One row at a time: it can be a whole book.
        for batch in table.iter_batches(batch_size=1, columns=["text"]):
            for text in batch.column(0):
                if not text.is_valid:
                    raise ValueError(f'{file}: column "text" has nulls')
                yield text.as_py()


def _read_json_lines(file: Path) -> Iterator[str]:
    open_text = gzip.open if file.suffix == ".gz" else open
    with open_text(file, "rt", encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise ValueError(f'{file}, line {number} has no string under "text"')
            yield row["text"]


def _text_column(sample: dict[str, Any]) -> str:
    return sample["text"]


def _open_source(
    section_name: str, dataset: str, dataset_path: str | None
) -> tuple[datasets.IterableDataset, Callable[[dict[str, Any]], str]]:
    """The documents of `dataset` in order, and how to get a document's text."""
    check_text(section_name, dataset, dataset_path)
    if dataset in upstream.DATASETS:
        entry = upstream.DATASETS[dataset]
        place = dataset_path or entry.path
        logger.info(f"Preparing {dataset} dataset from {place}")
        documents = entry.loader(place)
        if isinstance(documents, datasets.Dataset):
            documents = documents.to_iterable_dataset()
        return documents, entry.sample_processor

    # One shard a file or piece: ranks and workers share them out where the numbers allow it.
    if dataset == "python":
        pieces = python_pieces()
        if not pieces:
            raise ValueError(
                f'{section_name}.dataset = "python": no source files below '
                f'{sysconfig.get_path("stdlib")}; choose "local" and a path'
            )
        return _from_generator(read_pieces, pieces=pieces), _text_column
    files = local_files(Path(str(dataset_path)))
    _check_first_documents(f"{section_name}.dataset_path", str(dataset_path), files)
    logger.info(f"Preparing {len(files)} files from {dataset_path}")
    return _from_generator(read_documents, files=files), _text_column


def _from_generator(
    generator: Callable[..., Iterator[dict[str, str]]], **shards: list[Any]
) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(generator, gen_kwargs=shards)


def _check_first_documents(key: str, dataset_path: str, files: list[Path]) -> None:
    """A wrong column is an error at the start: look into the first file of each kind."""
    for kind in LOCAL_KINDS:
        first = next((file for file in files if file.name.endswith(kind)), None)
        if first is not None:
            try:
                next(read_documents([first]), None)
            except ValueError as error:
                raise ValueError(f"{key} = {dataset_path!r}: {error}") from error


def _is_upstreams(dataset: str, tokenizer: BaseTokenizer) -> bool:
    return dataset in upstream.DATASETS and not isinstance(tokenizer, ByteTokenizer)


def _build(
    section_name: str,
    section: Training | Validation,
    tokenizer: BaseTokenizer,
    dp_world_size: int,
    dp_rank: int,
    infinite: bool,
) -> ParallelAwareDataloader:
    documents, text_of = _open_source(section_name, section.dataset.lower(), section.dataset_path)
    packed = PackedTextDataset(
        documents,
        text_of,
        tokenizer,
        seq_len=section.seq_len,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        infinite=infinite,
    )
    return ParallelAwareDataloader(
        packed,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        batch_size=section.local_batch_size,
        **asdict(section.dataloader),
    )


def build_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool = True,
) -> ParallelAwareDataloader:
    """The loader of `training.dataset`: upstream's signature.

    Raises:
        ValueError: an unknown dataset, or a path without usable files.
    """
    section = job_config.training
    if _is_upstreams(section.dataset.lower(), tokenizer):
        return upstream.build_text_dataloader(
            dp_world_size, dp_rank, tokenizer, job_config, infinite
        )
    return _build("training", section, tokenizer, dp_world_size, dp_rank, infinite)


def build_validation_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool = False,
) -> ParallelAwareDataloader:
    """The loader of `validation.dataset`; each validation sees the same sequences.

    Raises:
        ValueError: an unknown dataset, or a path without usable files.
    """
    section = job_config.validation
    if _is_upstreams(section.dataset.lower(), tokenizer):
        return upstream.build_text_validation_dataloader(
            dp_world_size, dp_rank, tokenizer, job_config, infinite
        )
    return _build("validation", section, tokenizer, dp_world_size, dp_rank, infinite)
