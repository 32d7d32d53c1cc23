"""``[[stages]]`` of a job's TOML: which keys a stage may set, in files and on the command line.

torchtitan's ``JobConfig`` imports this module, so it must not import torchtitan.
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lighthouse.titan.config.flags import list_of
from lighthouse.titan.config.section import Lighthouse
from lighthouse.titan.config.toml_files import Layer
from lighthouse.toml_types import check_toml_types

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

StageTable = dict[str, Any]
StageTables = Annotated[list[StageTable], tyro.conf.Fixed]
"""Its flags are taken from the command line before tyro sees it, which counts from 0."""

OF_THE_RUN = (
    *("enable", "dense_from_step", "impl"),
    *("validate_dense", "validate_leak", "selection_log_freq"),
)
"""Keys of ``[lighthouse]`` that a stage can't set."""

OF_SCHEDULE = {"steps", "attention", "lr_factor", "warmup_steps"}
"""Keys of a stage that no section has."""

REQUIRED = ("steps", "attention")

FLAG = "--stages."


@dataclass
class OwnKeys:
    """What a stage sets beside keys of ``[lighthouse]``; unset: as the run's sections say."""

    steps: int = 0
    """How many; required"""

    attention: Literal["dense", "lighthouse", "window"] = "dense"
    """
    In every layer dense, in every layer a window, or layer by layer as [lighthouse] says; required
    """

    seq_len: int | None = None
    local_batch_size: int | None = None
    global_batch_size: int | None = None

    lr_factor: float = 1.0
    """Multiplies the learning rate's schedule over all stages"""

    warmup_steps: int = 0
    """Steps from the last stage's last learning rate to this one's, in a line"""


OF_TRAINING = ("seq_len", "local_batch_size", "global_batch_size")
OF_LIGHTHOUSE = tuple(f for f in fields(Lighthouse) if f.name not in OF_THE_RUN)

_Keys = make_dataclass(
    "_Keys",
    [(f.name, f.type, field(default=None)) for f in OF_LIGHTHOUSE],
    bases=(OwnKeys,),
)
_SWITCHES = {f.name for f in OF_LIGHTHOUSE if f.type is bool}
_LISTS = {f.name for f in fields(_Keys) if str(f.type).startswith("list")}


def merge_stages(layers: Sequence[Layer], merged: dict[str, Any], flags: Sequence[str]) -> None:
    """Settle what a chain of files says of stages, and put it into the merged values.

    The tables of a file replace those of the files below it, and their ``training.steps`` and
    ``lighthouse.dense_from_step``; its ``lr_scheduler.decay_from_stage`` replaces their
    ``decay_ratio``. ``training.steps`` becomes the sum of the stages.

    Args:
        merged: the values of all files, which change.
        flags: of :func:`take_flags`.

    Raises:
        ValueError: tables that are not right, or steps that contradict them.
    """
    at = max((i for i, (_, values) in enumerate(layers) if "stages" in values), default=-1)
    written = layers[at][1]["stages"] if at >= 0 else []
    tables = [dict(table) for table in written]
    _apply_flags(tables, flags)
    if not tables:
        return
    for number, table in enumerate(tables, start=1):
        _check_table(number, table)
    # Files agree among themselves; flags then change what all of them say.
    as_written = [
        new | {"steps": old.get("steps")} for old, new in zip(written, tables, strict=True)
    ]
    known = all(type(table["steps"]) is int for table in as_written)
    for file, values in layers[at:]:
        said = values.get("training", {}).get("steps") if known else None
        try:
            check_short_forms(as_written, said, values.get("lighthouse", {}).get("dense_from_step"))
        except ValueError as error:
            raise ValueError(f"{error} (in {file})") from None
    for file, values in layers[at + 1 :]:
        try:
            _check_followed(tables, values)
        except ValueError as error:
            raise ValueError(f"{error} (in {file})") from None
    merged["stages"] = tables
    merged.setdefault("training", {})["steps"] = sum(table["steps"] for table in tables)
    merged.get("lighthouse", {}).pop("dense_from_step", None)
    schedules = [values.get("lr_scheduler", {}) for _, values in layers]
    decayed = [i for i, schedule in enumerate(schedules) if "decay_from_stage" in schedule]
    if decayed and not any("decay_ratio" in schedule for schedule in schedules[decayed[-1] :]):
        merged["lr_scheduler"].pop("decay_ratio", None)


