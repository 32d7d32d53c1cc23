"""Start a training: torchrun's command and environment, here, under sbatch and in sweeps alike.

    python -m lighthouse.launch [--processes N] TRAINER_FLAGS         here, a process per GPU
    python -m lighthouse.launch --slurm RUN_FOLDER TRAINER_FLAGS      in a batch job, on its nodes

Whatever a run is refused for is the last line on the screen, and the exit code 2. Under Slurm the
run stops with a checkpoint and goes back into the queue when its time is nearly up or when it is
preempted. scripts/train.sh and scripts/train.sbatch are these two commands.
"""

import logging
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lighthouse import slurm
from lighthouse.orphan import LAUNCHER_VARIABLE
from lighthouse.refusal import (
    ENDINGS,
    EXIT_CODE,
    FILE_VARIABLE,
    ending_of,
    last_word,
    refuse,
    say_last,
)
from lighthouse.runs.folder import LAST_WORD_FILE, STOP_FILE

LOOK_SECONDS = 0.5

ENVIRONMENT = {
    # torchrun passes on few signals and kills workers 30 s later, too soon for a long step. As
    # variables, because an older torchrun would refuse them as options.
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "PET_SHUTDOWN_TIMEOUT": "600",
    # Long sequences come and go in large pieces; without this the allocator leaves gaps.
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}
"""What every training has unless the caller's environment says otherwise."""

THREADS_VARIABLE = "OMP_NUM_THREADS"
SIDE_BY_SIDE_VARIABLE = "LIGHTHOUSE_SIDE_BY_SIDE"
"""How many trainings share this machine, where they were started together."""


