"""Checks of ``training.document_mask`` and the keys that belong to it."""

from typing import TYPE_CHECKING

from lighthouse.config import INTERLEAVED_SCORERS, LighthouseConfig
from lighthouse.titan.check.lighthouse import check_model
from lighthouse.titan.config.section import layer_configs, num_chunks
from lighthouse.titan.llama3.model_args import model_args_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def check_documents(job_config: "JobConfig") -> None:
    """Refuse documents told apart where that is not to be had.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    training = job_config.training
    if not training.document_mask:
        for key, unset in (
            ("document_positions", "continue"),
            ("document_end_label", "keep"),
            ("max_documents", None),
        ):
            value = getattr(training, key)
            if value != unset:
                raise ValueError(
                    f"training.{key} = {value!r}: says nothing without training.document_mask = "
                    "true; set that, or leave it out"
                )
        return
    check_model(job_config, "training.document_mask")
    most = training.max_documents
    if most is not None and not 1 <= most <= training.seq_len:
        raise ValueError(
            f"training.max_documents = {most}: must be at least 1 and at most training.seq_len = "
            f"{training.seq_len}; leave it out for one for each 256 tokens"
        )
    if job_config.lighthouse.validate_leak:
        raise ValueError(
            f"lighthouse.validate_leak = {job_config.lighthouse.validate_leak}: other futures are "
            "not cut into documents; use 0, or training.document_mask = false"
        )
    _check_scorers(job_config)


def _check_scorers(job_config: "JobConfig") -> None:
    section, training = job_config.lighthouse, job_config.training
    if not section.enable:
        return
    chunks, layers = num_chunks(section, job_config.parallelism), model_args_of(job_config).n_layers
    for config in layer_configs(section, layers, training.seq_len, chunks):
        if isinstance(config, LighthouseConfig) and config.scorer in INTERLEAVED_SCORERS:
            raise ValueError(
                f"lighthouse.scorer = {config.scorer!r}: attends across the borders of documents; "
                "use 'norm', or training.document_mask = false"
            )
