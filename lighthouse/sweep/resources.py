"""What each run of a sweep gets, and how its values may look.

They stand in the batch script, so they are checked to be harmless there; `setup` alone is shell
code, and meant to be.
"""

import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

# What partitions, accounts, memory and constraints consist of; nothing that a shell would act on.
_SLURM_VALUE = re.compile(r"[A-Za-z0-9_.,:|&@/+*=\[\]-]+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
# Options that the batch script sets, and the key that they have here if there is one.
_SET_BY_THE_SWEEP = {
    **dict.fromkeys(("nodes", "N"), "nodes"),
    **dict.fromkeys(("gpus-per-node", "ntasks", "ntasks-per-node", "n"), "gpus_per_node"),
    **dict.fromkeys(("cpus-per-task", "c"), "cpus_per_task"),
    **dict.fromkeys(("time", "t"), "time"),
    **dict.fromkeys(("partition", "p"), "partition"),
    **dict.fromkeys(("account", "A"), "account"),
    **dict.fromkeys(("qos", "q"), "qos"),
    **dict.fromkeys(("constraint", "C"), "constraint"),
    **dict.fromkeys(("array", "a"), "max_running"),
    **{"mem": "mem", "signal": "notice_seconds"},
    **dict.fromkeys(("job-name", "J", "output", "o", "open-mode", "requeue", "no-requeue"), ""),
}
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass
class Resources:
    """What each run gets. All of a sweep's runs get the same.

    Attributes:
        nodes: machines of a run.
        gpus_per_node: processes on each; 0 trains on CPUs, in one process a node.
        gpu: what the plan's estimates are for, as in ``lighthouse.titan.plan --device``.
        time: limit of an attempt as Slurm writes it: minutes, "HH:MM:SS", "D-HH", ...; a run that
            needs longer continues in the next attempt.
        cpus_per_task, mem, partition, account, qos, constraint: sbatch's options of these names.
        sbatch: more of sbatch's options, such as "--exclusive"; none that a sweep sets itself.
        setup: shell lines before each attempt, such as "module load cuda".
        python: command that starts Python for the training, such as
            ["apptainer", "exec", "--nv", "image.sif", "python"].
        srun: more of srun's options, such as "--container-image=image.sqsh".
        max_running: runs at a time; unset for as many as Slurm gives.
        notice_seconds: how long before the time limit Slurm gives notice: more than a step and a
            checkpoint take.
        retries: further attempts after failures. Preemptions and time limits don't count.
    """

    nodes: int = 1
    gpus_per_node: int = 1
    gpu: str = "h100"
    time: str = "24:00:00"
    cpus_per_task: int | None = None
    mem: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    python: list[str] = field(default_factory=lambda: [sys.executable])
    srun: list[str] = field(default_factory=list)
    max_running: int | None = None
    notice_seconds: int = 120
    retries: int = 2

    @property
    def processes(self) -> int:
        """Training processes of a run."""
        return self.nodes * self.processes_per_node

    @property
    def processes_per_node(self) -> int:
        return max(1, self.gpus_per_node)

    def check(self) -> None:
        """Check all values but the types.

        Raises:
            ValueError: naming the key, its value and what would do.
        """
        least = {"nodes": 1, "gpus_per_node": 0, "notice_seconds": 1, "retries": 0}
        least |= {"cpus_per_task": 1, "max_running": 1}
        for key, minimum in least.items():
            value = getattr(self, key)
            if value is not None and value < minimum:
                raise ValueError(f"resources.{key} = {value}: must be at least {minimum}")
        for key in ("mem", "partition", "account", "qos", "constraint"):
            value = getattr(self, key)
            if value is not None and not _SLURM_VALUE.fullmatch(value):
                raise ValueError(
                    f"resources.{key} = {value!r}: must be letters, digits and _.,:|&@/+*=[]-"
                )
        for option in self.sbatch:
            if not option.startswith("-") or _UNPRINTABLE.search(option):
                raise ValueError(
                    f"resources.sbatch = {option!r}: must be one option, such as '--exclusive'"
                )
            _check_is_free(option)
        if not self.python:
            raise ValueError("resources.python = []: must be a command, such as ['python']")
        seconds_of(self.time)


def _check_is_free(option: str) -> None:
    """Refuse what the batch script sets: of an option given twice sbatch takes the last."""
    try:
        words = shlex.split(option)  # a line may have several
    except ValueError as error:
        raise ValueError(f"resources.sbatch = {option!r}: {error}") from None
    for word in words:
        if not word.startswith("-"):
            continue
        name = word[2:].partition("=")[0] if word.startswith("--") else word[1:2]
        key = _SET_BY_THE_SWEEP.get(name)
        if key is not None:
            instead = f"use resources.{key}" if key else "leave it out"
            raise ValueError(f"resources.sbatch = {option!r}: is set by the sweep; {instead}")


def seconds_of(time: str) -> int:
    """Slurm's forms of a time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        ValueError: another form, or zero.
    """
    match = _TIME.fullmatch(time)
    seconds = 0
    if match:
        days, *parts = match.groups()
        first, second, third = (int(part or 0) for part in parts)
        if days is None and parts[2] is None:
            seconds = first * 60 + second
        else:
            seconds = ((int(days or 0) * 24 + first) * 60 + second) * 60 + third
    if seconds == 0:
        raise ValueError(
            f"resources.time = {time!r}: must be more than zero, as Slurm writes it: minutes, "
            "HH:MM:SS, D-HH or D-HH:MM:SS"
        )
    return seconds


def check_path(path: Path, key: str) -> None:
    """Refuse a path that an #SBATCH line would read as something else.

    Raises:
        ValueError: it has a quote, a backslash, '%' or an unprintable character.
    """
    text = str(path)
    bad = [c for c in text if c in "\"'\\%" or _UNPRINTABLE.match(c)]
    if bad:
        raise ValueError(f"{key} = {text!r}: {bad[0]!r} does not work in a path for Slurm")
