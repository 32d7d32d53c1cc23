"""A dry run: what a job would take on N GPUs, stage by stage and in all."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.cost.loader import worker_rate, workers_needed
from lighthouse.cost.memory import GIB
from lighthouse.cost.rates import CPU, load_rates
from lighthouse.cost.sizes import Layout, flops_per_token
from lighthouse.cost.step import cost
from lighthouse.titan.check.job import Machine
from lighthouse.titan.checkpoint.disk import BYTES_PER_PARAMETER
from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.titan.distributed.layout import accumulation_steps, layout_of
from lighthouse.titan.plan.fit import largest_local_batch, largest_part
from lighthouse.titan.plan.stage import PlannedStage, lasting, misfits, planned_stage
from lighthouse.titan.plan.surveyed import surveyed_pairs, unknown_pairs
from lighthouse.titan.plan.work import model_of, remarks, why_not_estimated, work_of
from lighthouse.titan.run.assets import weights_left_out

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


@dataclass(frozen=True)
class Plan:
    """What a job would take; None for what is not estimated.

    Attributes:
        parameters: of the model.
        tokens: of all steps.
        checkpoint_bytes: of a checkpoint to go on from.
        seq_len, tokens_per_step, accumulation: of the longest stage.
        gathered_len: S of each Lighthouse layer, and how many layers have it, over all stages.
        windows: of each window layer, and how many layers have it.
        stages: in order of training.
        all_dense: as many tokens with dense attention, at the longest stage's length throughout.
        hours, gpu_hours, speedup: of the whole job; the last over ``all_dense``.
        memory_limit_gib: of the device.
        loader_rate: tokens/s that a loader worker delivers, as measured on one machine.
        loader_workers: of each rank that reads text, which keep its GPUs busy in every stage.
        largest_parts: of each stage's memory, and the key that makes it smaller, a sentence each.
        misfits: stages that do not fit into the device's memory, a sentence each.
        remarks: weights that are not loaded, why there is no estimate, what it does not know.
    """

    flavor: str
    device: str
    gpus: int
    layout: Layout
    parameters: int | None
    tokens: int
    checkpoint_bytes: int | None
    seq_len: int
    tokens_per_step: int
    accumulation: int
    gathered_len: dict[int, int]
    windows: dict[int, int]
    stages: tuple[PlannedStage, ...]
    all_dense: PlannedStage
    hours: float | None
    gpu_hours: float | None
    speedup: float | None
    memory_limit_gib: float | None
    loader_rate: float
    loader_workers: int | None
    largest_parts: tuple[str, ...]
    misfits: tuple[str, ...]
    remarks: tuple[str, ...]


def machine_of(device: str, processes: int) -> Machine:
    """The machine that a kind of GPU, or ``"cpu"``, stands for."""
    return Machine(CPU if device == CPU else "cuda", processes, here=False)


def plan(
    job_config: "JobConfig", gpus: int, device: str = "h100", survey: str | None = None
) -> Plan:
    """Estimate a job that :func:`parse` has checked for as many GPUs.

    Args:
        gpus: processes, where ``device`` is ``"cpu"``.
        device: a kind of GPU; one without rates is not estimated.
        survey: a file that says what documents leave of attention.

    Raises:
        ValueError: for a survey that says nothing of the job.
    """
    pairs_left = surveyed_pairs(job_config, survey) if survey else unknown_pairs(job_config)
    layout = layout_of(job_config, gpus)
    stages_of_run = Stages.of(job_config).stages
    reason = why_not_estimated(job_config, device)
    is_llama = job_config.model.name == "llama3"
    model = model_of(job_config) if is_llama else None
    rows: dict[int, int] = {}
    windows: dict[int, int] = {}

    rates = None if reason else load_rates(device)

    def planned(stage: Stage, all_dense: bool = False) -> PlannedStage:
        job = stage.job(job_config)
        sequences = layout.batch * job.training.local_batch_size * accumulation_steps(job, layout)
        tokens = sequences * stage.seq_len
        flops, estimate, largest = None, None, None
        if model is not None:
            layers = stage.layers(job_config, model.layers)
            if not all_dense:
                sparse = [config for config in layers if isinstance(config, LighthouseConfig)]
                rows.update(Counter(config.gathered_len(stage.seq_len) for config in sparse))
                windows.update(Counter(c.window for c in layers if isinstance(c, WindowConfig)))
            attention = (None,) * model.layers if all_dense else tuple(layers)
            work = work_of(job, layout, attention, pairs_left(stage))
            flops = flops_per_token(model, work)
            if rates is not None:
                estimate = cost(model, layout, work, rates)
                largest = largest_local_batch(model, layout, work, rates)
        return planned_stage(stage, tokens, flops, estimate, largest, layout.gpus, rates)

    stages = [planned(stage) for stage in stages_of_run]
    hours = None if reason else sum(stage.hours or 0.0 for stage in stages)
    limit = None if rates is None else rates.memory / GIB
    parts = [
        largest_part(stage.gib_by_part, of_run.job(job_config), layout)
        for stage, of_run in zip(stages, stages_of_run, strict=True)
        if stage.gib_by_part
    ]
    number, longest = max(enumerate(stages), key=lambda item: item[1].seq_len)
    all_tokens = sum(stage.steps * stage.tokens_per_step for stage in stages)
    all_dense = lasting(planned(stages_of_run[number], all_dense=True), all_tokens)
    tokenizer = job_config.model.tokenizer
    fastest = None if reason else max(stage.tokens_per_second or 0.0 for stage in stages)
    return Plan(
        flavor=job_config.model.flavor,
        device=device,
        gpus=gpus,
        layout=layout,
        parameters=None if model is None else model.parameters,
        tokens=all_tokens,
        checkpoint_bytes=None if model is None else model.parameters * BYTES_PER_PARAMETER,
        seq_len=longest.seq_len,
        tokens_per_step=longest.tokens_per_step,
        accumulation=accumulation_steps(stages_of_run[number].job(job_config), layout),
        gathered_len=rows,
        windows=windows,
        stages=tuple(stages),
        all_dense=all_dense,
        hours=hours,
        gpu_hours=None if hours is None else hours * gpus,
        speedup=None if hours is None or all_dense.hours is None else all_dense.hours / hours,
        memory_limit_gib=limit,
        loader_rate=worker_rate(tokenizer),
        loader_workers=(
            None
            if fastest is None
            else workers_needed(fastest * layout.gpus / layout.batch, tokenizer)
        ),
        largest_parts=tuple(parts),
        misfits=() if limit is None else misfits(stages, parts, limit),
        remarks=(
            *weights_left_out(job_config),
            *([reason] if reason else remarks(job_config, surveyed=survey is not None)),
        ),
    )


def parse(args: list[str], machine: Machine) -> "JobConfig":
    """A job's configuration, checked for a machine.

    Raises:
        ValueError: the trainer would refuse it there.
    """
    from torchtitan.config import ConfigManager

    return ConfigManager(machine=machine).parse_args(args)
