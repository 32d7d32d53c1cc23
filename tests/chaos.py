"""A run that is hit again and again: whatever happens to it, it ends as an undisturbed one does.

    python -m tests.chaos FOLDER [--events 100] [--seed 1]

A small run of four stages is killed, stopped, interrupted, started twice, left without disk, its
newest checkpoint damaged and its clock set, at random moments, and started again each time. It must
reach the undisturbed run's losses to the last bit, keep every finished checkpoint that it has not
replaced, and refuse in one sentence. Ended runs are followed by another until there were enough
events. Prints JSON. A small file system is mounted at FOLDER, which needs root; without it no disk
becomes full.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from lighthouse.runs.folder import OWNER_FILE, finished_steps
from lighthouse.runs.metrics import read_metrics
from tests.support import ROOT
from tests.support.processes import python

STAGE_STEPS = 12
KEPT = 2
CONFIG = {
    "model": {"flavor": "tiny_byte", "tokenizer": "byte"},
    "training": {
        **{"dataset": "python", "seq_len": 256, "local_batch_size": 1},
        "mixed_precision_param": "float32",
    },
    "lighthouse": {"enable": True, "topk": 16, "stratum": 8, "dense_layers": [0]},
    "optimizer": {"lr": 0.002},
    "lr_scheduler": {"warmup_steps": 2, "decay_from_stage": 4},
    "metrics": {"log_freq": 1},
    "activation_checkpoint": {"mode": "none"},
    "checkpoint": {
        **{"enable": True, "interval": 3, "keep_latest_k": KEPT},
        "last_save_model_only": False,
    },
    "debug": {"seed": 7},
    "stages": [
        {"steps": STAGE_STEPS, "attention": "dense", "seq_len": 64, "local_batch_size": 4},
        {"steps": STAGE_STEPS, "attention": "lighthouse"},
        {"steps": STAGE_STEPS, "attention": "window", "window": 64},
        {"steps": STAGE_STEPS, "attention": "dense"},
    ],
}
STEPS = 4 * STAGE_STEPS
DISK = "192M"
PATIENCE = 120.0
"""Seconds that anything may take."""


class ChaosError(AssertionError):
    """A promise that was broken."""


@dataclass
class Victim:
    """A run's folder, and the process that trains there, if one does.

    Attributes:
        log: what the last process printed.
        damaged: steps whose checkpoints were damaged on purpose.
        refusals: sentences so far.
    """

    folder: Path
    draw: random.Random
    log: Path
    damaged: set[int] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoint"

    def finished(self) -> list[int]:
        return finished_steps(self.checkpoints) if self.checkpoints.is_dir() else []

    def steps(self) -> int:
        """Lines of metrics that are there."""
        try:
            return (self.folder / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def start(self, *flags: str, **environment: str) -> None:
        """Start the trainer."""
        command = [python(), "-m", "lighthouse.launch"]
        options = ["--processes", "1", "--job.config_file", str(self.folder.parent / "run.toml")]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, *options, "--job.dump_folder", str(self.folder), *flags],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def owner(self) -> int | None:
        """The process that trains."""
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads((self.folder / OWNER_FILE).read_text())["pid"])
        return None

    def wait_for_steps(self, more: int) -> None:
        """Until so many lines more are there, or the process has ended."""
        at = self.steps() + more
        self.wait_until(lambda: self.steps() >= at or not self.runs())

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait_until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                raise ChaosError(f"still waiting after {PATIENCE:.0f} s: {self.output()[-2000:]}")
            time.sleep(0.02)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def end(self) -> int:
        """The exit code, when the process and its worker have ended."""
        assert self.process is not None
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise ChaosError(f"it does not end: {self.output()[-2000:]}") from error
        worker = self.owner()
        self.wait_until(lambda: worker is None or not _alive(worker))
        # A worker without its launcher may only be about to own the folder.
        self.wait_until(lambda: not _started_for(self.folder))
        return code

    def refused(self) -> str:
        """The one sentence of a start that was refused."""
        code, output = self.end(), self.output()
        said = _refusals(output)
        if code != 2 or len(said) != 1 or "Traceback" in output:
            raise ChaosError(f"not refused in one sentence, exit code {code}: {output[-3000:]}")
        self.refusals.append(said[0])
        return said[0]


def _refusals(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("refused: ")]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _started_for(folder: Path) -> bool:
    """Whether a process is there whose command line names a folder."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(str(folder)) in file.read_bytes().split(b"\0"):
                return True
    return False


def _kill(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _at_random(victim: Victim, *flags: str, **environment: str) -> None:
    """Start, and let it come to a random moment: of its start, or of its steps."""
    victim.start(*flags, **environment)
    if victim.draw.random() < 0.2:
        time.sleep(victim.draw.uniform(0, 3))
    else:
        victim.wait_for_steps(victim.draw.randint(1, 6))
        time.sleep(victim.draw.uniform(0, 0.3))


def kill_worker(victim: Victim) -> bool:
    _at_random(victim)
    _kill(victim.owner())
    return True


def kill_launcher(victim: Victim) -> bool:
    _at_random(victim)
    assert victim.process is not None
    victim.process.kill()
    return True


def kill_both(victim: Victim) -> bool:
    _at_random(victim)
    assert victim.process is not None
    victim.process.kill()
    _kill(victim.owner())
    return True


def _signal(victim: Victim, number: int) -> bool:
    _at_random(victim)
    assert victim.process is not None
    victim.process.send_signal(number)
    return True


def terminate(victim: Victim) -> bool:
    return _signal(victim, signal.SIGTERM)


def ctrl_c(victim: Victim) -> bool:
    return _signal(victim, signal.SIGINT)


def full_disk(victim: Victim) -> bool:
    _at_random(victim)
    filler = victim.folder.parent / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(2**20))
    try:
        victim.wait_for_steps(4)
    finally:
        filler.unlink()
    return True


