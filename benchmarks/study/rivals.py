"""What to do with the time after a short stage: recipes at equal wall-clock.

    python -m benchmarks.study.rivals STUDY_FOLDER TEXT_FOLDER [--gpus 2] [--only NAME ...]

Every recipe goes on from the weights of a stage at 2,048 tokens, takes about as long as its setting
gives, and ends under dense attention at full length. One text in twenty is a recall task
(``training.task_rate``). Each run is then asked what it can do by ``lighthouse.evaluate``.
Runs are ``SETTING-RECIPE-RATE-SEED``; those that are done are skipped.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.jobs import Job, run
from benchmarks.study.jobs import BASE, training

RATES = ("1e-3", "5e-4", "2.5e-4", "2e-3")
SEEDS = (1, 2, 3)

Stages = tuple[dict[str, Any], ...]

EVALUATION_SECONDS = 80.0
"""That what is asked of a run may take."""

FLAGS = {
    # What its windows are.
    "moba": "--experimental.custom_import benchmarks.study.moba",
    # All others decay in the last 14% of their steps.
    "grow-window-8-decay": "--lr_scheduler.decay_ratio 0.085",
}
"""Of recipes that are more than their stages."""


@dataclass(frozen=True)
class Setting:
    """A length, a size, and the recipes that are tried there.

    Attributes:
        seq_len: of the last stage.
        tokens: of a step, in every stage of every recipe.
        recipes: the stages of each.
        short_steps: of the short stage.
        topk: of Lighthouse layers.
        model: sizes other than those of ``base.toml``.
        short_seconds: that the short stage may take.
        seconds: that a recipe may take.
        after_short: whether they go on from a short stage, or from scratch.
    """

    seq_len: int
    tokens: int
    recipes: dict[str, Stages]
    short_steps: int = 2500
    topk: int = 1024
    model: dict[str, int] = field(default_factory=dict)
    short_seconds: float = 280.0
    seconds: float = 240.0
    after_short: bool = True


def _of(attention: str, steps: int, seq_len: int | None = None, **keys: Any) -> dict[str, Any]:
    length = {} if seq_len is None else {"seq_len": seq_len}
    return {"attention": attention, "steps": steps, **length, **keys}


LAYERS = {"window": 2048, "window_layers": [0, 2, 4, 6]}
ENDS = {"dense_layers": [0, 7]}
GROW_WINDOW = (_of("dense", 680, 8192), _of("window", 130, window=8192), _of("dense", 75))

AT_65K = Setting(
    65536,
    131072,
    {
        # At full length throughout, and growing lengths.
        "dense": (_of("dense", 300),),
        "short": (_of("dense", 775, 2048), _of("dense", 180)),
        "grow": (_of("dense", 500, 8192), _of("dense", 180)),
        "grow-10": (_of("dense", 850, 8192), _of("dense", 90)),
        "grow-twice": (_of("dense", 450, 8192), _of("dense", 120, 32768), _of("dense", 115)),
        # Lighthouse in most layers.
        "causal": (_of("lighthouse", 507), _of("dense", 218)),
        "causal-ends": (_of("lighthouse", 371, **ENDS), _of("dense", 159)),
        "published-ends": (
            _of("lighthouse", 371, **ENDS, selection="published"),
            _of("dense", 159),
        ),
        # Full resolution nearby.
        "window": (_of("window", 570, window=2048), _of("dense", 180)),
        "layers": (_of("lighthouse", 650, **LAYERS), _of("dense", 180)),
        # Three blocks of 512 that MoBA selects, a token's own among them.
        "moba": (_of("window", 150, window=1536), _of("dense", 180)),
        # Short first, then Lighthouse with full resolution nearby.
        "grow-layers": (
            _of("dense", 250, 8192),
            _of("lighthouse", 310, **LAYERS),
            _of("dense", 180),
        ),
        # Short first, then windows, and a shorter tail.
        "grow-window-2": (
            _of("dense", 900, 8192),
            _of("window", 130, window=8192),
            _of("dense", 25),
        ),
        "grow-window-8": GROW_WINDOW,
        # The same, its decay the dense end alone.
        "grow-window-8-decay": GROW_WINDOW,
        # The same with windows that grow before the dense end.
        "grow-windows": (
            _of("dense", 680, 8192),
            _of("window", 130, window=8192),
            _of("window", 40, window=32768),
            _of("dense", 42),
        ),
        # The same with half as long a dense end, and with twice.
        "grow-window-4": (
            _of("dense", 760, 8192),
            _of("window", 145, window=8192),
            _of("dense", 38),
        ),
        "grow-window-16": (
            _of("dense", 560, 8192),
            _of("window", 105, window=8192),
            _of("dense", 126),
        ),
    },
)
# About 175 seconds: the winner at 65,536 tokens, its strongest rivals, and dense.
AT_98K = Setting(
    98304,
    196608,
    {
        "dense": (_of("dense", 160),),
        "grow-twice": (_of("dense", 400, 8192), _of("dense", 90, 32768), _of("dense", 56)),
        "grow-window-8": (
            _of("dense", 400, 8192),
            _of("window", 175, window=8192),
            _of("dense", 48),
        ),
        "grow-window-6": (
            _of("dense", 450, 8192),
            _of("window", 170, window=8192),
            _of("dense", 40),
        ),
        # As many tokens as dense has, in less than half of its time.
        "few-window-8": (
            _of("dense", 72, 8192),
            _of("window", 40, window=8192),
            _of("dense", 48),
        ),
    },
    short_steps=1667,
    topk=1536,
)
# Four times the parameters, 107 million, for the winner, its strongest rival, Lighthouse and dense.
# About 270 seconds each, after as many short steps as the smaller one has.
LARGER = Setting(
    65536,
    131072,
    {
        "dense": (_of("dense", 200),),
        "grow-twice": (_of("dense", 300, 8192), _of("dense", 80, 32768), _of("dense", 75)),
        "grow-window-8": (
            _of("dense", 450, 8192),
            _of("window", 85, window=8192),
            _of("dense", 50),
        ),
        "causal": (_of("lighthouse", 320), _of("dense", 138)),
    },
    model={"dim": 768, "n_layers": 14, "n_heads": 6, "ffn_dim": 2304},
    short_seconds=650.0,
    seconds=320.0,
)
# At equal steps: what the published comparison is.
FROM_SCRATCH = Setting(
    65536,
    131072,
    {
        "dense": (_of("dense", 600),),
        "published-ends": (
            _of("lighthouse", 420, **ENDS, selection="published"),
            _of("dense", 180),
        ),
        "published-ends-50": (
            _of("lighthouse", 300, **ENDS, selection="published"),
            _of("dense", 300),
        ),
        "published-ends-90": (
            _of("lighthouse", 540, **ENDS, selection="published"),
            _of("dense", 60),
        ),
    },
    after_short=False,
)

SETTINGS = {"65k": AT_65K, "98k": AT_98K, "107M": LARGER, "scratch": FROM_SCRATCH}


def short_name(setting: str, seed: int) -> str:
    return f"{setting}-first-{seed}"


def _data(text: Path) -> str:
    return (
        f"--training.dataset_path {text}/train --validation.dataset_path {text}/val "
        "--validation.enable --training.task_rate 0.05 --training.dataloader.num_workers 1"
    )


def short(study: Path, text: Path, setting: str, seed: int) -> Job:
    """The stage that every recipe goes on from."""
    at = SETTINGS[setting]
    rows = at.tokens // 2048
    flags = f"{_data(text)} --debug.seed {seed} --training.steps {at.short_steps}"
    flags += f" --lighthouse.no-enable --training.seq_len 2048 --training.local_batch_size {rows}"
    flags += f" --validation.seq_len 2048 --validation.local_batch_size {rows}"
    flags += " --validation.steps 4 --validation.freq 500 --optimizer.lr 1e-3"
    flags += " --lr_scheduler.warmup_steps 100 --lr_scheduler.decay_ratio 0"
    flags += f" --checkpoint.interval {at.short_steps}"
    file = _write(study, f"{setting}-first.toml", {"model": {"args": at.model}})
    name = short_name(setting, seed)
    return training(study, name, flags, config=file, seconds=at.short_seconds)


def recipe(
    study: Path, text: Path, setting: str, name: str, rate: str, seed: int
) -> tuple[Job, Job]:
    """A run, and what is asked of it afterwards."""
    at = SETTINGS[setting]
    stages = [
        {**stage, "local_batch_size": at.tokens // stage.get("seq_len", at.seq_len)}
        for stage in at.recipes[name]
    ]
    steps = sum(stage["steps"] for stage in stages)
    values = {
        "model": {"args": at.model},
        "training": {"seq_len": at.seq_len},
        "lighthouse": {"enable": True, "topk": at.topk},
        "stages": stages,
    }
    after = (short_name(setting, seed),) if at.after_short else ()
    rows = at.tokens // at.seq_len
    flags = f"{_data(text)} --debug.seed {seed} --optimizer.lr {rate}"
    flags += f" --validation.seq_len {at.seq_len} --validation.local_batch_size {rows}"
    flags += " --validation.steps 4 --validation.freq 100"
    for before in after:
        flags += (
            f" --checkpoint.initial_load_path {study}/{before}/checkpoint/step-{at.short_steps}"
        )
    flags += f" --checkpoint.interval {steps}"
    flags += f" {FLAGS.get(name, '')}"
    full = f"{setting}-{name}-{rate}-{seed}"
    file = _write(study, f"{setting}-{name}.toml", values)
    lengths = [str(at.seq_len // part) for part in (16, 4, 1)]
    ask = ("lighthouse.evaluate", str(study / full), "--lengths", *lengths, "--trials", "5")
    return (
        training(study, full, flags, after, file, seconds=at.seconds),
        Job(f"{full}-evaluate", ask, (full,), seconds=EVALUATION_SECONDS),
    )


def _write(study: Path, name: str, values: dict[str, Any]) -> Path:
    """A TOML on top of ``base.toml``."""
    study.mkdir(parents=True, exist_ok=True)
    file = study / name
    file.write_text(tomli_w.dumps({"job": {"extends": str(BASE)}, **values}))
    return file


def jobs(study: Path, text: Path, setting: str = "65k") -> list[Job]:
    """The stages that come first, every recipe at one rate, at the others, with other seeds."""
    found = [short(study, text, setting, seed) for seed in SEEDS if SETTINGS[setting].after_short]
    pairs = [(rate, SEEDS[0]) for rate in RATES] + [(RATES[0], seed) for seed in SEEDS[1:]]
    for rate, seed in pairs:
        for name in SETTINGS[setting].recipes:
            found += recipe(study, text, setting, name, rate, seed)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="65k")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="jobs with one of these in the name"
    )
    options = parser.parse_args(arguments)
    study, text = options.study.resolve(), options.text.resolve()
    found = [
        job
        for job in jobs(study, text, options.setting)
        if any(part in job.name for part in options.only)
    ]
    run(study, found, options.gpus)


if __name__ == "__main__":
    main()