def check_short_forms(
    tables: Sequence[StageTable], steps: int | None, dense_from_step: int | None
) -> None:
    """Refuse ``training.steps`` and ``lighthouse.dense_from_step`` that say other than the stages.

    Raises:
        ValueError: naming the key.
    """
    if not tables:
        return
    if dense_from_step is not None:
        raise ValueError(
            f"lighthouse.dense_from_step = {dense_from_step}: [[stages]] say where dense attention "
            "begins; leave it out"
        )
    if steps is not None and steps != (sum_of_stages := sum(table["steps"] for table in tables)):
        parts = " + ".join(str(table["steps"]) for table in tables)
        sum_of = "" if len(tables) == 1 else f"{parts} = "
        raise ValueError(
            f"training.steps = {steps}: [[stages]] have {sum_of}{sum_of_stages} steps; leave it "
            "out and change stages.N.steps"
        )


def _check_followed(tables: Sequence[StageTable], values: Mapping[str, Any]) -> None:
    """Refuse what a file above the stages, or a flag, says for the run if each has its own.

    Args:
        values: of sections, those that are said there.

    Raises:
        ValueError: naming the key.
    """
    sparse = [table for table in tables if table["attention"] == "lighthouse"]
    windows = [table for table in tables if table["attention"] == "window"]
    users = {f"lighthouse.{f.name}": sparse for f in OF_LIGHTHOUSE}
    users |= {f"training.{key}": list(tables) for key in OF_TRAINING}
    users["lighthouse.window"] = sparse + windows
    for name, of_key in users.items():
        section, key = name.split(".")
        if key in values.get(section, {}) and of_key and all(key in table for table in of_key):
            raise ValueError(
                f"{name} = {values[section][key]!r}: each stage that it is for has its own; set "
                f"stages.N.{key} instead"
            )


def settle(job_config: "JobConfig", arguments: Sequence[str] = ()) -> None:
    """Check the stages against the rest of a merged configuration, and fill in what follows.

    Args:
        arguments: of the command line, without flags of stages.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    tables, schedule = job_config.stages, job_config.lr_scheduler
    check_short_forms(tables, job_config.training.steps, job_config.lighthouse.dense_from_step)
    for number, table in enumerate(tables, start=1):
        if table["attention"] == "lighthouse" and not job_config.lighthouse.enable:
            raise ValueError(
                f"stages.{number}.attention = 'lighthouse': lighthouse.enable is false; set it to "
                "true, or another attention"
            )
    _check_followed(tables, _said(arguments))
    decay_from = schedule.decay_from_stage
    if decay_from is None:
        return
    if not 1 <= decay_from <= len(tables):
        there = f"there are stages 1 to {len(tables)}" if tables else "there are no [[stages]]"
        raise ValueError(f"lr_scheduler.decay_from_stage = {decay_from}: {there}")
    if schedule.total_steps not in (None, job_config.training.steps):
        raise ValueError(
            f"lr_scheduler.total_steps = {schedule.total_steps}: lr_scheduler.decay_from_stage "
            "ends the decay with the last stage; leave it out"
        )
    decayed = sum(table["steps"] for table in tables[decay_from - 1 :])
    ratio = decayed / job_config.training.steps
    if schedule.decay_ratio not in (None, ratio):
        raise ValueError(
            f"lr_scheduler.decay_ratio = {schedule.decay_ratio}: lr_scheduler.decay_from_stage = "
            f"{decay_from} makes it {decayed} of {job_config.training.steps} steps; leave one of "
            "them out"
        )
    schedule.decay_ratio = ratio


def take_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of a command line without and with those of ``--stages.N.KEY``."""
    rest: list[str] = []
    flags: list[str] = []
    taken = rest
    for argument in arguments:
        if argument.startswith("--"):
            of_stages = argument.startswith((FLAG, "--stages=")) or argument == "--stages"
            taken = flags if of_stages else rest
        taken.append(argument)
    return rest, flags


