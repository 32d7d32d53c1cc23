"""Keys that upstream has and nothing here would follow: whoever sets one waits for nothing."""

import dataclasses
from typing import TYPE_CHECKING

from lighthouse.toml_types import spelled

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

COMPILED = ("model", "loss")
"""What ``compile.components`` may name."""

_SECTIONS = {
    "fault_tolerance": "is of another trainer of upstream's, on torchft; leave it out",
    "memory_estimation": "is of a script of upstream's; use python -m lighthouse.titan.plan",
}


def check_unread(job_config: "JobConfig") -> None:
    """Refuse values that would be passed over, and names that stand for nothing.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    for name, why in _SECTIONS.items():
        section = getattr(job_config, name)
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if field.default is not dataclasses.MISSING and value != field.default:
                raise ValueError(f"{name}.{field.name} = {spelled(value)}: {why}")
    module = job_config.experimental.custom_args_module
    if module:
        raise ValueError(
            f"experimental.custom_args_module = {module!r}: is read no more; use "
            "job.custom_config_module"
        )
    folder = job_config.job.dump_folder
    if not folder:
        raise ValueError("job.dump_folder = '': must name a folder, such as './outputs'")
    if folder.startswith("~"):
        raise ValueError(
            f"job.dump_folder = {folder!r}: ~ is a name like any other here, which a shell alone "
            "reads as the home folder; write that in full"
        )
    _check_compiled(job_config)
    option, known = job_config.activation_checkpoint.determinism_check, ("default", "none")
    if option not in known:
        raise ValueError(
            f"activation_checkpoint.determinism_check = {option!r}: must be one of "
            f"{', '.join(map(repr, known))}"
        )


def _check_compiled(job_config: "JobConfig") -> None:
    section = job_config.compile
    unknown = [name for name in section.components if name not in COMPILED]
    if unknown:
        raise ValueError(
            f"compile.components = {section.components}: there is no {unknown[0]!r}; must be of "
            f"{', '.join(map(repr, COMPILED))}"
        )
    if section.enable and not section.components:
        raise ValueError(
            "compile.components = []: compile.enable = true would compile nothing; name "
            f"{' or '.join(map(repr, COMPILED))}, or set it to false"
        )
