"""A dry run: is this job valid on N GPUs, and what would it take?

    python -m lighthouse.titan.plan --gpus 8 --job.config_file X.toml [any trainer flag]

Nothing is started and no GPU is needed. ``--device`` names the kind of GPU, ``--json`` prints
everything for programs. The estimate is that of ``lighthouse/cost.py``; validation, checkpoints
and waiting for data are not in it.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lighthouse.config import LighthouseConfig
from lighthouse.cost import (
    GIB,
    Cost,
    Layout,
    Model,
    Work,
    cost,
    devices,
    flops_per_token,
    load_rates,
)
from lighthouse.titan.config import layer_configs, num_chunks
from lighthouse.titan.layout import accumulation_steps, layout_of
from lighthouse.titan.validate import check_ring


@dataclass(frozen=True)
class Stage:
    """A stretch of steps with the same attention.

    Attributes:
        name: ``"lighthouse"`` or ``"dense"``; ``"all dense"`` for the run without Lighthouse.
        steps: optimizer steps.
        flops_per_token: by torchtitan's conventions.
        step_seconds: of one optimizer step.
        tokens_per_second: of one GPU.
        memory_gib: largest at a time, of one GPU.
        hours: of all steps.
        seconds_by_part, gib_by_part: what the two consist of.
    """

    name: str
    steps: int
    flops_per_token: int
    step_seconds: float
    tokens_per_second: float
    memory_gib: float
    hours: float
    seconds_by_part: dict[str, float]
    gib_by_part: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What a job would take.

    Attributes:
        gathered_len: S of each Lighthouse layer, and how many layers have it.
        stages: in order of training.
        all_dense: the same job with dense attention throughout.
        gpu_hours, speedup: of the whole job; the latter over ``all_dense``.
        memory_limit_gib: of the device.
        remarks: what the estimate does not know, and what does not fit.
    """

    flavor: str
    device: str
    gpus: int
    layout: Layout
    parameters: int
    seq_len: int
    tokens_per_step: int
    accumulation: int
    gathered_len: dict[int, int]
    stages: tuple[Stage, ...]
    all_dense: Stage
    hours: float
    gpu_hours: float
    speedup: float
    memory_limit_gib: float
    remarks: tuple[str, ...]


def plan(job_config: Any, gpus: int, device: str = "h100") -> Plan:
    """Estimate a job that ``ConfigManager`` has parsed, and so checked but for the number of GPUs.

    Raises:
        ValueError: for degrees, a batch or a sequence that do not suit ``gpus``; for an unknown
            device; for what the estimate does not cover. Names the key.
    """
    rates = load_rates(device)
    model, layout, work = job_of(job_config, gpus)
    dense_work = replace(work, attention=(None,) * model.layers)
    tokens = layout.batch * work.local_batch * work.accumulation * work.seq_len

    def stage(name: str, steps: int, work: Work) -> Stage:
        estimate = cost(model, layout, work, rates)
        return _stage(name, steps, flops_per_token(model, work), estimate, tokens / layout.gpus)

    steps = job_config.training.steps
    before = _steps_before_dense(job_config.lighthouse, steps)
    stages = [stage("lighthouse", before, work)] if before else []
    if before < steps:
        stages.append(stage("dense", steps - before, dense_work))
    all_dense = stage("all dense", steps, dense_work)
    hours = sum(s.hours for s in stages)
    limit = rates.memory / GIB
    rows = Counter(c.gathered_len(work.seq_len) for c in work.attention if c is not None)
    return Plan(
        flavor=job_config.model.flavor,
        device=device,
        gpus=gpus,
        layout=layout,
        parameters=model.parameters,
        seq_len=work.seq_len,
        tokens_per_step=tokens,
        accumulation=work.accumulation,
        gathered_len=dict(rows),
        stages=tuple(stages),
        all_dense=all_dense,
        hours=hours,
        gpu_hours=hours * gpus,
        speedup=all_dense.hours / hours,
        memory_limit_gib=limit,
        remarks=_remarks(job_config, stages, limit),
    )