def _said(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What flags say of the sections whose keys a stage may set."""
    found: dict[str, dict[str, Any]] = {"training": {}, "lighthouse": {}}
    for _, section, key, values in _flags(arguments, "--"):
        if section in found and (values or key in _LISTS):
            found[section][key] = _value(key, values)
    return found


def _flags(arguments: Sequence[str], prefix: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """Each flag, what it is of, its key and its words: ``KEY VALUE...`` or ``KEY=VALUE``.

    A switch of ``[lighthouse]`` has its word, whether it is written out or not.

    Args:
        prefix: that the flags have in common.
    """
    groups: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--"):
            groups.append(argument.split("=", 1))
        else:
            groups[-1].append(argument)
    for flag, *values in groups:
        table, _, key = flag.removeprefix(prefix).replace("-", "_").partition(".")
        if not values and key.removeprefix("no_") in _SWITCHES:
            values, key = [str(not key.startswith("no_")).lower()], key.removeprefix("no_")
        yield flag, table, key, values


def _apply_flags(tables: list[StageTable], flags: Sequence[str]) -> None:
    """Set ``--stages.N.KEY`` in the tables."""
    for flag, number, key, values in _flags(flags, FLAG):
        if not (number.isascii() and number.isdecimal() and key):
            raise ValueError(f"{flag}: must be {FLAG}N.KEY, N counted from 1")
        if not 1 <= int(number) <= len(tables):
            there = f"there are stages 1 to {len(tables)}" if tables else "there are no [[stages]]"
            raise ValueError(f"stages.{number}.{key}: {there}")
        if not values:
            raise ValueError(f"{flag}: needs a value")
        tables[int(number) - 1][key] = _value(key, values)


def _value(key: str, words: list[str]) -> Any:
    """A flag's words as a TOML value; words that are none are text."""
    several = key in _LISTS
    found = []
    for word in list_of(words) if several else words:
        try:
            written = word.lower() if word in ("True", "False") else word
            found.append(tomllib.loads(f"value = {written}")["value"])
        except tomllib.TOMLDecodeError:
            found.append(word)
    return found if several or len(found) > 1 else found[0]


def _check_table(number: int, table: StageTable) -> None:
    path = f"stages.{number}."
    known = {f.name for f in fields(_Keys)}
    for key in table:
        if key in ("enable", "dense_from_step"):
            raise ValueError(
                f"{path}{key}: a stage says it by {path}attention, 'dense' or 'lighthouse'"
            )
        if key not in known and (own := _without_section(key, table[key], known)):
            raise ValueError(f"{path}{key}: a stage has no sections; write it as {path}{own}")
        if key not in known and (of_run := _key_of_run(key)):
            instead = f", or {path}lr_factor, its multiple" if of_run == "optimizer.lr" else ""
            raise ValueError(
                f"{path}{key}: is the same in all stages; set {of_run} for the run{instead}"
            )
    check_toml_types(_Keys, table, path)
    for key in REQUIRED:
        if key not in table:
            raise ValueError(f"{path}{key}: is missing; a stage needs its steps and its attention")
    for key in ("steps", "seq_len", "local_batch_size"):
        if table.get(key, 1) < 1:
            raise ValueError(f"{path}{key} = {table[key]}: must be at least 1")
    _check_attention(path, table)
    if not 0 <= table.get("lr_factor", 1.0) < float("inf"):
        raise ValueError(
            f"{path}lr_factor = {table['lr_factor']}: must be a finite number, zero or more"
        )
    if not 0 <= table.get("warmup_steps", 0) <= table["steps"]:
        raise ValueError(
            f"{path}warmup_steps = {table['warmup_steps']}: must be zero or more, and at most the "
            f"stage's {table['steps']} steps"
        )


def _check_attention(path: str, table: StageTable) -> None:
    """Refuse keys that would do nothing under the stage's attention."""
    attention = table["attention"]
    useful = {f.name for f in OF_LIGHTHOUSE} if attention == "lighthouse" else set()
    useful |= {"window"} if attention == "window" else set()
    for key in table:
        if key in {f.name for f in OF_LIGHTHOUSE} - useful:
            raise ValueError(
                f"{path}{key}: means nothing under {path}attention = {attention!r}; leave it out"
            )


def _without_section(key: str, value: Any, known: set[str]) -> str | None:
    """What a stage calls a key of a section that it may set; None for any other."""
    section, _, name = key.partition(".")
    names = [name] if name else list(value) if isinstance(value, dict) else []
    of_section = OF_TRAINING if section == "training" else {f.name for f in OF_LIGHTHOUSE}
    takes = section in ("training", "lighthouse")
    return next((name for name in names if takes and name in known & {*of_section}), None)


def _key_of_run(key: str) -> str | None:
    """What a key, a table or SECTION.KEY is called in the run's configuration, if it is there."""
    # Not imported above: torchtitan's configuration imports this module.
    from torchtitan.config import JobConfig

    if key in OF_THE_RUN:
        return f"lighthouse.{key}"
    for section in fields(JobConfig):
        if dataclasses.is_dataclass(section.type):
            if section.name == key.split(".")[0]:
                return key
            if any(f.name == key for f in fields(section.type)):
                return f"{section.name}.{key}"
    return None


def of_stage(job_config: "JobConfig", table: StageTable) -> "JobConfig":
    """The run's configuration with what a stage's table sets, and no stages of its own."""
    return dataclasses.replace(
        job_config,
        stages=[],
        training=dataclasses.replace(
            job_config.training, **{k: v for k, v in table.items() if k in OF_TRAINING}
        ),
        lighthouse=dataclasses.replace(
            job_config.lighthouse,
            enable=table["attention"] == "lighthouse",
            **{f.name: table[f.name] for f in OF_LIGHTHOUSE if f.name in table},
        ),
    )
