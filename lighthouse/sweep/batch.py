"""The batch script of a submission: one throttled array, a task for each run."""

import shlex
import sys

from lighthouse.sweep.submission import Submission


def batch_script(submission: Submission, after: str | None = None) -> str:
    """The script for sbatch. A task finds its run in the submission, by its index.

    Args:
        submission: what is sent.
        after: a job that must have ended before.
    """
    resources = submission.resources
    throttle = "" if resources.max_running is None else f"%{resources.max_running}"
    options: dict[str, object] = {
        "job-name": submission.job_name,
        "array": f"0-{len(submission.runs) - 1}{throttle}",
        "nodes": resources.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": resources.gpus_per_node or None,
        "cpus-per-task": resources.cpus_per_task,
        "mem": resources.mem,
        "time": resources.time,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "signal": f"B:USR1@{resources.notice_seconds}",
        "open-mode": "append",
        "output": f'"{submission.slurm_log("%a")}"',
    }
    lines = [f"--{name}={value}" for name, value in options.items() if value is not None]
    lines += ["--requeue", *resources.sbatch]
    if after is not None:
        # Last: in place of a dependency of the user's, which that job has waited for.
        lines.append(f"--dependency=afterany:{after}")
    worker = shlex.join([sys.executable, "-m", "lighthouse.sweep.worker", str(submission.folder)])
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in lines),
            "",
            "# A notice must not end the script before the worker listens.",
            "trap '' USR1 TERM",
            "set -e",
            f"cd {shlex.quote(str(submission.directory))}",
            *resources.setup,
            "# In place of this shell, because notice goes to the script's own process.",
            f'exec {worker} "$SLURM_ARRAY_TASK_ID"',
            "",
        ]
    )
