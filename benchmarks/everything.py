"""What docs quote of GPUs, measured again on one machine, side by side where it has several.

    python -m benchmarks.everything FOLDER TEXT_FOLDER [--gpus 4] [--seconds S] [--only NAME ...]

TEXT_FOLDER is what ``benchmarks.study.text`` wrote. Each measurement writes ``NAME.json`` into
FOLDER, and what it prints into ``NAME.log``; runs of the study have folders of their own there, for
``benchmarks.study.rivals_results``. What is done is skipped, so that the same command goes on where
it was stopped. ``--only`` names jobs, or the beginnings of their names, in the order to run them;
what they need comes before them. With ``--seconds`` no job is begun that may take longer.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.jobs import Job, run
from benchmarks.study import rivals

SHORT = rivals.short_name("65k", 1)
"""The stage that the walk through docs/extend.md goes on from."""


def measurements(folder: Path, text: Path) -> list[Job]:
    """All but the study."""

    def job(name: str, command: str, seconds: float, gpus: int = 1, after: str = "") -> Job:
        paths = {
            "OUT": folder / f"{name}.json",
            "OWN_FOLDER": folder / name,
            "SHORT": folder / SHORT,
            "TEXT": text,
        }
        words = (str(paths.get(word, word)) for word in command.split())
        return Job(name, tuple(words), tuple(after.split()), gpus, seconds)

    def ranks(name: str, command: str, seconds: float, gpus: int) -> Job:
        torchrun = f"torch.distributed.run --standalone --nproc_per_node={gpus}"
        return job(name, f"{torchrun} -m {command}", seconds, gpus)

    def steps(name: str, cases: str, seconds: float, gpus: int = 1) -> Job:
        command = f"benchmarks.training OUT {cases} --seconds {seconds - 20}"
        return job(name, command, seconds, gpus)

    return [
        job("attention", "benchmarks.attention --out OWN_FOLDER", 200),
        job("windows", "benchmarks.windows --out OUT", 60),
        job("rotary", "benchmarks.rotary --out OUT", 60),
        job("products", "benchmarks.products --seconds 100 --out OUT", 120),
        job("norms", "benchmarks.norms --seconds 100 --out OUT", 120),
        job("documents", "benchmarks.documents --out OUT", 110),
        ranks("documents-ring", "benchmarks.documents_ring OUT", 80, gpus=2),
        ranks("ring", "benchmarks.ring OUT", 60, gpus=2),
        job("rivals", "benchmarks.rivals --gpus 2 --seconds 520 --out OUT", 540, gpus=2),
        job("guard", "benchmarks.guard OUT", 170, gpus=2),
        steps("training", "98k 98k-op 98k-full 98k-dense 98k-dense-op 98k-530M", 420),
        steps("training-windows", "98k 98k-windows 98k-all", 190),
        steps("training-growing", "98k-growing", 140),
        steps("training-float8", "98k-float8-tensorwise 98k-float8-rowwise", 150),
        steps("training-long", "786432-L4 851968-L4 1048576-L4", 300),
        steps("training-offload", "851968-L4-offload 1572864-L4-offload", 300),
        steps("training-2", "196k-cp2 196k-dense-cp2 524k-cp2", 260, gpus=2),
        steps("training-4", "530M-524k-cp4:lighthouse,dense 524k-cp4", 300, gpus=4),
        steps("8B-131k-2", "8B-131k-cp2", 500, gpus=2),
        steps("8B-131k-4", "8B-131k-cp4", 400, gpus=4),
        steps("8B-524k-4", "8B-524k-cp4:lighthouse,window,dense", 700, gpus=4),
        steps("8B-1m-4", "8B-1m-cp4-offload:lighthouse,window", 450, gpus=4),
        steps("8B-262k-2", "8B-262k-cp2:published,lighthouse,window,short", 400, gpus=2),
        steps("8B-524k-2", "8B-524k-cp2-offload:lighthouse", 400, gpus=2),
        job("extend", "benchmarks.study.extend SHORT TEXT OWN_FOLDER", 300, after=SHORT),
    ]


def jobs(folder: Path, text: Path) -> list[Job]:
    """The study's runs, then all else."""
    study = [job for name in rivals.SETTINGS for job in rivals.jobs(folder, text, name)]
    return study + measurements(folder, text)


def chosen(found: Sequence[Job], only: Iterable[str]) -> list[Job]:
    """Those whose names begin so, in that order, each behind what it needs.

    Raises:
        ValueError: there is none.
    """
    by_name = {job.name: job for job in found}
    ordered: dict[str, Job] = {}

    def add(job: Job) -> None:
        for name in job.after:
            add(by_name[name])
        ordered.setdefault(job.name, job)

    for word in only:
        matching = [job for job in found if job.name.startswith(word)]
        if not matching:
            raise ValueError(f"--only {word}: there are {', '.join(by_name)}")
        for job in matching:
            add(job)
    return list(ordered.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of all together")
    parser.add_argument("--only", nargs="+", default=[""])
    options = parser.parse_args(arguments)
    folder, text = options.folder.resolve(), options.text.resolve()
    try:
        found = chosen(jobs(folder, text), options.only)
    except ValueError as error:
        parser.error(str(error))
    run(folder, found, options.gpus, seconds=options.seconds)


if __name__ == "__main__":
    main()
