"""The loaders of training and validation.

An upstream dataset read with a Hugging Face tokenizer keeps upstream's loader, so that its batches
stay the ones that upstream gives.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader
from torchtitan.components.dataloader import BaseDataLoader, ParallelAwareDataloader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.config.job_config import Training, Validation
from torchtitan.hf_datasets import text_datasets as upstream

from lighthouse.refusal import refusals
from lighthouse.tasks import SHORTEST, mixed_in
from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.titan.data.dealt import Dealt, to_one_worker
from lighthouse.titan.data.document_packing import Packing, SeparateDocuments, batch_of
from lighthouse.titan.data.mixture import Mixture, WeightedStream
from lighthouse.titan.data.moved import Moved
from lighthouse.titan.data.packing import PackedTextDataset, places_in
from lighthouse.titan.data.shuffled import ShuffledDocuments
from lighthouse.titan.data.source_tables import sources_of
from lighthouse.titan.data.sources import (
    TextReader,
    checked_files,
    open_source,
    reaching,
    say_shared,
)
from lighthouse.titan.data.staged import StagedLoader
from lighthouse.titan.data.tally import OF_DOCUMENTS, OF_ROWS, Tally
from lighthouse.titan.data.token_streams import (
    DocumentStream,
    Encoded,
    OrderedDocuments,
    TokenStream,
)
from lighthouse.titan.data.tokenizer import ByteTokenizer


def _is_upstreams(dataset: str, tokenizer: BaseTokenizer) -> bool:
    return dataset in upstream.DATASETS and not isinstance(tokenizer, ByteTokenizer)


class _FromTheStart(upstream.HuggingFaceTextDataset):
    """Upstream's dataset, which would go on where the validation before has ended."""

    def __iter__(self) -> Iterator[Any]:
        self._sample_idx = 0
        self._token_buffer: list[int] = []
        return super().__iter__()


class _WithOrWithoutWorker(StatefulDataLoader):
    """Goes on from a place of one worker without any, and the other way round."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        of_workers = "_snapshot" in state_dict
        places = list(places_in(state_dict))
        if of_workers == (self.num_workers > 0) or len(places) != 1:
            super().load_state_dict(state_dict)
        else:
            super().load_state_dict({})
            self.dataset.load_state_dict(places[0])  # from where it is iterated, or a worker's copy


class _PackedLoader(ParallelAwareDataloader, _WithOrWithoutWorker):
    """The loader of a `PackedTextDataset`."""

    dataset: PackedTextDataset

    def go_on_from(self, sources: Sequence[Sequence[Moved]]) -> None:
        """The state to be loaded next is of other text; as `PackedTextDataset.go_on_from`."""
        self.dataset.go_on_from(sources)


def _collate(apart: bool) -> dict[str, Any]:
    return {"collate_fn": batch_of} if apart else {}


# A function of the module, since workers that are not forked get it pickled.
def _with_tasks(text: str, rate: float, longest: int) -> list[str]:
    return [text, *mixed_in(text, rate, longest)]


class _Opener:
    """Opens the text of a section for one rank.

    Args:
        texts_of: the texts that a document's text gives.
        apart: whether documents are told apart.
    """

    def __init__(
        self,
        section_name: str,
        section: Training | Validation,
        tokenizer: BaseTokenizer,
        dp_world_size: int,
        dp_rank: int,
        texts_of: Callable[[str], Sequence[str]],
        apart: bool,
    ) -> None:
        self._name, self._section = section_name, section
        self._tokenizer, self._texts_of = tokenizer, texts_of
        self._rank = dp_rank, dp_world_size
        self.collate = _collate(apart)
        self.share = f"data-parallel rank {dp_rank} of {dp_world_size}"
        names = OF_ROWS + OF_DOCUMENTS if apart else OF_ROWS
        self.tally = Tally(section.dataloader.num_workers, names)

    def ordered(self, path: str | None, column: str, key: str) -> TokenStream:
        """Documents in the order in which they are stored."""
        dataset, reader = self._section.dataset.lower(), self._reader(column, key)
        documents, text_of = open_source(self._name, dataset, path, reader, key)
        return self._encoded(OrderedDocuments(documents, text_of, *self._rank))

    def shuffled(self, path: str, column: str, key: str, seed: int) -> TokenStream:
        """Local documents in another order in each epoch and for each seed."""
        reader = self._reader(column, key)
        files = checked_files(key, path, reader)
        return self._encoded(ShuffledDocuments(files, reader, seed, *self._rank))

    def _reader(self, column: str, key: str) -> TextReader:
        skip_bad = self._section.dataset_bad_rows == "skip"
        return TextReader(key, column, skip_bad, self.tally)

    def _encoded(self, documents: DocumentStream) -> TokenStream:
        return Encoded(documents, self._texts_of, self._tokenizer)

    def packed(
        self, tokens: TokenStream, seq_len: int, infinite: bool, packing: Packing | None
    ) -> PackedTextDataset:
        """Sequences of the tokens, by a packing where documents are told apart."""
        if packing is None:
            return PackedTextDataset(tokens, seq_len, self.share, infinite)
        return SeparateDocuments(tokens, packing, self.share, infinite, self.tally)

    def loader(
        self, sequences: PackedTextDataset, section: Training | Validation
    ) -> ParallelAwareDataloader:
        """Sequences in the batch of a stage's section."""
        dp_rank, dp_world_size = self._rank
        return _PackedLoader(
            sequences,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            batch_size=section.local_batch_size,
            **self.collate,
            **asdict(section.dataloader),
        )


