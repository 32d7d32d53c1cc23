"""Whether a run's folder can take what the run will write, asked before anything is trained."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lighthouse.titan.checkpoint import finished_steps
from lighthouse.titan.cpu import GIB

# A weight and the two moments of Adam, each in float32.
BYTES_PER_PARAMETER = 12


def check_writable(job_config: Any) -> None:
    """Make the run's folder, and write a byte there that does not stay.

    Raises:
        ValueError: naming job.dump_folder, where that fails.
    """
    folder = Path(job_config.job.dump_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise ValueError(
            f"job.dump_folder = {str(folder)!r}: can't be written ({error}); name a folder that "
            "can, or make room there"
        ) from error


def check_space(job_config: Any, parameters: int) -> None:
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
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    disk = shutil.disk_usage(existing)
    # Some network file systems don't say how large they are.
    if disk.total > 0 and disk.free < needed:
        raise ValueError(
            f"job.dump_folder = {job_config.job.dump_folder!r}: {disk.free / GIB:.2f} GiB are free "
            f"on that disk, and {count} checkpoint(s) of {parameters:,} parameters need about "
            f"{needed / GIB:.2f} GiB; make room, name a folder on another disk, or keep fewer "
            "with checkpoint.keep_latest_k"
        )
