"""What ``training.py`` measures: cases, and each as the sizes that the cost model takes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lighthouse.cost.sizes import Layout, Model, Work
from lighthouse.titan.config.stages import Stage, Stages
from lighthouse.titan.distributed.layout import layout_of
from lighthouse.titan.plan.job import machine_of, parse
from lighthouse.titan.plan.work import model_of, work_of

BASE = Path(__file__).parents[1] / "train_configs" / "530M_byte_98k.toml"

NO_AC = "--activation_checkpoint.mode none"
OP_AC = "--activation_checkpoint.mode selective --activation_checkpoint.selective_ac_option op"
FULL_AC = "--activation_checkpoint.mode full"
DENSE = "--lighthouse.no-enable"
WINDOWS = "--lighthouse.dense_layers --lighthouse.window_layers 0 1 28 29 --lighthouse.window 4096"
REAL_VOCABULARY = "--model.flavor 530M --training.loss_chunk_tokens 8192"
LONG = "--training.loss_chunk_tokens 65536 --lighthouse.dense_layers " + FULL_AC
MILLION = f"--lighthouse.num_levels 4 --lighthouse.topk 4096 {LONG}"
OFFLOAD = "--activation_checkpoint.offload"
FFN_CHUNKS = "--training.ffn_chunk_tokens 16384"
RING = "--parallelism.context_parallel_degree"
# Upstream's converter, which needs torchao; the chunked loss wants the output layer as it is.
FLOAT8 = (
    "--model.converters quantize.linear.float8 --quantize.linear.float8.filter_fqns output "
    "--quantize.linear.float8.recipe_name"
)
ALL_TO_ALL = "--parallelism.context_parallel_rotate_method alltoall"

Table = dict[str, Any]
Run = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is run: on how many GPUs, with which flags, for how many steps.

    Attributes:
        steps: of the run, or of each stage whose table does not say it.
        warmup: steps of each stage that are not measured.
        log_every: steps between lines of the log, each of which waits for the GPU. A stage's steps
            are a multiple of it.
        stages: tables of ``[[stages]]`` by name; none for a run without.
    """

    gpus: int
    flags: str
    steps: int = 12
    warmup: int = 3
    log_every: int = 1
    stages: dict[str, Table] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Its ``[[stages]]``."""
        return [{"steps": self.steps} | table for table in self.stages.values()]

    def only(self, names: Sequence[str]) -> "Case":
        """The case with some of its stages, in that order; all of them where none is named.

        Raises:
            ValueError: it has no stage of that name.
        """
        unknown = [name for name in names if name not in self.stages]
        if unknown:
            there = ", ".join(self.stages) or "none"
            raise ValueError(f"stage {unknown[0]!r}: the case has these: {there}")
        return replace(self, stages={name: self.stages[name] for name in names or self.stages})


def cases() -> dict[str, Case]:
    """The runs by name. Runs on several GPUs have one of the same chunks on one beside them."""

    def at_98k(flags: str) -> Case:
        return Case(1, flags, log_every=3)

    known = {
        "98k": at_98k(NO_AC),
        "98k-op": at_98k(OP_AC),
        "98k-full": at_98k(FULL_AC),
        "98k-autocast": at_98k(f"--parallelism.no-fsdp_on_one_rank {NO_AC}"),
        "98k-windows": at_98k(f"{WINDOWS} {NO_AC}"),
        "98k-all": at_98k(f"--lighthouse.dense_layers {NO_AC}"),
        "98k-dense": at_98k(f"{DENSE} {NO_AC}"),
        "98k-dense-op": at_98k(f"{DENSE} {OP_AC}"),
        "98k-dense-full": at_98k(f"{DENSE} {FULL_AC}"),
        "98k-float8-tensorwise": at_98k(f"{FLOAT8} tensorwise {NO_AC}"),
        "98k-float8-rowwise": at_98k(f"{FLOAT8} rowwise {NO_AC}"),
        # A step of about 100 ms: guard.py
        "16k-sharded": Case(
            2, f"--training.seq_len 16384 --lighthouse.topk 256 {NO_AC}", steps=400
        ),
        "98k-growing": Case(1, NO_AC, steps=20, warmup=2, log_every=5, stages=_growing(98304)),
        "98k-530M": at_98k(f"{REAL_VOCABULARY} {NO_AC}"),
        "98k-530M-op": at_98k(f"{REAL_VOCABULARY} {OP_AC}"),
    }
    for length in (262144, 524288, 786432, 851968, 917504, 1048576):
        known[f"{length}-L4"] = Case(1, f"--training.seq_len {length} {MILLION}", steps=7)

    # As many tokens on a GPU as Llama-3-8B has of 524,288 on two.
    two_layers = "--model.flavor 8B --model.args.n_layers 2 --training.loss_chunk_tokens 4096"
    two_layers += f" --training.seq_len 262144 --lighthouse.dense_layers {FULL_AC}"
    two_layers += " --lighthouse.num_levels 4 --lighthouse.topk 4096"
    known |= {
        "8B-2-layers": Case(1, two_layers, steps=5, warmup=2),
        "8B-2-layers-float8": Case(1, f"{two_layers} {FLOAT8} tensorwise", steps=5, warmup=2),
    }

    # The first is beside one without; of the host, 1,966,080 tokens take 109 GiB, the last 160.
    for length in (851968, 1572864, 1966080, 2359296):
        flags = f"--training.seq_len {length} {MILLION} {OFFLOAD}"
        known[f"{length}-L4-offload"] = Case(1, flags, steps=7)
    for length in (851968, 1966080, 2752512):
        flags = f"--training.seq_len {length} {MILLION} {OFFLOAD} {FFN_CHUNKS}"
        known[f"{length}-L4-offload-ffn"] = Case(1, flags, steps=7)

    shared = f"--training.seq_len 196608 --lighthouse.topk 3072 --lighthouse.num_chunks 4 {OP_AC}"
    half = f"--training.seq_len 262144 --lighthouse.topk 4096 --lighthouse.num_chunks 4 {LONG}"
    whole = f"--training.seq_len 524288 --lighthouse.topk 8192 {LONG} --lighthouse.num_chunks"
    known |= {
        "196k-one": Case(1, shared),
        "196k-cp2": Case(2, f"{shared} {RING} 2"),
        "196k-cp2-alltoall": Case(2, f"{shared} {RING} 2 {ALL_TO_ALL}"),
        "196k-dense-one": Case(1, f"{shared} {DENSE}", steps=5),
        "196k-dense-cp2": Case(2, f"{shared} {DENSE} {RING} 2", steps=5),
        "262k-one": Case(1, half, steps=7),
        "524k-one": Case(1, f"{whole} 4", steps=7),
        "524k-cp2": Case(2, f"{whole} 4 {RING} 2", steps=7),
        "524k-cp2-alltoall": Case(2, f"{whole} 4 {RING} 2 {ALL_TO_ALL}", steps=7),
        "524k-one-8": Case(1, f"{whole} 8", steps=7),
        "524k-cp4": Case(4, f"{whole} 8 {RING} 4", steps=7),
        "524k-cp4-alltoall": Case(4, f"{whole} 8 {RING} 4 {ALL_TO_ALL}", steps=7),
    }
    return known | _staged_cases()


def named(word: str) -> tuple[str, Case]:
    """A case by what the command line calls it: ``CASE``, or ``CASE:STAGE,...``.

    Raises:
        ValueError: there is none of that name.
    """
    name, _, stages = word.partition(":")
    known = cases()
    if name not in known:
        raise ValueError(f"case {name!r}: there are {', '.join(known)}")
    return name, known[name].only(stages.split(",") if stages else [])


def _staged_cases() -> dict[str, Case]:
    """A recipe's stages in one run on several GPUs, beside dense attention at full length.

    Parameters and optimizer are sharded over the context-parallel ranks.
    """
    million = "--lighthouse.num_levels 4 --lighthouse.topk 4096 --training.loss_chunk_tokens 65536"
    large = "--model.flavor 8B --training.loss_chunk_tokens 4096"
    both = f"{OFFLOAD} {FFN_CHUNKS}"
    four_levels = "--lighthouse.num_levels 4 --lighthouse.topk 4096"
    case = _staged
    return {
        "530M-524k-cp4": case(4, 524288, 30, million),
        "530M-1m-cp8": case(8, 1048576, 30, million),
        "8B-131k-cp4": case(4, 131072, 32, f"{large} --lighthouse.topk 2048"),
        "8B-262k-cp4": case(4, 262144, 32, f"{large} --lighthouse.topk 4096"),
        "8B-524k-cp4": case(4, 524288, 32, f"{large} {four_levels}", dense_steps=2),
        "8B-131k-cp2": case(2, 131072, 32, f"{large} --lighthouse.topk 2048"),
        "8B-131k-cp2-float8": case(
            2, 131072, 32, f"{large} --lighthouse.topk 2048 {FLOAT8} tensorwise"
        ),
        "8B-262k-cp2": case(2, 262144, 32, f"{large} --lighthouse.topk 4096"),
        "8B-524k-cp2": case(2, 524288, 32, f"{large} {four_levels}"),
        "8B-262k-cp2-offload": case(2, 262144, 32, f"{large} --lighthouse.topk 4096 {OFFLOAD}"),
        "8B-262k-cp2-ffn": case(2, 262144, 32, f"{large} --lighthouse.topk 4096 {FFN_CHUNKS}"),
        "8B-524k-cp2-offload": case(2, 524288, 32, f"{large} {four_levels} {OFFLOAD}"),
        "8B-524k-cp2-offload-ffn": case(2, 524288, 32, f"{large} {four_levels} {both}"),
        "8B-786k-cp2-offload-ffn": case(2, 786432, 32, f"{large} {four_levels} {both}"),
        "8B-1m-cp4-offload": case(4, 1048576, 32, f"{large} {four_levels} {OFFLOAD}"),
        "8B-1m-cp4-offload-ffn": case(4, 1048576, 32, f"{large} {four_levels} {both}"),
    }


def _growing(seq_len: int) -> dict[str, Table]:
    """The stages of ``train_configs/growing_98k.toml`` but for the last, one micro-batch a step."""

    def dense(length: int) -> Table:
        return {"attention": "dense", "seq_len": length, "local_batch_size": seq_len // length}

    return {"2k": dense(2048), "8k": dense(8192), "window": {"attention": "window", "window": 8192}}


def _staged(gpus: int, seq_len: int, layers: int, flags: str, dense_steps: int = 3) -> Case:
    ends = [0, 1, layers - 2, layers - 1]
    sparse = {"attention": "lighthouse"}
    stages: dict[str, Table] = {
        "published": {**sparse, "selection": "published", "dense_layers": ends},
        "lighthouse": {**sparse, "dense_layers": []},
        "window": _growing(seq_len)["window"],
        "short": _growing(seq_len)["8k"],
        "dense": {"attention": "dense", "steps": dense_steps},
    }
    flags = f"--training.seq_len {seq_len} {flags} {FULL_AC} {RING} {gpus}"
    return Case(gpus, flags, steps=4, warmup=1, stages=stages)


def sizes(run: Run) -> tuple[Model, Layout, Work]:
    """What :func:`lighthouse.cost.step.cost` takes for a result of ``training.py``."""
    return _sizes(run["flags"], run["gpus"], json.dumps(run.get("stage_table", {})))


@cache
def _sizes(flags: str, gpus: int, table_json: str) -> tuple[Model, Layout, Work]:
    one_micro_batch = ["--training.global_batch_size", "-1"]
    args = ["--job.config_file", str(BASE), *one_micro_batch, *flags.split()]
    job_config = parse(args, machine_of("h100", gpus))
    model, layout = model_of(job_config), layout_of(job_config, gpus)
    stage = Stages.of(job_config).at(1)
    if table := json.loads(table_json):
        seq_len = table.get("seq_len", job_config.training.seq_len)
        stage = Stage(1, table["attention"], 1, table["steps"], seq_len, table=table)
    layers = stage.layers(job_config, model.layers)
    return model, layout, work_of(stage.job(job_config), layout, tuple(layers))


def tokens_per_step(run: Run) -> int:
    """Of all GPUs."""
    _, layout, work = sizes(run)
    return work.local_batch * layout.batch * work.accumulation * work.seq_len