def _training_tokens(job_config: JobConfig, opener: _Opener) -> TokenStream:
    """What ``training`` says to read."""
    training = job_config.training

    def opened(path: str | None, column: str, key: str) -> TokenStream:
        if training.dataset_order == "shuffled":
            return opener.shuffled(str(path), column, key, training.dataset_seed)
        return opener.ordered(path, column, key)

    sources = sources_of(job_config)
    if not sources:
        return opened(training.dataset_path, training.dataset_text, "training.dataset_path")
    say_shared(tuple(source.path for source in sources))
    streams = [
        WeightedStream(
            source.path,
            opened(source.path, source.text, f"training.sources.{number}.path"),
            source.weight,
        )
        for number, source in enumerate(sources, start=1)
    ]
    return Mixture(streams, opener.share)


@refusals()
def build_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool = True,
) -> BaseDataLoader | StagedLoader:
    """The loader of `training.dataset`: upstream's signature.

    That of local text has a `tally`, over all stages.

    Raises:
        Refusal: an unknown dataset, or a path without usable files.
    """
    stages, training = Stages.of(job_config), job_config.training
    # Of the run, not of the stage: a place in a task must mean the same in the next stage.
    longest_task = max(SHORTEST, stages.longest)

    texts_of = partial(_with_tasks, rate=training.task_rate, longest=longest_task)
    apart, ranks = training.document_mask, (dp_world_size, dp_rank)
    opener = _Opener("training", training, tokenizer, *ranks, texts_of, apart)

    own = bool(training.task_rate) or apart
    of_upstream = _is_upstreams(training.dataset.lower(), tokenizer) and not own

    def build(stage: Stage) -> ParallelAwareDataloader:
        job = stage.job(job_config)
        if of_upstream:
            with reaching("training", training.dataset):
                return upstream.build_text_dataloader(*ranks, tokenizer, job, infinite)
        tokens, seq_len = _training_tokens(job, opener), job.training.seq_len
        packing = Packing.of_training(job_config, stage) if apart else None
        return opener.loader(opener.packed(tokens, seq_len, infinite, packing), job.training)

    loader = StagedLoader(build, stages.at(1)) if stages.listed else build(stages.at(1))
    loader.moves = not of_upstream
    if training.dataset.lower() == "local" or apart:
        loader.tally = opener.tally
    return loader


@refusals()
def build_validation_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool = False,
    key: str = "validation.dataset_path",
) -> ParallelAwareDataloader:
    """The loader of `validation.dataset`: each validation sees the same sequences, on any ranks.

    Args:
        key: that named its path, for messages.

    Raises:
        Refusal: an unknown dataset, or a path without usable files.
    """
    section, apart = job_config.validation, job_config.training.document_mask
    dataset: Any
    if _is_upstreams(section.dataset.lower(), tokenizer) and not apart:
        whole = (1, 0, tokenizer, job_config, infinite)
        with reaching("validation", section.dataset):
            dataset = upstream.build_text_validation_dataloader(*whole).dataset
        dataset.__class__ = _FromTheStart  # it is made with its loader
    else:
        texts_of = partial(_with_tasks, rate=0.0, longest=SHORTEST)
        opener = _Opener("validation", section, tokenizer, 1, 0, texts_of, apart)
        path, column = section.dataset_path, section.dataset_text
        tokens = opener.ordered(path, column, key)
        seq_len, stages = section.seq_len, Stages.of(job_config)
        packing = Packing.of(job_config, stages, seq_len) if apart else None
        dataset = opener.packed(tokens, seq_len, infinite, packing)
    return ParallelAwareDataloader(
        Dealt(dataset, dp_rank, dp_world_size, section.local_batch_size),
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        batch_size=section.local_batch_size,
        **_collate(apart),
        **to_one_worker(asdict(section.dataloader)),
    )