def second_launch(victim: Victim) -> bool:
    _at_random(victim)
    if victim.owner() is None or not victim.runs():
        return False  # it has not begun to own its folder, or it is done
    second = Victim(victim.folder, victim.draw, log=victim.folder.parent / "second.log")
    second.start()
    assert victim.process is not None and second.process is not None
    code, output = second.process.wait(PATIENCE), second.output()
    said = _refusals(output)
    if not victim.runs():
        return False  # the first was through before
    if code != 2 or len(said) != 1 or "trains there" not in said[0]:
        raise ChaosError(f"a second launch: exit code {code}: {output[-2000:]}")
    victim.refusals += said
    victim.process.send_signal(signal.SIGTERM)
    return True


def damage(victim: Victim) -> bool:
    finished = victim.finished()
    if not finished or STEPS in finished:
        return False
    newest = victim.checkpoints / f"step-{finished[-1]}"
    shards = sorted(newest.glob("*.distcp"))
    file = victim.draw.choice([*shards, newest / ".metadata"])
    content = bytearray(file.read_bytes())
    if victim.draw.random() < 0.5:
        content = content[: victim.draw.randrange(len(content))]
    else:
        at = victim.draw.randrange(len(content))
        content[at : at + 4096] = bytes(b ^ 0xFF for b in content[at : at + 4096])
    file.write_bytes(content)
    victim.damaged.add(finished[-1])
    victim.start()
    said = victim.refused()
    if f"step-{finished[-1]}" not in said:
        raise ChaosError(f"does not name the checkpoint: {said}")
    shutil.rmtree(newest)
    return True


def clock_jump(victim: Victim) -> bool:
    step = max([0, *victim.finished()]) + victim.draw.randint(1, 4)
    by = victim.draw.choice([-86400, 86400, 10**8])
    jump = ("--experimental.custom_import", "tests.support.clock_jump")
    _at_random(victim, *jump, CLOCK_JUMP=f"{step} {by}")
    assert victim.process is not None
    victim.process.send_signal(signal.SIGTERM)
    return True


EVENTS: tuple[Callable[[Victim], bool], ...] = (
    kill_worker,
    kill_launcher,
    kill_both,
    terminate,
    ctrl_c,
    full_disk,
    second_launch,
    damage,
    clock_jump,
)


def hit(victim: Victim, event: Callable[[Victim], bool]) -> bool:
    """One event, and what must hold after it; False where it could not happen."""
    before = victim.finished()
    victim.damaged.clear()
    happened = event(victim)
    if victim.process is not None:
        victim.end()
        victim.process = None
    after = victim.finished()
    kept = [step for step in before if step not in victim.damaged]
    lost = [step for step in kept if step not in after]
    if any(sum(newer > step for newer in after) < KEPT for step in lost):
        raise ChaosError(f"{event.__name__}: {before} were finished, {after} are")
    said = _refusals(victim.output())
    if len(said) > 1:
        raise ChaosError(f"{event.__name__}: refused in {len(said)} sentences: {said}")
    return happened


def finish(victim: Victim) -> dict[int, tuple[float, float]]:
    """Let it train to its end, and its losses."""
    victim.start()
    if victim.end() != 0:
        raise ChaosError(f"undisturbed, it ends badly: {victim.output()[-3000:]}")
    victim.process = None
    return losses(victim.folder)


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    """Of each step, as it was trained last."""
    lines = (record for record in read_metrics(folder) if "loss" in record)
    return {record["step"]: (record["loss"], record["grad_norm"]) for record in lines}


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A small file system at a folder: whether there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def chaos(folder: Path, events: int, seed: int, say: Callable[[str], None]) -> dict[str, object]:
    """So many events.

    Returns:
        How many of each, of ended runs, and of different refusals.

    Raises:
        ChaosError: a promise was broken.
    """
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    refusals: list[str] = []
    ended = 0
    with small_disk(folder) as mounted:
        (folder / "run.toml").write_text(tomli_w.dumps(CONFIG))
        whole = finish(Victim(folder / "undisturbed", draw, folder / "trainer.log"))
        if sorted(whole) != list(range(1, STEPS + 1)):
            raise ChaosError(f"the undisturbed run has steps {sorted(whole)}")
        shutil.rmtree(folder / "undisturbed")
        while counts.total() < events:
            victim = Victim(folder / "run", draw, folder / "trainer.log")
            while counts.total() < events and STEPS not in victim.finished():
                event = draw.choice([e for e in EVENTS if mounted or e is not full_disk])
                if not hit(victim, event):
                    continue
                counts[event.__name__] += 1
                say(f"{counts.total()} {event.__name__}: step {max([0, *victim.finished()])}")
            found = finish(victim) if STEPS not in victim.finished() else losses(victim.folder)
            if found != whole:
                differ = [s for s in whole if found.get(s) != whole[s]]
                raise ChaosError(f"other losses than undisturbed at steps {differ}")
            ended += 1
            refusals += victim.refusals
            shutil.rmtree(victim.folder)
    return {
        "events": dict(counts),
        "runs_ended_as_undisturbed": ended,
        "refusals": len(refusals),
        "steps": STEPS,
        "seed": seed,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

    found = chaos(options.folder.resolve(), options.events, options.seed, say)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
