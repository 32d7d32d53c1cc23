"""The loaders of training and validation.

An upstream dataset read with a Hugging Face tokenizer keeps upstream's loader, so that its batches
stay the ones that upstream gives.
"""

from dataclasses import asdict
from typing import Any

from torchtitan.components.dataloader import BaseDataLoader, ParallelAwareDataloader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.config.job_config import Training, Validation
from torchtitan.hf_datasets import text_datasets as upstream

from lighthouse.refusal import refusals
from lighthouse.tasks import SHORTEST, mixed_in
from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.titan.data.packing import PackedTextDataset
from lighthouse.titan.data.sources import TextReader, open_source
from lighthouse.titan.data.staged import StagedLoader
from lighthouse.titan.data.tokenizer import ByteTokenizer


def _is_upstreams(dataset: str, tokenizer: BaseTokenizer) -> bool:
    return dataset in upstream.DATASETS and not isinstance(tokenizer, ByteTokenizer)


def _build(
    section_name: str,
    section: Training | Validation,
    tokenizer: BaseTokenizer,
    dp_world_size: int,
    dp_rank: int,
    infinite: bool,
    reader: TextReader,
    task_rate: float = 0.0,
    longest_task: int = SHORTEST,
) -> ParallelAwareDataloader:
    documents, text_of = open_source(
        section_name, section.dataset.lower(), section.dataset_path, reader
    )

    def texts_of(sample: dict[str, Any]) -> list[str]:
        text = text_of(sample)
        return [text, *mixed_in(text, task_rate, longest_task)]

    packed = PackedTextDataset(
        documents,
        texts_of,
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


def _reader(section_name: str, section: Training | Validation) -> TextReader:
    skip_bad = section.dataset_bad_rows == "skip"
    workers = section.dataloader.num_workers
    return TextReader(section_name, section.dataset_text, skip_bad, workers)


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

    stages = Stages.of(job_config)
    task_rate = job_config.training.task_rate
    # Of the run, not of the stage: a place in a task must mean the same in the next stage.
    longest_task = max(SHORTEST, stages.longest)

    reader = _reader("training", job_config.training)

    def build(stage: Stage) -> ParallelAwareDataloader:
        job = stage.job(job_config)
        if _is_upstreams(job.training.dataset.lower(), tokenizer) and not task_rate:
            return upstream.build_text_dataloader(dp_world_size, dp_rank, tokenizer, job, infinite)
        ranks = dp_world_size, dp_rank
        tasks = task_rate, longest_task
        return _build("training", job.training, tokenizer, *ranks, infinite, reader, *tasks)

    loader = StagedLoader(build, stages.at(1)) if stages.listed else build(stages.at(1))
    if job_config.training.dataset.lower() == "local":
        loader.tally = reader.tally
    return loader


@refusals()
def build_validation_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool = False,
) -> ParallelAwareDataloader:
    """The loader of `validation.dataset`; each validation sees the same sequences.

    Raises:
        Refusal: an unknown dataset, or a path without usable files.
    """
    section = job_config.validation
    if _is_upstreams(section.dataset.lower(), tokenizer):
        return upstream.build_text_validation_dataloader(
            dp_world_size, dp_rank, tokenizer, job_config, infinite
        )
    reader = _reader("validation", section)
    return _build("validation", section, tokenizer, dp_world_size, dp_rank, infinite, reader)
