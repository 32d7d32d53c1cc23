"""Whether a run's folder can take what the run writes: asked at the start, told where it fails."""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.api import CheckpointException

from lighthouse.cost.memory import GIB
from lighthouse.runs.folder import (
    ASSETS_FOLDER,
    CONFIGS_FOLDER,
    DIVERGED_FILE,
    OWNER_FILE,
    RESOLVED_FILE,
    STOP_FILE,
    all_steps,
    finished_steps,
    unfinished_steps,
)
from lighthouse.runs.metrics import METRICS_FILE

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

# A weight and the two moments of Adam, each in float32.
BYTES_PER_PARAMETER = 12


def check_writable(job_config: "JobConfig") -> None:
    """Make the run's folder, and write a byte there that does not stay; and so into its folders.

    Raises:
        ValueError: naming job.dump_folder, where that fails, where a file that the run goes on with
            is not this user's, or where a folder stands in the place of one of the run's files or
            the other way round.
    """
    folder = Path(job_config.job.dump_folder)
    inside = (CONFIGS_FOLDER, ASSETS_FOLDER, job_config.checkpoint.folder, *_logs(job_config))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try_to_write(folder)
        for name in inside:
            if os.path.lexists(folder / name) and not (folder / name).is_dir():
                raise ValueError(
                    f"job.dump_folder = {str(folder)!r}: {folder / name} is no folder, or a link "
                    "to none; bring it back, or move it away"
                )
            if (folder / name).is_dir():
                _try_to_write(folder / name)
    except OSError as error:
        raise ValueError(
            f"job.dump_folder = {str(folder)!r}: can't be written ({error.strerror}: "
            f"{error.filename or folder}); name a folder that can, or make room there"
        ) from error
    for file in (folder / CONFIGS_FOLDER).glob("*.toml"):
        if not os.access(file, os.R_OK):
            raise ValueError(
                f"job.dump_folder = {str(folder)!r}: {file} can't be read, as a file of another "
                "user; make it readable, or name another folder"
            )
    # All others are put there anew.
    for file in (folder / METRICS_FILE, *(folder / ASSETS_FOLDER).rglob("*")):
        if file.is_file() and not os.access(file, os.R_OK | os.W_OK):
            raise ValueError(
                f"job.dump_folder = {str(folder)!r}: {file} can't be read and written, as a file "
                "of another user; make it yours, or name another folder"
            )
    for name in (METRICS_FILE, RESOLVED_FILE, OWNER_FILE, STOP_FILE, DIVERGED_FILE):
        if (folder / name).is_dir():
            raise ValueError(
                f"job.dump_folder = {str(folder)!r}: {name} in it is a folder, in the place of the "
                "run's own file; move it away, or name another folder"
            )
    checkpoints = folder / job_config.checkpoint.folder
    for step in all_steps(checkpoints) if job_config.checkpoint.enable else ():
        if not (found := checkpoints / f"step-{step}").is_dir():
            raise ValueError(
                f"job.dump_folder = {str(folder)!r}: {found} is no folder, or a link to none; "
                "bring it back, or move it away to go on from the checkpoint before"
            )
    for step in unfinished_steps(checkpoints) if job_config.checkpoint.enable else ():
        try:
            _try_to_write(checkpoints / f"step-{step}")
        except OSError as error:
            raise ValueError(
                f"job.dump_folder = {str(folder)!r}: {checkpoints / f'step-{step}'}, the rest of a "
                f"save, can't be written again ({error.strerror}); make it yours, or move it away"
            ) from error


def _logs(job_config: "JobConfig") -> list[str]:
    """Folders of what upstream writes besides, in the run's."""
    metrics, profiling = job_config.metrics, job_config.profiling
    wanted = {
        metrics.save_tb_folder: metrics.enable_tensorboard,
        profiling.save_traces_folder: profiling.enable_profiling,
        profiling.save_memory_snapshot_folder: profiling.enable_memory_snapshot,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _try_to_write(folder: Path, size: int = 1) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(size))


def check_space(job_config: "JobConfig", parameters: int) -> None:
    """Refuse a disk that can't hold the checkpoints that will stand there side by side.

    Args:
        job_config: torchtitan's ``JobConfig``.
        parameters: of the whole model.

    Raises:
        ValueError: naming job.dump_folder.
    """
    config = job_config.checkpoint
    if not config.enable or config.load_only or config.create_seed_checkpoint:
        return
    folder = Path(job_config.job.dump_folder) / config.folder
    # An old checkpoint is deleted when a newer one is finished, so there is one more than are kept.
    count = job_config.training.steps // config.interval + 1
    if config.keep_latest_k > 0:
        count = min(count, config.keep_latest_k + 1)
    count = max(1, count - len(finished_steps(folder)))
    needed = count * parameters * BYTES_PER_PARAMETER
    disk = _disk_usage(folder)
    # Some network file systems don't say how large they are.
    if disk.total > 0 and disk.free < needed:
        raise ValueError(
            f"job.dump_folder = {job_config.job.dump_folder!r}: {disk.free / GIB:.2f} GiB are free "
            f"on that disk, and {count} checkpoint(s) of {parameters:,} parameters need about "
            f"{needed / GIB:.2f} GiB; make room, name a folder on another disk, or keep fewer "
            "with checkpoint.keep_latest_k"
        )


def _disk_usage(folder: Path) -> Any:
    """Total, used and free bytes where a folder is or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir()))


class SaveError(RuntimeError):
    """A checkpoint was not written, because of the disk."""


def explain_failed_save(save: Callable[..., None]) -> Callable[..., None]:
    """Decorate ``CheckpointManager.save`` to tell what its failure means for the run.

    PyTorch's own message for a full disk is of positions in a file. Failures that are not the
    disk's, such as those of memory or of a network, stay what they are, with a note. A save in the
    background fails in the call after it.
    """

    @functools.wraps(save)
    def explained(manager: Any, curr_step: int, *args: Any, **kwargs: Any) -> None:
        try:
            save(manager, curr_step, *args, **kwargs)
        except (OSError, RuntimeError, CheckpointException) as error:
            folder = Path(manager.folder)
            steps = finished_steps(folder)
            left = f"continues from step {steps[-1]}" if steps else "starts over"
            whole = f"finished ones are whole, the same command {left}"
            if not any(map(_is_of_the_disk, _causes(error))):
                error.add_note(f"The checkpoint of step {curr_step} is not written; {whole}.")
                raise
            raise SaveError(
                f"step {curr_step}: a checkpoint could not be written to {str(folder)!r} "
                f"({_why(folder, error)}); {whole}"
            ) from error

    return explained


def _why(folder: Path, error: BaseException) -> str:
    """What the system says, and the room on the disk.

    PyTorch's writer tells no reason; writing once more does, where it is still there.
    """
    said = next((cause for cause in _causes(error) if isinstance(cause, OSError)), None)
    if said is None:
        try:
            _try_to_write(folder, size=2**20)
        except OSError as again:
            said = again
    free = f"{_disk_usage(folder).free / GIB:.2f} GiB are free"
    return free if said is None else f"{said}; {free}"


def _causes(error: BaseException) -> list[BaseException]:
    """The error, or what it says of each rank."""
    if isinstance(error, CheckpointException):
        return [failure[0] for failure in error.failures.values()]
    return [error]


def _is_of_the_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) or (
        # PyTorch's writer, as an error of its own and of C++ streams.
        type(error) is RuntimeError
        and any(
            sign in str(error) for sign in ("PytorchStreamWriter", "unexpected pos", "iostream")
        )
    )
