"""A real Slurm of two nodes on this machine: two CPUs each, a low and a high partition.

Everything lives in one folder and listens on free ports of 127.0.0.1, as the current user.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")
PATIENCE = 300.0  # seconds to wait for what a run does; the machine may be busy with other tests
CONFIG = """
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
# A requeued job waits for its credentials to expire.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,batch_sched_delay=0,bf_interval=5
ReturnToService=2
KillWait=5
# Minutes between the limit, which the notice goes by, and the kill: the machine may be busy.
OverTimeLimit=5
InactiveLimit=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
# The machine may have fewer: what runs here waits more than it computes.
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=low Nodes=n1,n2 Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=n1,n2 State=UP PriorityTier=10 PreemptMode=OFF
"""


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"  # Debian keeps the daemons there


_missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
needs_slurm = pytest.mark.skipif(
    bool(_missing), reason=f"Slurm is not installed: no {', '.join(_missing)}"
)


@dataclass
class Cluster:
    """A running cluster; `environment` is what its commands need besides `os.environ`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def run(self, *command: str, timeout: float = 30) -> str:
        """Run a command of the cluster and return what it printed."""
        return subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=timeout,
        ).stdout

    def start_controller(self) -> None:
        self.run("slurmctld")
        wait_for(lambda: self.run("sinfo", "-h", "-p", "low", "-o", "%t").strip(), timeout=30)

    def set_time_limit(self, job: str, minutes: int) -> None:
        """Change how long a job may run; below what it has run already, its time is up."""
        command = ("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        # It is refused in moments of a job's way back into the queue.
        wait_for(lambda: self.run(*command) == "", timeout=60)

    def save_state(self, job: str) -> None:
        """Wait until the controller has written down all that it knows; changes a job's comment.

        It writes some seconds after a change. Killed before that, it takes up a past in which what
        has ended goes on, and drains the node over the difference.
        """
        before = time.time()
        self.run("scontrol", "update", f"JobId={job}", f"Comment={before}")
        wait_for(lambda: (self.folder / "state" / "job_state").stat().st_mtime > before, timeout=60)

    def stop(self, daemon: str, kill: bool = False) -> None:
        """End one daemon by the process id it wrote, at once with `kill`."""
        pid_file = self.folder / f"{daemon}.pid"
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), timeout=20)
        pid_file.unlink(missing_ok=True)


def wait_for(condition, timeout: float, every: float = 0.3):
    """Ask until the answer is true or not an error; return it.

    Raises:
        TimeoutError: it never was.
    """
    end = time.monotonic() + timeout
    error: subprocess.SubprocessError | None = None
    while time.monotonic() < end:
        try:
            if answer := condition():
                return answer
        except subprocess.SubprocessError as raised:
            error = raised
        time.sleep(every)
    raise TimeoutError(f"not within {timeout} s: {condition}") from error


@contextlib.contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    """Start a cluster, and end it."""
    # Not below pytest's folder: munged wants every folder above its socket open to all.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    for name in ("munge", "state", "spool-n1", "spool-n2"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    ports = [_free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(
        CONFIG.format(folder=folder, host=host, user=user, ports=ports)
    )
    cluster = Cluster(folder)
    munge = folder / "munge"
    try:
        cluster.run(
            "munged",
            f"--key-file={key}",
            f"--socket={munge / 'socket'}",
            f"--pid-file={folder / 'munged.pid'}",
            f"--log-file={munge / 'log'}",
            f"--seed-file={munge / 'seed'}",
        )
        cluster.start_controller()
        for node in NODES:
            cluster.run("slurmd", "-N", node)
        wait_for(
            lambda: cluster.run("sinfo", "-h", "-p", "low", "-o", "%t").strip() == "idle",
            timeout=30,
        )
        yield cluster
    finally:
        for daemon in (*NODES, "slurmctld", "munged"):
            cluster.stop(daemon)
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
