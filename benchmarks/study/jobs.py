"""The study's runs of the trainer, as jobs of one GPU."""

from pathlib import Path

from benchmarks.jobs import ROOT, Job

BASE = ROOT / "benchmarks/study/base.toml"
ALONE = dict.fromkeys(("RANK", "LOCAL_RANK", "MASTER_PORT"), "0")
ALONE |= {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
"""What torchrun would tell the only process."""


def training(
    study: Path,
    name: str,
    flags: str,
    after: tuple[str, ...] = (),
    config: Path = BASE,
    seconds: float = 0.0,
) -> Job:
    """A run of the trainer in the folder ``name``."""
    where = ("--job.config_file", str(config), "--job.dump_folder", str(study / name))
    return Job(name, ("torchtitan.train", *where, *flags.split()), after, 1, seconds, ALONE)
