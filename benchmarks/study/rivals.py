"""What to do with the time after a short stage: the rivals at equal wall-clock.

    python -m benchmarks.study.rivals STUDY_FOLDER TEXT_FOLDER [--gpus 2]

Each arm goes on from the weights that ``benchmarks.study.selection`` trains for 2,500 steps at
2,048 tokens, takes about as long as 300 dense steps at 65,536 tokens, and ends under dense
attention at that length. Rates are tried with one seed. Runs that are done are skipped.
"""

import argparse
from pathlib import Path

from benchmarks.study.jobs import Job, run, training

SHORT_STEPS = 2500
RATES = ("5e-4", "1e-3", "2.5e-4")
LONG, MIDDLE, SHORT = (
    f"--training.seq_len {length} --training.local_batch_size {batch} "
    f"--validation.seq_len {length} --validation.local_batch_size {batch}"
    for length, batch in ((65536, 2), (8192, 16), (2048, 64))
)
LIGHTHOUSE = {
    "causal-all": "--lighthouse.selection causal",
    "causal-ends": "--lighthouse.selection causal --lighthouse.dense_layers 0 7",
    "published-ends": "--lighthouse.selection published --lighthouse.dense_layers 0 7",
}
# Steps of an arm: all of them, and those before its dense stage at full length. By the rates of
# evidence at hand: a step takes 0.518 s dense, 0.084 s under Lighthouse in all layers, 0.20 s with
# two dense layers, 0.124 s at 8,192 tokens and 0.080 s at 2,048.
STEPS = {
    "dense": (300, 0),
    "grow": (680, 500),
    "short": (955, 775),
    "causal-all": (725, 507),
    "causal-ends": (530, 371),
    "published-ends": (530, 371),
}


def arm(study: Path, text: Path, name: str, rate: str, seed: int) -> list[Job]:
    """The jobs of one arm, the last of which has its name."""
    steps, first = STEPS[name]
    base = f"--training.dataset_path {text}/train --validation.dataset_path {text}/val"
    base += f" --validation.enable --debug.seed {seed} --optimizer.lr {rate}"
    base += f" --lr_scheduler.total_steps {steps} --validation.freq 100"
    base += " --validation.steps 8"
    full = f"rival-{name}-{rate}-{seed}"
    weights = f"--checkpoint.initial_load_path {study}/short-{seed}/checkpoint/step-{SHORT_STEPS}"
    if name in ("grow", "short"):
        length = MIDDLE if name == "grow" else SHORT
        early = f"{base} {weights} {length} --lighthouse.no-enable --training.steps {first}"
        early += f" --checkpoint.interval {first}"
        late = f"{base} {LONG} --lighthouse.no-enable --training.steps {steps}"
        late += f" --checkpoint.initial_load_path {study}/{full}-first/checkpoint/step-{first}"
        late += " --checkpoint.no-initial_load_model_only"
        late += f" --checkpoint.interval {steps}"
        return [
            training(study, f"{full}-first", early, (f"short-{seed}",)),
            training(study, full, late, (f"{full}-first",)),
        ]
    flags = f"{base} {weights} {LONG} --training.steps {steps} --checkpoint.interval {steps}"
    if name in LIGHTHOUSE:
        flags += f" --lighthouse.enable {LIGHTHOUSE[name]} --lighthouse.dense_from_step {first + 1}"
        flags += " --lighthouse.validate_dense"
    else:
        flags += " --lighthouse.no-enable"
    return [training(study, full, flags, (f"short-{seed}",))]


def jobs(study: Path, text: Path) -> list[Job]:
    """All arms at a rate before any at the next."""
    return [job for rate in RATES for name in STEPS for job in arm(study, text, name, rate, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--only", default="", help="jobs whose name has this in it")
    options = parser.parse_args()
    study = options.study.resolve()
    found = [job for job in jobs(study, options.text.resolve()) if options.only in job.name]
    run(study, found, options.gpus, 1)


if __name__ == "__main__":
    main()
