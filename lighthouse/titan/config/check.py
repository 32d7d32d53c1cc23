"""Whether a job can run on a machine: the one judge for the trainer, the dry run and sweeps."""

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lighthouse.titan.config.check_checkpoint import check_checkpoint
from lighthouse.titan.config.check_layout import check_layout
from lighthouse.titan.config.check_lighthouse import check_lighthouse
from lighthouse.titan.config.check_llama3 import check_llama3
from lighthouse.titan.config.check_numbers import check_numbers
from lighthouse.titan.data.text_files import check_texts

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


@dataclass(frozen=True)
class Machine:
    """Where a job is to run.

    Attributes:
        device: ``"cuda"`` or ``"cpu"``, as torch calls it.
        processes: the job's, on all its machines; None where that is not settled.
        here: it is this machine, so that what is installed must do.
    """

    device: str
    processes: int | None
    here: bool

    @classmethod
    def this(cls) -> "Machine":
        """This machine, with as many processes as torchrun has started."""
        # Not imported above: torchtitan's configuration imports this module.
        from torchtitan.tools.utils import device_type

        world = os.environ.get("WORLD_SIZE")
        return cls(device_type, None if world is None else int(world), here=True)


def check_job(job_config: "JobConfig", machine: Machine) -> None:
    """Refuse a job that could not run there, or whose checkpoints could not be resumed.

    Nothing is built. Sizes of the model are looked up, and text files are looked for.

    Args:
        job_config: merged from TOML and command line.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    import_custom(job_config)
    check_numbers(job_config)
    check_layout(job_config, machine)
    check_checkpoint(job_config)
    _check_device(job_config, machine.device)
    check_llama3(job_config, machine)
    check_lighthouse(job_config, machine)
    if job_config.model.name == "llama3":
        check_texts(job_config)


def import_custom(job_config: "JobConfig") -> None:
    """Import the user's module as the trainer will: what it registers, such as flavors, is known.

    Raises:
        ValueError: there is none of that name.
    """
    module = job_config.experimental.custom_import
    if not module:
        return
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"experimental.custom_import = {module!r}: {error}") from error


def _check_device(job_config: "JobConfig", device: str) -> None:
    if job_config.training.enable_cpu_offload and device == "cpu":
        raise ValueError(
            "training.enable_cpu_offload = true: there is no accelerator to offload from; use false"
        )
    if job_config.profiling.enable_memory_snapshot and device == "cpu":
        raise ValueError(
            "profiling.enable_memory_snapshot = true: needs an accelerator, since the CPU's "
            "allocator keeps no history; set it to false (profiling.enable_profiling works)"
        )