def job_of(job_config: Any, gpus: int) -> tuple[Model, Layout, Work]:
    """What :func:`lighthouse.cost.cost` takes; the work is that of the first stage.

    Raises:
        ValueError: as :func:`plan`.
    """
    layout = layout_of(job_config, gpus)
    _refuse_what_is_not_modelled(job_config)
    model = model_of(job_config.model.flavor)
    training, section = job_config.training, job_config.lighthouse
    configs: list[LighthouseConfig | None] = [None] * model.layers
    if section.enable:
        chunks = num_chunks(section, job_config.parallelism)
        configs = layer_configs(section, model.layers, training.seq_len, chunks)
    checkpoint = job_config.activation_checkpoint
    selective = checkpoint.mode == "selective"
    element, residual = _activation_bytes(job_config, layout)
    return (
        model,
        layout,
        Work(
            seq_len=training.seq_len,
            attention=tuple(configs),
            local_batch=training.local_batch_size,
            accumulation=accumulation_steps(job_config, layout),
            checkpointing=checkpoint.selective_ac_option if selective else checkpoint.mode,
            loss_chunk_tokens=training.loss_chunk_tokens,
            element_bytes=element,
            residual_bytes=residual,
            reshard=job_config.parallelism.fsdp_reshard_after_forward != "never",
        ),
    )


def _activation_bytes(job_config: Any, layout: Layout) -> tuple[int, int]:
    """Of activations, and of the residual stream, as torchtitan's mixed precision has them."""
    if job_config.training.mixed_precision_param == "float32":
        return 4, 4
    if layout.gpus > 1 or job_config.parallelism.fsdp_on_one_rank:
        return 2, 2
    return 2, 4  # autocast


def model_of(flavor: str) -> Model:
    """The sizes of a llama3 flavor."""
    from torchtitan.protocols.train_spec import get_train_spec

    spec = get_train_spec("llama3")
    args = spec.model_args[flavor]
    with torch.device("meta"):  # one layer tells the width of the feed-forward
        one = spec.model_cls(replace(args, n_layers=1, max_seq_len=2))
    return Model(
        dim=args.dim,
        layers=args.n_layers,
        heads=args.n_heads,
        kv_heads=args.n_kv_heads or args.n_heads,
        ffn_dim=one.layers["0"].feed_forward.w1.out_features,
        vocab_size=args.vocab_size,
    )


def _refuse_what_is_not_modelled(job_config: Any) -> None:
    def refuse(key: str, value: Any, way_out: str) -> ValueError:
        return ValueError(f"{key} = {value!r}: the estimate does not cover it; {way_out}")

    name, parallel = job_config.model.name, job_config.parallelism
    if name != "llama3":
        raise refuse("model.name", name, "use 'llama3'")
    if parallel.pipeline_parallel_degree > 1:
        degree = parallel.pipeline_parallel_degree
        raise refuse("parallelism.pipeline_parallel_degree", degree, "use 1")
    mode = job_config.activation_checkpoint.mode
    if mode == "memory_budget":
        raise refuse("activation_checkpoint.mode", mode, "use none, selective or full")


def _steps_before_dense(section: Any, steps: int) -> int:
    if not section.enable:
        return 0
    return steps if section.dense_from_step is None else min(steps, section.dense_from_step - 1)


def _stage(name: str, steps: int, flops: int, estimate: Cost, tokens_of_a_gpu: float) -> Stage:
    return Stage(
        name=name,
        steps=steps,
        flops_per_token=flops,
        step_seconds=estimate.step_seconds,
        tokens_per_second=tokens_of_a_gpu / estimate.step_seconds,
        memory_gib=estimate.peak_bytes / GIB,
        hours=steps * estimate.step_seconds / 3600,
        seconds_by_part=estimate.seconds,
        gib_by_part={part: size / GIB for part, size in estimate.memory.items()},
    )


