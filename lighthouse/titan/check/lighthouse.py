"""Checks of the ``[lighthouse]`` section against model, lengths, layout and the other sections."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING

import torch

from lighthouse.config import INTERLEAVED_SCORERS, LighthouseConfig, nearest_multiple
from lighthouse.ops import implementation
from lighthouse.titan.config.section import layer_configs, num_chunks
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.llama3.model_args import model_args_of

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

    from lighthouse.titan.check.job import Machine


def check_lighthouse(job_config: "JobConfig", machine: "Machine") -> None:
    """Refuse Lighthouse layers that could not run, and reports that could not be made.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    _check_reports(job_config)
    if job_config.lighthouse.enable:
        check_model(job_config, "lighthouse.enable")
        _check_layers(job_config, machine)


def check_model(job_config: "JobConfig", what: str) -> None:
    """Refuse a model whose layers can't change their attention.

    Args:
        what: asks for it, for the message.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    if job_config.model.name != "llama3":
        raise ValueError(f"model.name = {job_config.model.name!r}: {what} needs 'llama3'")
    model_args = model_args_of(job_config)
    if model_args.attn_type != "sdpa" or model_args.attn_mask_type != "causal":
        raise ValueError(
            f"model.flavor = {job_config.model.flavor!r}: has {model_args.attn_type} attention "
            f"under a {model_args.attn_mask_type} mask; {what} needs sdpa attention "
            "under the plain causal mask, for instance a flavor without _flex or _varlen"
        )
    degree = job_config.parallelism.pipeline_parallel_degree
    if degree > 1:
        raise ValueError(
            f"parallelism.pipeline_parallel_degree = {degree}: {what} is not available "
            "under pipeline parallelism, where torchtitan 0.2.2 leaves gradients undivided by the "
            "number of tokens and clipping cuts them all; use 1, with data or tensor parallelism"
        )


def _check_layers(job_config: "JobConfig", machine: "Machine") -> None:
    section, model_args = job_config.lighthouse, model_args_of(job_config)
    chunks = num_chunks(section, job_config.parallelism)
    configs = layer_configs(section, model_args.n_layers, job_config.training.seq_len, chunks)
    lighthouse = [config for config in configs if isinstance(config, LighthouseConfig)]
    _check_implementation(section.impl, machine, any(c.scorer == "gla" for c in lighthouse))
    if job_config.validation.enable:
        length = job_config.validation.seq_len
        layer_configs(section, model_args.n_layers, length, chunks, "validation")
    _check_switch(job_config)


def _check_switch(job_config: "JobConfig") -> None:
    """A switch to dense that comes, in this run or in one that goes on with its schedule."""
    switch, total = job_config.lighthouse.dense_from_step, job_config.lr_scheduler.total_steps
    if switch is None:
        return
    end, key = job_config.training.steps, "training.steps"
    if total is not None and total > end:
        end, key = total, "lr_scheduler.total_steps"
    if not 1 <= switch <= end:
        raise ValueError(
            f"lighthouse.dense_from_step = {switch}: must be one of the steps 1 to {end}, where "
            f"{key} ends; leave it out to stay in the Lighthouse stage"
        )


def _check_implementation(impl: str, machine: "Machine", uses_gla: bool) -> None:
    if impl != "auto":
        try:
            implementation(impl, torch.device(machine.device), torch.bfloat16)
        except ValueError as error:
            raise ValueError(f"lighthouse.{error}") from None
    needs_fla = uses_gla and machine.device != "cpu" and machine.here
    if needs_fla and importlib.util.find_spec("fla") is None:
        raise ValueError(
            "lighthouse.scorer = 'gla': needs fla-core on a GPU; "
            "pip install 'lighthouse-attention[gla]', or use 'norm' or 'dilated'"
        )


def _check_reports(job_config: "JobConfig") -> None:
    section, log_freq = job_config.lighthouse, job_config.metrics.log_freq
    if section.validate_leak < 0:
        raise ValueError(
            f"lighthouse.validate_leak = {section.validate_leak}: must be a number of pairs of "
            "batches, or 0 for none"
        )
    for key in ("validate_dense", "validate_leak"):
        value = getattr(section, key)
        if value and not job_config.validation.enable:
            raise ValueError(
                f"lighthouse.{key} = {str(value).lower()}: validation.enable is false, so nothing "
                "would be validated; set validation.enable = true"
            )
    validation = job_config.validation
    if section.validate_leak and validation.steps * validation.local_batch_size == 1:
        raise ValueError(
            "lighthouse.validate_leak: validation.steps * validation.local_batch_size = 1 sequence "
            "has no other one to take another future from; use 2 or more"
        )
    freq = section.selection_log_freq
    if freq < 0 or (freq and freq % log_freq):
        raise ValueError(
            f"lighthouse.selection_log_freq = {freq}: must be 0 for none, or a multiple of "
            f"metrics.log_freq = {log_freq}, at whose steps metrics are written; nearest is "
            f"{nearest_multiple(freq, log_freq) if freq > 0 else 0}"
        )


def check_window(job_config: "JobConfig") -> None:
    """Refuse a window in which nothing attends.

    Not a stage at a time: the run's window may be for one stage of several.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    section = job_config.lighthouse
    used = bool(section.window_layers)
    for number, table in enumerate(job_config.stages, start=1):
        in_windows = table["attention"] == "window"
        in_windows |= bool(table.get("window_layers", section.window_layers))
        if "window" in table and not in_windows:
            raise ValueError(
                f"stages.{number}.window = {table['window']}: no layer attends in a window there; "
                f"set stages.{number}.window_layers, or leave it out"
            )
        used |= in_windows
    if section.window is not None and not used:
        raise ValueError(
            f"lighthouse.window = {section.window}: no layer attends in a window; set "
            "lighthouse.window_layers, make it the window of a stage with attention = 'window', or "
            "leave it out"
        )


