"""The sweep file: a base configuration and the points to run it at.

Values of points never reach a shell: they travel in TOML and JSON files.
"""

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lighthouse.sweep.budget import Budget
from lighthouse.sweep.resources import Resources, check_path
from lighthouse.toml_types import check_toml_types, read_toml

Point = dict[str, Any]
"""Overrides of the base configuration: dotted keys such as "lighthouse.topk", and values."""

SET_BY_THE_SWEEP = ("job.config_file", "job.dump_folder", "job.extends")
SEED = "debug.seed"
TEXT_SEED = "training.dataset_seed"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SECRET = re.compile(
    r"""(?ix)
    (?:api_?key|password|passwd|secret|token) ["']? \s* = \s* ["']? [^\s"'$]  # an assignment of one
    | \b(?:hf|ghp|gho|github_pat|glpat|sk|sk-proj|wandb_v1)[_-][a-z0-9]{20,}  # well-known forms
    | \bAKIA[0-9A-Z]{16}\b
    | ://[^/\s:@]+:[^/\s@]+@  # a password in an address
    """
)


@dataclass
class SweepFile:
    """The keys of the file.

    Attributes:
        base: the trainer's TOML that all runs start from, relative to the sweep file.
        name: of the sweep; the file's own without it.
        output: folder of the run folders, relative to the working directory;
            ``outputs/sweeps/NAME`` without it.
        seeds: values of ``debug.seed``, each at every point, and of ``training.dataset_seed`` where
            text is shuffled, unless the sweep sets that.
        overrides: for all runs.
        axes: lists of values; each combination is a point.
        points: further points.
        exclude: combinations of the axes to leave out: those that have all of an entry's values.
        changes: what runs go on with, those that have begun too; no part of what they are.
        budget: what each run may spend on its stages; without it they say so themselves.
        resources: of each run.
    """

    base: str = ""
    name: str = ""
    output: str = ""
    seeds: list[int] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    exclude: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Spec:
    """What a sweep file means: keys dotted, paths absolute, ``points`` what varies, one a run.

    ``seeded`` says that every point has its seed from ``seeds``.
    """

    name: str
    base: Path
    output: Path
    overrides: Point
    points: tuple[Point, ...]
    resources: Resources
    budget: Budget | None = None
    changes: Point = field(default_factory=dict)
    seeded: bool = False


def read_spec(file: Path) -> Spec:
    """Read and check a sweep file; keys and values of the points are the trainer's to check.

    Raises:
        ValueError: naming the key, its value and what would do.
    """
    try:
        values = read_toml(file)
    except FileNotFoundError:
        raise ValueError(f"there is no sweep file {file}") from None
    except IsADirectoryError:
        raise ValueError(f"{file} is a folder; give the sweep file") from None
    refuse_secrets(values)
    if "base" not in values and {"model", "stages", "job"} & values.keys():
        raise ValueError(
            f"{file} is a run's configuration, not a sweep's; name it as base in a sweep's file"
        )
    check_toml_types(SweepFile, values)
    if values.get("seeds") == []:
        raise ValueError("seeds = []: must be at least one, or leave it out for the base's own")
    sweep = SweepFile(**values | {"resources": Resources(**values.get("resources", {}))})
    sweep.resources.check()

    name = sweep.name or file.stem
    if not _NAME.fullmatch(name):
        raise ValueError(f"name = {name!r}: must be letters, digits, '.', '_' and '-'")
    base = file.parent / sweep.base
    if not sweep.base:
        raise ValueError("base is not set; name the TOML file that the runs begin with")
    if not base.is_file():
        raise ValueError(f"base = {sweep.base!r}: there is no file {base}")
    # One spelling of each folder: locks and running trainers are found by its path.
    output = Path(sweep.output or f"outputs/sweeps/{name}").resolve()
    check_path(output, "output")
    if taken := next((p for p in (output, *output.parents) if p.is_file()), None):
        raise ValueError(f"output = {str(output)!r}: {taken} is a file, and must be a folder")
    return Spec(
        name=name,
        base=base.absolute(),
        output=output,
        overrides=_flat(sweep.overrides, "overrides"),
        points=tuple(_points(sweep)),
        resources=sweep.resources,
        budget=_budget(sweep.budget),
        changes=_flat(sweep.changes, "changes"),
        seeded=bool(sweep.seeds),
    )


def _budget(values: dict[str, Any]) -> Budget | None:
    if not values:
        return None
    check_toml_types(Budget, values, "budget.")
    if values.get("stage", 0) < 1:
        raise ValueError(
            f"budget.stage = {values.get('stage')!r}: must be the stage, from 1, whose steps make "
            "up for the others"
        )
    return Budget(**values)


def refuse_secrets(values: Any, key: str = "") -> None:
    """Refuse text that looks like a password or key: what is written here goes into many files.

    Raises:
        ValueError: naming the key, not the value.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            refuse_secrets(value, f"{key}.{name}" if key else name)
    elif isinstance(values, list):
        for value in values:
            refuse_secrets(value, key)
    elif isinstance(values, str) and (_SECRET.search(values) or _SECRET.search(f"{key}={values}")):
        raise ValueError(
            f"{key}: looks like a secret; leave it to the environment, which a run gets from where "
            "it was submitted"
        )


def _points(sweep: SweepFile) -> list[Point]:
    """All points with their seeds: the product of the axes, then the explicit ones."""
    common = _flat(sweep.overrides, "overrides")
    axes = _flat(sweep.axes, "axes")
    explicit = [_flat(values, "points") for values in sweep.points]
    excluded = [_flat(values, "exclude") for values in sweep.exclude]
    for key, choices in axes.items():
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"axes.{key} = {choices!r}: must be a list of values, at least one")
        if key in common:
            raise ValueError(f"overrides.{key}: is one of the axes too; say it in one place")
        _check_once(f"axes.{key}", choices)
    _check_once("seeds", sweep.seeds)
    if sweep.seeds and any(SEED in keys for keys in (common, axes, *explicit)):
        raise ValueError(f"seeds = {sweep.seeds}: {SEED} is set elsewhere too")

    product: list[Point] = []
    if axes or not explicit:
        combinations = itertools.product(*axes.values())
        product = [dict(zip(axes, values, strict=True)) for values in combinations]
    for values in excluded:
        kept = [p for p in product if any(k not in p or p[k] != v for k, v in values.items())]
        if len(kept) == len(product):
            raise ValueError(f"exclude: no combination of the axes has {values}")
        product = kept
    seeds = [{SEED: seed} for seed in sweep.seeds] or [{}]
    points = [point | seed for point in [*product, *explicit] for seed in seeds]
    if not points:
        raise ValueError("exclude: leaves no point to run")
    return points


def _check_once(key: str, values: list[Any]) -> None:
    """Refuse a value that stands there twice, which would be the same run; 1 and 1.0 are too."""
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise ValueError(f"{key} = {values}: {twice!r} stands there twice; leave one out")


def _flat(values: dict[str, Any], where: str, path: str = "") -> Point:
    """Tables and dotted keys alike as dotted keys."""
    flat: Point = {}
    for name, value in values.items():
        key = f"{path}{name}"
        if isinstance(value, dict):
            flat |= _flat(value, where, f"{key}.")
        elif "." not in key:
            raise ValueError(f"{where}.{key}: must be SECTION.KEY of the trainer's configuration")
        elif ".".join(key.split(".")[:2]) in SET_BY_THE_SWEEP:
            raise ValueError(f"{where}.{key}: is set by the sweep itself; leave it out")
        else:
            flat[key] = value
    return flat