def _remarks(job_config: Any, stages: list[Stage], limit: float) -> tuple[str, ...]:
    remarks = [
        f"stage {stage.name}: {stage.memory_gib:.1f} GiB do not fit the device's {limit:.1f} GiB"
        for stage in stages
        if stage.memory_gib > limit
    ]
    if not job_config.compile.enable:
        remarks.append("compile.enable = false: the rates are those of compiled blocks")
    if job_config.training.mixed_precision_param == "float32":
        remarks.append(
            "training.mixed_precision_param = 'float32': the rates are those of bfloat16"
        )
    if job_config.training.enable_cpu_offload:
        remarks.append("training.enable_cpu_offload = true: estimated as if it were false")
    return tuple(remarks)


def table(result: Plan) -> str:
    """The plan for people."""
    layout = result.layout
    degrees = {
        "replicas": layout.dp_replicate,
        "shards": layout.dp_shard,
        "context parallel": layout.cp,
        "tensor parallel": layout.tp,
    }
    gathered = ", ".join(f"{s:,} in {n} layers" for s, n in result.gathered_len.items()) or "-"
    lines = [
        f"model             {result.flavor}, {result.parameters:,} parameters",
        f"GPUs              {result.gpus} x {result.device}: "
        + ", ".join(f"{name} {degree}" for name, degree in degrees.items()),
        f"step              {result.tokens_per_step:,} tokens in sequences of {result.seq_len:,}, "
        f"{result.accumulation} micro-batches",
        f"S                 {gathered}",
        "",
    ]
    columns = [*result.stages, result.all_dense]

    def row(title: str, cells: list[str]) -> None:
        lines.append(f"{title:<28}" + "".join(f"{cell:>14}" for cell in cells))

    row("", [stage.name for stage in columns])
    row("steps", [f"{stage.steps:,}" for stage in columns])
    row("GFLOPs per token", [f"{stage.flops_per_token / 1e9:.2f}" for stage in columns])
    row("tokens/s per GPU", [f"{stage.tokens_per_second:,.0f}" for stage in columns])
    row("seconds per step", [f"{stage.step_seconds:.3f}" for stage in columns])
    for part in result.all_dense.seconds_by_part:
        seconds = [stage.seconds_by_part[part] for stage in columns]
        if any(seconds):
            row(f"  {part}", [f"{s:.3f}" for s in seconds])
    row("GiB per GPU", [f"{stage.memory_gib:.1f}" for stage in columns])
    for part in result.all_dense.gib_by_part:
        row(f"  {part}", [f"{stage.gib_by_part[part]:.1f}" for stage in columns])
    row("hours", [f"{stage.hours:.1f}" for stage in columns])
    lines += [
        "",
        f"the run           {result.hours:.1f} hours, {result.gpu_hours:,.0f} GPU-hours, "
        f"{result.speedup:.2f} x as fast as all dense",
    ]
    lines += [f"note              {remark}" for remark in result.remarks]
    return "\n".join(lines)


def parse(args: list[str]) -> Any:
    """A job's configuration for another machine: all checks but those of this one."""
    from torchtitan.config import ConfigManager

    return ConfigManager(this_machine=False).parse_args(args)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.titan.plan",
        allow_abbrev=False,
        description="Validate a job for N GPUs without having them, and estimate what it takes.",
        epilog="All other flags are the trainer's, --job.config_file above all.",
    )
    parser.add_argument("--gpus", type=int, required=True, help="GPUs in all")
    parser.add_argument("--device", choices=devices(), default="h100")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options, trainer = parser.parse_known_args(args)
    try:
        job_config = parse(trainer)
        result = plan(job_config, options.gpus, options.device)
        check_ring(job_config, "cuda")
    except ValueError as error:
        sys.exit(f"refused: {error}")
    print(json.dumps(asdict(result), indent=1) if options.json else table(result))


if __name__ == "__main__":
    main()