def check_followed(job_config: "JobConfig") -> None:
    """Refuse keys of a Lighthouse stage that none of its layers follows.

    Those of the run may be for another stage, or for a run that is compared with this one.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    for stage in Stages.of(job_config):
        if not stage.table or stage.attention != "lighthouse":
            continue
        layers = stage.layers(job_config, model_args_of(job_config).n_layers)
        selecting = [config for config in layers if isinstance(config, LighthouseConfig)]
        parameters = {f.name for f in dataclasses.fields(LighthouseConfig)}
        for key in (key for key in stage.table if key in parameters):
            said = f"stages.{stage.number}.{key} = {stage.table[key]!r}"
            if not selecting:
                raise ValueError(
                    f"{said}: all layers are dense or in a window there; leave it out, or name "
                    "fewer in dense_layers and window_layers"
                )
            if key == "dilation" and not any(c.scorer in INTERLEAVED_SCORERS for c in selecting):
                raise ValueError(
                    f"{said}: is for the scorers {' and '.join(map(repr, INTERLEAVED_SCORERS))}, "
                    f"and no layer has one there; set stages.{stage.number}.scorer, or leave it out"
                )


def check_end(job_config: "JobConfig") -> None:
    """A run that does not end dense is meant to be resumed under dense attention.

    Raises:
        ValueError: its last checkpoint could not be, or its schedule would have ended.
    """
    checkpoint, steps = job_config.checkpoint, job_config.training.steps
    saves = checkpoint.enable and not checkpoint.load_only and not checkpoint.create_seed_checkpoint
    stages = Stages.of(job_config)
    if stages.end_dense or not saves:
        return
    if checkpoint.last_save_model_only:
        raise ValueError(
            f"checkpoint.last_save_model_only = true: this run ends in a {stages.last.attention} "
            "stage and its last checkpoint could not be resumed under dense attention; set it to "
            "false"
        )
    if job_config.lr_scheduler.total_steps is None and not stages.listed:
        raise ValueError(
            "lr_scheduler.total_steps is not set: this run ends in the Lighthouse stage at step "
            f"{steps}, and the dense stage would resume on a schedule that has already ended; set "
            "it to the number of steps of both stages together"
        )
