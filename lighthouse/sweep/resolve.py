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
from lighthouse.sweep.spec import SEED, TEXT_SEED, Point, Spec, refuse_secrets
from lighthouse.titan.check.job import Machine
from lighthouse.titan.config.resolved_toml import to_toml
from lighthouse.titan.config.stage_tables import FLAG
from lighthouse.titan.config.stages import said_otherwise
from lighthouse.titan.plan.job import Plan, machine_of, parse, plan
from lighthouse.toml_types import spelled


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

    Where the sweep has runs from when seeds gave text no order, it goes on so as a whole: points
    that are compared seed by seed read the same text.

    Raises:
        ValueError: with what is wrong at each invalid point, or points that are the same run.
    """
    planned = _resolve(spec, commit)
    if not spec.seeded or not spec.output.exists() or all(map(_is_begun, planned)):
        return planned
    before = _resolve(replace(spec, seeded=False), commit)
    pairs = zip(before, planned, strict=True)
    others = [(was, now) for was, now in pairs if was.run.identity != now.run.identity]
    began_so = any(_is_begun(was) for was, _ in others)
    if not began_so or any(_is_begun(now) for _, now in others):
        return planned
    return list(map(_as_it_began, before))


def _is_begun(planned: PlannedRun) -> bool:
    return planned.run.folder.exists()


def _as_it_began(planned: PlannedRun) -> PlannedRun:
    remark = (
        f"{TEXT_SEED}: this sweep began when seeds gave text no order, and goes on so; under "
        "another output each seed has its own"
    )
    estimate = planned.plan
    return replace(planned, plan=replace(estimate, remarks=(*estimate.remarks, remark)))


def _resolve(spec: Spec, commit: str | None) -> list[PlannedRun]:
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
    job = _parse_point(spec, point)
    if not job.checkpoint.enable or job.checkpoint.load_only:
        raise ValueError(
            f"checkpoint.enable = {spelled(job.checkpoint.enable)}, checkpoint.load_only = "
            f"{spelled(job.checkpoint.load_only)}: a run that saves nothing can't be continued; "
            "set them to true and false"
        )
    values, defaults = (values_of(to_toml(config)) for config in (job, type(job)()))
    tables = [said_otherwise(table, values) for table in values.get("stages", [])]
    key = identity({**values, "stages": tables}, defaults, processes)
    named = {*spec.overrides, *point, TEXT_SEED}  # by ``seeds``, if nothing else
    folder = folder_of(spec.output, name, key, values, processes, named)
    if spec.changes:
        job = _parse_point(spec, point, spec.changes)
    estimate = _estimate(spec, job)
    estimate = replace(estimate, remarks=(*estimate.remarks, *_said_of_seeds(spec, point, job)))
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


def _said_of_seeds(spec: Spec, point: Point, job: Any) -> tuple[str, ...]:
    """That several seeds are one run: the first weights are given, and one order of the text."""
    given = [k for k in ("initial_load_path", "initial_load_in_hf") if getattr(job.checkpoint, k)]
    points = [p for p in spec.points if SEED in p and p.get(TEXT_SEED) == point.get(TEXT_SEED)]
    seeds = list(dict.fromkeys(p[SEED] for p in points))
    training = job.training
    if len(seeds) < 2 or not given or _has_text_seed(spec, point, job):
        return ()
    order, seed = training.dataset_order, training.dataset_seed
    so = f"{TEXT_SEED} = {seed}" if order == "shuffled" else f"training.dataset_order = {order!r}"
    return (
        f"{SEED} = {seeds}: checkpoint.{given[0]} gives each the same weights, and {so} the same "
        "text, so they differ by rounding alone",
    )


def _parse_point(spec: Spec, point: Point, changes: Point | None = None) -> Any:
    """The trainer's configuration of a point, with its seed as that of shuffled text too."""
    values = {**point, **(changes or {})}
    job = _parse(spec, values, _machine(spec))
    if _has_text_seed(spec, values, job):
        job.training.dataset_seed = point[SEED]
    return job


def _has_text_seed(spec: Spec, point: Point, job: Any) -> bool:
    """Whether ``seeds`` are of its text too: shuffled, and of no seed that the sweep names."""
    shuffled = job.training.dataset_order == "shuffled"
    return spec.seeded and shuffled and TEXT_SEED not in {**spec.overrides, **point}


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