@dataclass(frozen=True)
class Launch:
    """Where a training runs.

    Attributes:
        processes: on each node.
        nodes: machines; with more than one, ``srun`` starts a launcher on each.
        python: the command that starts Python there.
        srun: options of srun; None without Slurm.
        run_id: by which nodes find each other.
    """

    processes: int
    nodes: int = 1
    python: tuple[str, ...] = (sys.executable,)
    srun: tuple[str, ...] | None = None
    run_id: str = ""

    def command(self, trainer_flags: Sequence[str]) -> list[str]:
        """Program and arguments; no shell takes part."""
        command = [*self.python, "-m", "lighthouse.launch", "--processes", str(self.processes)]
        if self.nodes > 1:
            # This process is on the first of the nodes.
            place = f"{socket.gethostname()}:{_free_port()}"
            command += ["--nodes", str(self.nodes), "--meet", place, "--run-id", self.run_id]
        command += ["--", *trainer_flags]
        if self.srun is None:
            return command
        each = [f"--ntasks={self.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
        return ["srun", *each, *self.srun, *command]


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a training that is started from ``base``."""
    return ENVIRONMENT | dict(base)


def threads(gpus: int, processes: int, base: Mapping[str, str] = os.environ) -> int:
    """How many threads each of a machine's processes computes with, unless the user says it.

    A GPU's process needs one. More, of several processes on many cores, wait for each other: data
    was read a hundred times slower. torchrun sees to it only where it starts more than one process.
    """
    if gpus:
        return 1
    beside = int(base.get(SIDE_BY_SIDE_VARIABLE, "1"))
    return max(1, len(os.sched_getaffinity(0)) // (processes * beside))


def set_threads() -> None:
    """In a trainer's process that no launcher has told how many threads to have, set them."""
    import torch

    if THREADS_VARIABLE not in os.environ:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(threads(_gpus(), processes))


def run_torchrun(processes: int, nodes: int, meet: str, run_id: str, flags: Sequence[str]) -> int:
    """Run this node's processes to their end, and return the exit code.

    0 for a run that ended or was stopped by a file, 2 for a refused one, 3 for one that diverged.
    """
    # Not imported above: they take seconds, and a sweep's worker needs the rest of this file alone.
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Its errors say "exit code" of each rank; what is worth saying comes below.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    arguments = [f"--nnodes={nodes}", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    arguments += [f"--rdzv-endpoint={meet}", f"--rdzv-id={run_id}"]
    if nodes == 1:
        # Not the machine's name, which torchrun would wait for where nothing resolves it.
        arguments.append("--local-addr=localhost")
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        above, word = os.environ.get(FILE_VARIABLE), Path(folder) / LAST_WORD_FILE
        ours = {THREADS_VARIABLE: str(threads(_gpus(), processes))}
        own = {FILE_VARIABLE: str(word), LAUNCHER_VARIABLE: str(os.getpid())}
        os.environ.update(ours | environment() | own)
        try:
            torchrun.run(torchrun.parse_args([*arguments, "-m", "lighthouse.train", *flags]))
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            code = failure.exitcode if failure.exitcode > 0 else 1
            if code not in ENDINGS.values():
                print(f"launch: rank {rank} failed, {_how(failure.exitcode)}", file=sys.stderr)
        except SignalException as error:
            print(f"launch: stopped by {error.sigval.name}", file=sys.stderr)
            # Where another node's launcher has ended, srun ends this one, and takes the highest
            # exit code: that must be the other's.
            code = 128 + error.sigval.value if nodes == 1 else 1
        return _say_last(word, code, above)


def _say_last(word: Path, code: int, above: str | None = None) -> int:
    """Pass on what a trainer has said, and return the exit code that belongs to it.

    Whatever a rank that was left alone, or a launcher on another node, has died of since.
    """
    said = last_word(word)
    if said is None:
        return code
    say_last(said, above)
    ending = ending_of(said)
    return code if ending is None else ENDINGS[ending]


def _how(exit_code: int) -> str:
    return f"killed by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def run_in_batch_job(folder: Path, flags: Sequence[str]) -> int:
    """Run on the nodes of this batch job; on notice stop, and go back into the queue.

    Slurm's notice comes to this process, or straight to the trainer, which leaves its reason in
    STOP. A run that is finished has removed STOP, and a cancelled job is not running any more.
    """
    notice = slurm.Notice()
    folder.mkdir(parents=True, exist_ok=True)
    stop = folder / STOP_FILE
    stop.unlink(missing_ok=True)
    word = folder.absolute() / LAST_WORD_FILE
    word.unlink(missing_ok=True)
    task = slurm.own_task()
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")  # which srun does not take over from sbatch
    launch = Launch(
        processes=int(os.environ.get("NPROC") or os.environ.get("SLURM_GPUS_ON_NODE") or 1),
        nodes=int(os.environ["SLURM_NNODES"]),
        srun=(f"--cpus-per-task={cpus}",) if cpus else (),
        run_id=f"{task}.{os.environ.get('SLURM_RESTART_COUNT', 0)}",
    )
    command = launch.command(["--job.dump_folder", str(folder), *flags])
    print(f"launch: {shlex.join(command)}", flush=True)
    process = subprocess.Popen(command, env=environment() | {FILE_VARIABLE: str(word)})
    while process.poll() is None:
        # Again and again: the trainer removes a file that it finds when it starts.
        if notice.given:
            stop.touch()
        time.sleep(LOOK_SECONDS)
    preempted = stop.exists() and "SIGTERM" in stop.read_text(encoding="utf-8")
    if (notice.given and stop.exists()) or preempted:
        slurm.go_back_into_the_queue(task)
    return _say_last(word, process.returncode)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in ([], ["-h"], ["--help"]):
        print(__doc__)
        return 0 if words else EXIT_CODE
    if words[0] == "--slurm":
        if len(words) < 2 or words[1].startswith("-"):
            refuse("--slurm: the run's folder comes next, which all nodes must see")
        return run_in_batch_job(Path(words[1]), words[2:])
    options = {"--processes": os.environ.get("NPROC", ""), "--nodes": "1"}
    options |= {"--meet": "localhost:0", "--run-id": str(uuid.uuid4())}
    while len(words) > 1 and words[0] in options:
        options[words[0]], words = words[1], words[2:]
    for name in ("--processes", "--nodes"):
        if options[name] and not (options[name].isdecimal() and int(options[name])):
            refuse(f"{name} {options[name]}: must be a number, at least 1")
    processes = int(options["--processes"] or 0) or max(1, _gpus())
    flags = words[1:] if words[:1] == ["--"] else words
    nodes, meet, run_id = int(options["--nodes"]), options["--meet"], options["--run-id"]
    return run_torchrun(processes, nodes, meet, run_id, flags)


if __name__ == "__main__":
    sys.exit(main())
