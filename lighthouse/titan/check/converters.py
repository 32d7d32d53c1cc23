"""Layers that upstream's converters put in the place of a model's."""

import importlib.util
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

    from lighthouse.titan.check.job import Machine

FLOAT8 = "quantize.linear.float8"
_CAPABILITIES = {
    FLOAT8: ((8, 9), "Ada, Hopper"),
    "quantize.linear.mx": ((10, 0), "Blackwell"),
}
"""Of the GPUs that multiply so."""


def check_converters(job_config: "JobConfig", machine: "Machine") -> None:
    """Refuse converters that are unknown, or cannot do their work there.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    converters = job_config.model.converters
    if not converters:
        return
    # Not imported above: torchtitan's configuration imports this module.
    import torchtitan.components.quantization  # noqa: F401
    from torchtitan.protocols.model_converter import _registry_model_converter_cls as known

    key = f"model.converters = {converters}"
    for name in converters:
        if name not in known:
            raise ValueError(
                f"{key}: there is no {name!r}; must be of {', '.join(map(repr, known))}"
            )
    if FLOAT8 in converters:
        _check_float8(job_config)
    ours = [name for name in converters if name.startswith("quantize.")]
    if not (machine.here and ours):
        return
    if importlib.util.find_spec("torchao") is None:
        raise ValueError(
            f"{key}: {ours[0]!r} needs torchao, which is not installed; pip install torchao, or "
            "leave it out"
        )
    for name in ours:
        if name not in _CAPABILITIES or (
            name == FLOAT8 and job_config.quantize.linear.float8.emulate
        ):
            continue
        wanted, names = _CAPABILITIES[name]
        if _capability() < wanted:
            raise ValueError(
                f"{key}: {name!r} needs a GPU of {names} or later, compute capability "
                f"{'.'.join(map(str, wanted))}; here is {_here()}"
            )


def _check_float8(job_config: "JobConfig") -> None:
    section, compiled = job_config.quantize.linear.float8, job_config.compile
    if section.recipe_name is not None and section.enable_fsdp_float8_all_gather:
        raise ValueError(
            f"{FLOAT8}.enable_fsdp_float8_all_gather = true: goes without "
            f"{FLOAT8}.recipe_name = {section.recipe_name!r} only; leave one out"
        )
    if section.emulate and compiled.enable and "model" in compiled.components:
        raise ValueError(
            f"{FLOAT8}.emulate = true: can't be compiled; set compile.enable = false, or leave it "
            "out"
        )


def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


def _here() -> str:
    if not torch.cuda.is_available():
        return "none"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, {major}.{minor}"
