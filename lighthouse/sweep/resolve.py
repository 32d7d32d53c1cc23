"""What each point of a sweep means to the trainer; the only file here that parses its TOML."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from lighthouse.cost.rates import CPU
from lighthouse.sweep.budget import filled_steps
from lighthouse.sweep.identity import VERSION, identity, values_of
from lighthouse.sweep.run_folder import Run, folder_of, run_names
from lighthouse.sweep.spec import SEED, Point, Spec, refuse_secrets
from lighthouse.titan.check.job import Machine
from lighthouse.titan.config.resolved_toml import to_toml
from lighthouse.titan.config.stage_tables import FLAG
from lighthouse.titan.config.stages import said_otherwise
from lighthouse.titan.plan.job import Plan, machine_of, parse, plan


@dataclass(frozen=True)
class PlannedRun:
    """A valid point: the run, its resolved configuration, what it would take.

    ``changed`` says that a run that has begun goes on with this configuration too.
    """

    run: Run
    config_toml: str
    plan: Plan
    changed: bool = False


def resolve(spec: Spec, commit: str | None) -> list[PlannedRun]:
    """Let the trainer check every point for the resources given, and make the runs of them.

    Raises:
        ValueError: with what is wrong at each invalid point, or points that are the same run.
    """
    planned: list[PlannedRun] = []
    errors: list[str] = []
    base = None if spec.budget is None else _estimate(spec, _parse(spec, {}, _machine(spec)))
    for point, name in zip(spec.points, run_names(spec.points), strict=True):
        try:
            planned.append(_resolve_point(spec, point, name, commit, base))
        except ValueError as error:
            errors.append(f"{name}: {error}")
    by_identity: dict[str, str] = {}
    for run in (p.run for p in planned):
        if run.identity in by_identity:
            errors.append(f"{run.name}: is the same run as {by_identity[run.identity]}")
        by_identity[run.identity] = run.name
    if errors:
        raise ValueError(
            f"{len(errors)} of {len(spec.points)} runs can't be:\n  " + "\n  ".join(errors)
        )
    return planned


def _device(spec: Spec) -> str:
    return spec.resources.gpu if spec.resources.gpus_per_node else CPU


def _machine(spec: Spec) -> Machine:
    return machine_of(_device(spec), spec.resources.processes)


def _estimate(spec: Spec, job: Any) -> Plan:
    return plan(job, spec.resources.processes, _device(spec))


def _fill(spec: Spec, point: Point, base: Plan) -> Point:
    """A point with the steps that the sweep's budget leaves to the filling stage."""
    assert spec.budget is not None
    key = f"stages.{spec.budget.stage}.steps"
    if key in spec.overrides or key in point:
        raise ValueError(f"{key}: budget.stage says that its steps make up for the others")
    estimate = _estimate(spec, _parse(spec, point, _machine(spec)))
    return {**point, key: filled_steps(spec.budget, base, estimate)}


def _resolve_point(
    spec: Spec, point: Point, name: str, commit: str | None, base: Plan | None
) -> PlannedRun:
    processes = spec.resources.processes
    if base is not None:
        point = _fill(spec, point, base)
    job = _parse(spec, point, _machine(spec))
    if not job.checkpoint.enable or job.checkpoint.load_only:
        raise ValueError(
            f"checkpoint.enable = {job.checkpoint.enable}, checkpoint.load_only = "
            f"{job.checkpoint.load_only}: a run that saves nothing can't be continued; set them to "
            "true and false"
        )
    values, defaults = (values_of(to_toml(config)) for config in (job, type(job)()))
    tables = [said_otherwise(table, values) for table in values.get("stages", [])]
    key = identity({**values, "stages": tables}, defaults, processes)
    named = {**spec.overrides, **point}
    folder = folder_of(spec.output, name, key, values, processes, named)
    if spec.changes:
        job = _parse(spec, {**point, **spec.changes}, _machine(spec))
    estimate = _estimate(spec, job)
    estimate = replace(estimate, remarks=(*estimate.remarks, *_said_of_seeds(spec, job)))
    refuse_secrets(job.to_dict())
    job.job.dump_folder = str(folder)
    run = Run(
        folder=folder,
        name=name,
        identity=key,
        overrides=point,
        processes=processes,
        steps=job.training.steps,
        checkpoint_folder=job.checkpoint.folder,
        gpu_hours=estimate.gpu_hours,
        commit=commit,
        version=VERSION,
    )
    changed = bool(spec.changes or job.checkpoint.accept_changes)
    return PlannedRun(run, to_toml(job), estimate, changed)


def _said_of_seeds(spec: Spec, job: Any) -> tuple[str, ...]:
    """That several seeds are one run, where the first weights are given: text has no seed."""
    given = [k for k in ("initial_load_path", "initial_load_in_hf") if getattr(job.checkpoint, k)]
    seeds = list(dict.fromkeys(point[SEED] for point in spec.points if SEED in point))
    if len(seeds) < 2 or not given:
        return ()
    return (
        f"{SEED} = {seeds}: checkpoint.{given[0]} gives each the same weights, and the order "
        "of the text has no seed, so they differ by rounding alone",
    )


def _parse(spec: Spec, point: Point, machine: Machine) -> Any:
    """The trainer's configuration of a point: the base, the common overrides, the point's."""
    values = {**spec.overrides, **point}
    overlay: dict[str, Any] = {"job": {"extends": str(spec.base)}}
    flags: list[str] = []
    for dotted, value in values.items():
        if dotted.startswith(FLAG.removeprefix("--")):
            flags.append(f"--{dotted}={json.dumps(value)}")  # of these values JSON is TOML
            continue
        if whole := next((k for k in values if dotted.startswith(f"{k}.")), None):
            raise ValueError(
                f"{whole} = {values[whole]!r}: {dotted} is set too; say it in one place"
            )
        *sections, key = dotted.split(".")
        table = overlay
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "overlay.toml"
        file.write_text(tomli_w.dumps(overlay), encoding="utf-8")
        try:
            return parse(["--job.config_file", str(file), *flags], machine)
        except ValueError as error:
            # The overlay is gone when this is read.
            raise ValueError(str(error).replace(f" (in {file})", "")) from None
        except ModuleNotFoundError as error:
            key = "job.custom_config_module"
            if error.name is None or values.get(key) != error.name:
                raise
            raise ValueError(f"{key} = {error.name!r}: {error}") from None
