"""Whether a job can run on a machine: the one judge for the trainer, the dry run and sweeps."""

import dataclasses
import importlib
import os
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lighthouse.titan.check.checkpoint import check_checkpoint
from lighthouse.titan.check.converters import check_converters
from lighthouse.titan.check.documents import check_documents
from lighthouse.titan.check.hugging_face import check_hugging_face
from lighthouse.titan.check.layout import check_layout
from lighthouse.titan.check.lighthouse import (
    check_end,
    check_followed,
    check_lighthouse,
    check_model,
    check_window,
)
from lighthouse.titan.check.llama3 import check_llama3, check_split
from lighthouse.titan.check.numbers import check_numbers, check_rate
from lighthouse.titan.check.schedule import check_schedule
from lighthouse.titan.check.unread import check_unread
from lighthouse.titan.check.written import check_written
from lighthouse.titan.config.stage_tables import OF_SCHEDULE, of_stage
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.data.text_checks import check_texts
from lighthouse.titan.distributed.layout import layout_of
from lighthouse.titan.llama3.model_args import model_args_of

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

    Nothing is built. Sizes of the model are looked up, the tokenizer is read, and text files are
    looked for.

    Args:
        job_config: merged from TOML and command line.

    Raises:
        ValueError: naming the key, the value it got and what would do.
    """
    import_custom(job_config)
    check_unread(job_config)
    check_converters(job_config, machine)
    check_checkpoint(job_config)
    _check_device(job_config, machine.device)
    if job_config.stages:
        _check_stages(job_config, machine)
    else:
        _check_stage(job_config, machine)
    check_written(job_config)
    check_schedule(job_config)
    check_rate(job_config)
    check_hugging_face(job_config)
    _check_positions(job_config)
    check_end(job_config)
    check_window(job_config)
    check_followed(job_config)
    if job_config.model.name == "llama3":
        # Not imported above, as torchtitan's configuration imports this module.
        from lighthouse.titan.data.tokenizer import check_tokenizer

        check_tokenizer(job_config)
        check_texts(job_config)


def _check_stage(job_config: "JobConfig", machine: Machine) -> None:
    """Check the configuration of one stage, or of a run without any."""
    check_numbers(job_config)
    check_layout(job_config, machine)
    check_llama3(job_config, machine)
    check_lighthouse(job_config, machine)
    check_documents(job_config)


def import_custom(job_config: "JobConfig") -> None:
    """Import the user's module as the trainer will: what it registers, such as flavors, is known.

    Raises:
        ValueError: there is none of that name.
    """
    if job_config.experimental.custom_import:
        _import("experimental.custom_import", job_config.experimental.custom_import)


def custom_config(module: str) -> Any:
    """The configuration class of the user's module, whose fields are more keys.

    Raises:
        ValueError: there is none.
    """
    key = "job.custom_config_module"
    config = getattr(_import(key, module), "JobConfig", None)
    if not dataclasses.is_dataclass(config):
        raise ValueError(f"{key} = {module!r}: has no dataclass JobConfig, whose fields are keys")
    return config


def _import(key: str, module: str) -> Any:
    """The one place where a configuration runs code of its own; it is said."""
    if module not in sys.modules:
        from torchtitan.tools.logging import logger

        logger.warning(f"Importing {module}, as {key} says: its code runs")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{key} = {module!r}: {error}") from error


def _check_stages(job_config: "JobConfig", machine: Machine) -> None:
    """Check each stage; what is wrong in all of them alike is said of the run."""
    name = job_config.model.name
    if name != "llama3":
        raise ValueError(f"model.name = {name!r}: [[stages]] need 'llama3'; leave them out")
    found: dict[int, str] = {}
    stages = Stages.of(job_config).stages
    for number, table in enumerate(job_config.stages, start=1):
        try:
            _check_stage(of_stage(job_config, table), machine)
            if table["attention"] == "window":
                check_model(job_config, f"stages.{number}.attention = 'window'")
                stages[number - 1].layers(job_config, model_args_of(job_config).n_layers)
        except ValueError as error:
            found[number] = str(error)
    if found:
        number, message = next(iter(found.items()))
        alike = len(found) == len(job_config.stages) and len(set(found.values())) == 1
        written = _as_written(message, number, job_config.stages[number - 1])
        raise ValueError(message if alike and len(found) > 1 else written)
    # torchtitan begins with the run's own length and batch, though no stage may have them.
    check_split(job_config, model_args_of(job_config))
    if machine.processes is not None and job_config.comm.mode == "default":
        layout_of(job_config, machine.processes)
    _check_pipeline(job_config)


def _check_pipeline(job_config: "JobConfig") -> None:
    """A pipeline is built for one shape."""
    degree, training = job_config.parallelism.pipeline_parallel_degree, job_config.training
    for number, table in enumerate(job_config.stages, start=1):
        for key in ("seq_len", "local_batch_size"):
            if degree > 1 and table.get(key, getattr(training, key)) != getattr(training, key):
                raise ValueError(
                    f"stages.{number}.{key} = {table[key]}: the run has "
                    f"parallelism.pipeline_parallel_degree = {degree}, and a pipeline is built for "
                    f"training.{key} = {getattr(training, key)} alone; use that, or no pipeline"
                )


def _as_written(message: str, number: int, table: dict[str, object]) -> str:
    """Name the keys that a stage sets as they stand in its table, or else the stage."""
    written = message
    for key in table.keys() - OF_SCHEDULE:
        written = re.sub(rf"\b(training|lighthouse)\.{key}\b", f"stages.{number}.{key}", written)
    if written == message and not message.startswith(f"stages.{number}."):
        return f"in stage {number}: {message}"
    return written


def _check_positions(job_config: "JobConfig") -> None:
    longest = Stages.of(job_config).longest
    validation = job_config.validation
    if job_config.model.name == "llama3" and validation.enable and validation.seq_len > longest:
        key = "the longest stage's seq_len" if job_config.stages else "training.seq_len"
        raise ValueError(
            f"validation.seq_len = {validation.seq_len}: the model's positions end at {key} = "
            f"{longest}; use at most that"
        )


def _check_device(job_config: "JobConfig", device: str) -> None:
    if job_config.checkpoint.async_mode == "async_with_pinned_mem" and device == "cpu":
        raise ValueError(
            "checkpoint.async_mode = 'async_with_pinned_mem': there is no accelerator to copy "
            "from; use 'async' or 'disabled'"
        )
    if job_config.training.enable_cpu_offload and device == "cpu":
        raise ValueError(
            "training.enable_cpu_offload = true: there is no accelerator to offload from; use false"
        )
    if job_config.profiling.enable_memory_snapshot and device == "cpu":
        raise ValueError(
            "profiling.enable_memory_snapshot = true: needs an accelerator, since the CPU's "
            "allocator keeps no history; set it to false (profiling.enable_profiling works)"
        )
