"""The command that trains a run: torchrun, under Slurm in a job step on all nodes."""

import os
import socket

from lighthouse.run_folder import RESOLVED_FILE
from lighthouse.sweep.runs import Run
from lighthouse.sweep.submission import Submission


def command(run: Run, submission: Submission) -> list[str]:
    """Program and arguments; no shell takes part."""
    resources = submission.resources
    if resources.nodes == 1:
        rendezvous = ["--standalone"]
    else:
        # The worker is on the first of the nodes.
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-id={run.identity}"]
        rendezvous += [f"--rdzv-endpoint={socket.gethostname()}:{_free_port()}"]
    torchrun = [*resources.python, "-m", "torch.distributed.run", *rendezvous]
    torchrun += [f"--nnodes={resources.nodes}", f"--nproc-per-node={resources.processes_per_node}"]
    torchrun += ["-m", "torchtitan.train", "--job.config_file", str(run.folder / RESOLVED_FILE)]
    if not submission.slurm:
        return torchrun
    srun = ["srun", f"--ntasks={resources.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    if resources.cpus_per_task is not None:  # which srun does not take over from sbatch
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")
    return [*srun, *resources.srun, *torchrun]


def environment(run: Run, submission: Submission) -> dict[str, str]:
    """This process's environment, and how the run is called in Weights & Biases."""
    names = {"WANDB_RUN_GROUP": submission.sweep, "WANDB_RUN_NAME": run.name}
    # One for all runs would mix them; the trainer keeps one for each folder.
    return {k: v for k, v in os.environ.items() if k != "WANDB_RUN_ID"} | names


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
