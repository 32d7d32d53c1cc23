"""A submission: the runs that were sent together, and all that a worker must know to run them.

One folder each, `submissions/0001` and on: `submission.json`, `batch.sh` and Slurm's own logs.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lighthouse.runs.files import of_json, read_json, write_atomic
from lighthouse.sweep.resources import Resources

FOLDER = "submissions"
RECORD_FILE = "submission.json"
SCRIPT_FILE = "batch.sh"


@dataclass(frozen=True)
class Submission:
    """What was sent together.

    Attributes:
        number: from 1, in order of time.
        job_name: the Slurm job's, which no other submission has; ``None`` without Slurm. Tasks are
            found in the queue by it, so that an id lost with sbatch's answer does no harm.
        directory: where training runs, since paths in configurations may be relative.
        runs: names of the run folders; a worker's index counts these.
    """

    output: Path
    number: int
    sweep: str
    job_name: str | None
    directory: Path
    resources: Resources
    runs: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.output / FOLDER / f"{self.number:04d}"

    @property
    def slurm(self) -> bool:
        return self.job_name is not None

    def slurm_log(self, index: int | str) -> Path:
        """What the batch script printed for the run of that index; ``"%a"`` is Slurm's for it."""
        return self.folder / f"slurm-{index}.log"


def next_submission(
    output: Path, sweep: str, resources: Resources, runs: Sequence[Path], slurm: bool
) -> Submission:
    """The submission that would come next; writes nothing."""
    # Folders count, not records: one may have lost its record, or never got it.
    folders = [p.name for p in (output / FOLDER).glob("*") if p.name.isdecimal()]
    number = 1 + max(map(int, folders), default=0)
    place = hashlib.sha256(str(output).encode()).hexdigest()[:6]
    return Submission(
        output=output,
        number=number,
        sweep=sweep,
        job_name=f"{sweep}-{number:04d}-{place}" if slurm else None,
        directory=Path.cwd(),
        resources=resources,
        runs=tuple(folder.name for folder in runs),
    )


def write_submission(submission: Submission) -> None:
    """Make the submission's folder and write its record; where that fails, no folder stays."""
    record = asdict(submission) | {"directory": str(submission.directory)}
    del record["output"]
    submission.folder.mkdir(parents=True)
    try:
        write_atomic(submission.folder / RECORD_FILE, json.dumps(record, indent=2) + "\n")
    except OSError:
        remove_submission(submission)
        raise


def remove_submission(submission: Submission) -> None:
    """Leave no trace of a submission that was not sent."""
    shutil.rmtree(submission.folder)
    with suppress(OSError):  # there are others
        submission.folder.parent.rmdir()


def read_submission(folder: Path) -> Submission:
    """The submission of a folder that `write_submission` made."""
    file = folder / RECORD_FILE
    record = read_json(file)
    try:
        built = {
            "directory": Path(record["directory"]),
            "resources": of_json(Resources, record["resources"], file),
            "runs": tuple(record["runs"]),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: it has no submission") from error
    return of_json(Submission, record, file, output=folder.parents[1], **built)


def read_submissions(output: Path) -> list[Submission]:
    """All submissions below a sweep's folder, in order."""
    return [read_submission(f.parent) for f in sorted(output.glob(f"{FOLDER}/*/{RECORD_FILE}"))]
