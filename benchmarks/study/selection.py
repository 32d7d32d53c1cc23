"""What the causal selection is worth: the runs of docs/selection.md.

    python -m benchmarks.study.selection STUDY_FOLDER TEXT_FOLDER [--gpus 2] [--a-gpu 2]

Published, causal and random selection, (a) from scratch at 16,384 tokens with the first and the
last layer dense and with none, (b) as the extension to 65,536 tokens of a model trained at 2,048.
Each Lighthouse stage is trained once; its checkpoints at 70, 90 and 98% of the steps go on under
dense attention, on the same schedule of the learning rate. Beside them stand dense attention
throughout, and the causal selection in strata of two places, which leaves less to compete for.
The text is that of ``benchmarks/study/text.py``. Runs that are done are skipped, so the same
command goes on where it was stopped.
"""

import argparse
from pathlib import Path

from benchmarks.jobs import Job, run
from benchmarks.study.jobs import training

SELECTIONS = {
    "published": "--lighthouse.selection published",
    "causal": "--lighthouse.selection causal",
    "random": "--lighthouse.selection causal --lighthouse.scorer random",
}
QUOTA = "--lighthouse.selection causal --lighthouse.stratum 2"
SEEDS = (1, 2, 3)
TAILS = {30: 0.7, 10: 0.9, 2: 0.98}
SHORT_STEPS = 2500
EXTENSION_STEPS = 400
SCRATCH_STEPS = 800


def jobs(study: Path, text: Path, quick: bool) -> list[Job]:
    """All runs, in the order of their weight."""
    data = f"--training.dataset_path {text}/train --validation.dataset_path {text}/val"
    data += " --validation.enable"
    short_steps, extension_steps, scratch_steps = (
        (6, 100, 100) if quick else (SHORT_STEPS, EXTENSION_STEPS, SCRATCH_STEPS)
    )

    def short(seed: int) -> Job:
        flags = f"{data} --debug.seed {seed} --training.steps {short_steps} --lighthouse.no-enable"
        flags += " --training.seq_len 2048 --training.local_batch_size 64"
        flags += " --validation.seq_len 2048 --validation.local_batch_size 64 --validation.steps 4"
        flags += " --validation.freq 250 --optimizer.lr 1e-3 --lr_scheduler.warmup_steps 100"
        flags += f" --lr_scheduler.decay_ratio 0 --checkpoint.interval {short_steps}"
        return training(study, f"short-{seed}", flags)

    def staged(
        name: str, flags: str, steps: int, after: tuple[str, ...], leaks: tuple[float, ...]
    ) -> list[Job]:
        """A Lighthouse stage, its leak at shares of the steps, and the tails from it."""
        ends = {tail: round(share * steps) for tail, share in TAILS.items()}
        common = f"{data} {flags} --lighthouse.enable --lr_scheduler.total_steps {steps}"
        common += f" --checkpoint.interval {steps // 10}"
        last = f"--training.steps {max(ends.values())} --lighthouse.validate_dense"
        found = [training(study, name, f"{common} {last}", after)]
        for step in (round(share * steps) for share in leaks):
            command = ("lighthouse.leak", str(study / name), "--step", str(step))
            options = ("--positions", "16" if quick else "768", "--sequences", "16")
            found.append(Job(f"{name}-leak-{step}", (*command, *options), (name,)))
        for tail, end in ends.items():
            start = f"--checkpoint.initial_load_path {study}/{name}/checkpoint/step-{end}"
            start += " --checkpoint.no-initial_load_model_only --checkpoint.load_only"
            dense = f"--training.steps {steps} --lighthouse.dense_from_step {end + 1}"
            found.append(
                training(study, f"{name}-tail-{tail}", f"{common} {start} {dense}", (name,))
            )
        return found

    def extension(selection: str, seed: int) -> list[Job]:
        flags = f"{SELECTIONS.get(selection, QUOTA)} --debug.seed {seed}"
        flags += (
            f" --checkpoint.initial_load_path {study}/short-{seed}/checkpoint/step-{short_steps}"
        )
        flags += " --validation.seq_len 65536 --validation.local_batch_size 2 --validation.steps 8"
        leaks = (0.3, 0.9) if seed == 1 else (0.9,)
        name, after = f"extension-{selection}-{seed}", (f"short-{seed}",)
        return staged(name, flags, extension_steps, after, leaks)

    def scratch(selection: str, pattern: str) -> list[Job]:
        flags = f"{SELECTIONS[selection]} --training.seq_len 16384 --training.local_batch_size 8"
        flags += " --validation.seq_len 16384 --validation.local_batch_size 8 --validation.steps 8"
        flags += " --validation.freq 80 --lighthouse.topk 256 --optimizer.lr 1e-3"
        flags += " --lr_scheduler.warmup_steps 50"
        flags += " --lighthouse.dense_layers 0 7" if pattern == "ends" else ""
        leaks = (0.3, 0.9) if pattern == "none" else (0.9,)
        return staged(f"scratch-{pattern}-{selection}", flags, scratch_steps, (), leaks)

    def dense(seed: int) -> Job:
        flags = f"{data} --debug.seed {seed} --training.steps {extension_steps}"
        flags += (
            f" --checkpoint.initial_load_path {study}/short-{seed}/checkpoint/step-{short_steps}"
        )
        flags += " --validation.seq_len 65536 --validation.local_batch_size 2 --validation.steps 8"
        flags += f" --lighthouse.no-enable --checkpoint.interval {extension_steps}"
        return training(study, f"extension-dense-{seed}", flags, (f"short-{seed}",))

    shorts = [short(seed) for seed in SEEDS]
    pair = ("published", "causal")
    first, second, third = ([extension(name, seed) for name in pair] for seed in SEEDS)
    control = [extension("random", 1)]
    none, ends = ([scratch(name, pattern) for name in SELECTIONS] for pattern in ("none", "ends"))

    def stages(groups: list[list[Job]]) -> list[Job]:
        return [job for group in groups for job in group if "-tail-" not in job.name]

    def tails(share: int, *groups: list[list[Job]]) -> list[Job]:
        found = [job for part in groups for group in part for job in group]
        return [job for job in found if job.name.endswith(f"-tail-{share}")]

    return [
        *shorts[:2],
        *(*stages(first), *tails(10, first)),
        *(*stages(second), *tails(10, second)),
        shorts[2],
        *(*stages(third), *tails(10, third)),
        *(*stages(control), *tails(10, control)),
        *(*stages(none[:2]), *stages(ends[:2])),
        *stages([extension("quota", 1)]),
        *tails(30, first, control),
        *tails(10, none[:2], ends[:2]),
        *tails(2, first, control),
        dense(1),
        *tails(30, second, third),
        *tails(30, none[:2], ends[:2]),
        *(*stages(none[2:]), *tails(10, none[2:])),
        *(*stages(ends[2:]), *tails(10, ends[2:])),
        *tails(2, second, third, none, ends),
        *tails(30, none[2:], ends[2:]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--a-gpu", type=int, default=1, help="runs side by side on each")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to try it")
    parser.add_argument("--only", default="", help="jobs whose name has this in it")
    options = parser.parse_args()
    found = jobs(options.study.resolve(), options.text.resolve(), options.quick)
    run(
        options.study.resolve(),
        [job for job in found if options.only in job.name],
        options.gpus,
        options.a_gpu,
    )


if __name__ == "__main__":
    main()
