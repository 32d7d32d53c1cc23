"""Which settings a step depends on: what of a configuration is recorded beside a checkpoint.

Everything is, but for what is listed here with a reason. So a key that the trainer gains is
compared at a resume until somebody says here why it need not be.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lighthouse.titan.config.section import num_chunks
from lighthouse.titan.config.stage_tables import OF_LIGHTHOUSE, OF_TRAINING
from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.toml_types import under_dotted_keys

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

_NO_INFLUENCE = {
    "job.": "where a run lives and how it is called",
    "profiling.": "looks on",
    "metrics.": "looks on",
    "memory_estimation.": "looks on",
    "comm.": "how long ranks wait for each other",
    "checkpoint.": "what is saved and loaded",
    "validation.": "reads weights and changes none",
    "compile.": "the same arithmetic, rounded otherwise",
    "activation_checkpoint.": "computes the same once more",
    "parallelism.": "layouts agree, to rounding; ranks that read text are RunRecord's own",
    "optimizer.implementation": "the same arithmetic, rounded otherwise",
    "training.dataloader.": "when text is read; its workers are recorded with the data",
    "training.loss_chunk_tokens": "the same loss, rounded otherwise",
    "training.ffn_chunk_tokens": "the same feed-forward, rounded otherwise",
    "training.rehearse_stages": "thrown away",
    "training.gc_": "when memory is freed",
    "training.enable_cpu_offload": "where weights lie",
    "fault_tolerance.process_group": "how replicas talk to each other",
    "fault_tolerance.replica_id": "which of the replicas this is",
    "lighthouse.impl": "implementations agree",
    "lighthouse.validate_": "reads weights and changes none",
    "lighthouse.selection_log_freq": "looks on",
    "lighthouse.num_chunks": "recorded as what follows from it and the layout",
    "model.print_after_conversion": "looks on",
    "debug.deterministic": "the same arithmetic, rounded otherwise",
}

STATE_IN_CHECKPOINT = {
    "optimizer": ("name", "lr", "beta1", "beta2", "eps", "weight_decay"),
    "lr_scheduler": ("warmup_steps", "total_steps", "decay_ratio", "decay_type", "min_lr_factor"),
}
"""Settings that records have had from the first, each section under its own name."""

_BY_ITSELF = {
    **{
        f"{s}.{name}": f"RunRecord.{s}"
        for s in STATE_IN_CHECKPOINT
        for name in STATE_IN_CHECKPOINT[s]
    },
    "lr_scheduler.decay_from_stage": "RunRecord.lr_scheduler, as the decay_ratio that follows",
    "stages": "RunRecord.stages",
    "training.dataset": "RunRecord.data and text",
    "training.sources": "RunRecord.data and text",
    "training.task_rate": "RunRecord.data",
    "training.document_mask": "RunRecord.data",
    "model.tokenizer": "RunRecord.tokenizer",
    "model.hf_assets_path": "RunRecord.tokenizer and model",
    "model.args.": "RunRecord.model",
}

_BUT = {
    "job.custom_config_module": "adds sections",
    "parallelism.fsdp_on_one_rank": "other precision of activations",
    "optimizer.early_step_in_backward": "steps without clipping",
    "training.dataset_bad_rows": "is for rows to come",
}

OF_STEPS_TO_COME = {
    "training.steps": "how many there will be",
    "training.nonfinite": "a step that is not finite either ended the run or left nothing behind",
    "training.dataset_bad_rows": "a bad row either ended the run or left nothing behind",
    "experimental.custom_import": "code can't be compared; what it registers, such as flavors, is",
    "lighthouse.enable": "stages say of each step which attention it had",
    "lighthouse.dense_from_step": "stages say of each step which attention it had",
}
"""Settings that may change at any time, since no step that was taken is another one by them."""

NONFINITE = "nonfinite"
ACCEPTABLE = {
    "lr_scheduler": "the learning rate: optimizer.lr, [lr_scheduler], lr_factor and warmup_steps",
    "optimizer": "the rest of [optimizer]",
    "data": "the text, its order and weights, and who reads it",
    "tokenizer": "the tokenizer",
    "attention": "[lighthouse], and the attention of stages",
    "model": "what [model.args] may change without other weights",
    "training": "all else: batch, length, clipping, precision, seed",
    NONFINITE: "values of weights that are not finite, in the weights that had some when loaded",
}
"""What ``checkpoint.accept_changes`` may name, and what each stands for."""

BATCH = "sequences of a step"
"""The key of `of_step` in which both keys of the batch meet."""

_LIGHTHOUSE = {f"lighthouse.{field.name}" for field in OF_LIGHTHOUSE}
_BATCH = ("training.global_batch_size", "training.local_batch_size")


def settings_of(job_config: "JobConfig") -> dict[str, Any]:
    """The settings that steps depend on, under dotted keys and as JSON has them."""
    values = under_dotted_keys(job_config.to_dict())
    left_out = (*_NO_INFLUENCE, *_BY_ITSELF)
    found = {k: v for k, v in values.items() if k in _BUT or not k.startswith(left_out)}
    if job_config.model.name == "llama3":
        del found["model.flavor"]  # what it is stands in RunRecord.model
        if job_config.lighthouse.enable:
            chunks = num_chunks(job_config.lighthouse, job_config.parallelism)
            found["lighthouse.num_chunks"] = chunks
    result: dict[str, Any] = json.loads(json.dumps(found))
    return result


def of_step(
    settings: Mapping[str, Any], stages: Stages, step: int, ranks: int, workers: int
) -> dict[str, Any]:
    """What a step is trained with: the settings, with what its stage sets, as far as it matters.

    Args:
        settings: of `settings_of`; empty in records from before there were any.
        ranks: that read text of their own.
        workers: of each rank's loader.
    """
    stage = stages.at(step)
    found = {k: v for k, v in settings.items() if k not in OF_STEPS_TO_COME}
    for key, value in stage.table.items():
        if key in OF_TRAINING:
            found[f"training.{key}"] = value
        elif f"lighthouse.{key}" in _LIGHTHOUSE:
            found[f"lighthouse.{key}"] = value
    found["training.seq_len"] = stage.seq_len
    if stage.selection is not None:
        found["lighthouse.selection"] = stage.selection
    for key in _LIGHTHOUSE - _that_matter(stage):
        found.pop(key, None)
    if settings:
        _settle_batch(found, ranks, workers)
    return found | {"attention": stage.attention}


def _that_matter(stage: Stage) -> set[str]:
    """Of the keys of ``[lighthouse]``, under a stage's attention."""
    if stage.attention == "lighthouse":
        return _LIGHTHOUSE
    return {"lighthouse.window"} if stage.attention == "window" else set()


def _settle_batch(found: dict[str, Any], ranks: int, workers: int) -> None:
    """The sequences of a step under one key, whichever says it.

    How a rank's share is cut into microbatches changes no sum, but the order in which workers take
    turns.
    """
    whole, local = (found.pop(key) for key in _BATCH)
    found[BATCH] = whole if whole > 0 else local * ranks
    if workers > 1:
        found["training.local_batch_size"] = local


def name_of(key: str) -> str:
    """Under which of ``ACCEPTABLE`` a setting falls."""
    last = key.rpartition(".")[2]
    if key == "optimizer.lr" or key.startswith("lr_scheduler.") or last in _OF_SCHEDULE:
        return "lr_scheduler"
    if key.startswith("optimizer."):
        return "optimizer"
    if key.startswith("lighthouse.") or f"lighthouse.{last}" in _LIGHTHOUSE or last == "attention":
        return "attention"
    return "model" if key.startswith("model.") else "training"


_OF_SCHEDULE = ("lr_factor", "warmup_steps")
