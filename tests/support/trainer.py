"""Real training runs in processes of their own, tiny ones."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tests.support import ROOT
from tests.support.processes import run_module

Options = Mapping[str, object]
"""Keys of the trainer's configuration, dotted, and values."""

TINY: Options = {
    "model.flavor": "tiny_byte",
    "model.tokenizer": "byte",
    "training.dataset": "python",
    "training.seq_len": 256,
    "training.local_batch_size": 2,
    "training.mixed_precision_param": "float32",
    "metrics.log_freq": 1,
    "debug.seed": 7,
    "optimizer.lr": 0.002,
    "lr_scheduler.warmup_steps": 2,
    "activation_checkpoint.mode": "none",
    "lighthouse.topk": 16,
    "lighthouse.stratum": 8,
}
"""The byte model over the embedded corpus."""

DEBUG_SEQ_LEN = 128


@dataclass
class Run:
    """A finished process and the folder it wrote."""

    folder: Path
    returncode: int
    output: str

    def lines(self) -> list[dict[str, Any]]:
        """Every line of the run's metrics."""
        return list(map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines()))

    def losses(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm of each step in full precision, the last line of a step counts."""
        training = (line for line in self.lines() if "loss" in line)
        return {line["step"]: (line["loss"], line["grad_norm"]) for line in training}

    def values(self, key: str) -> dict[int, float]:
        """A metric at the steps that have it."""
        return {line["step"]: line[key] for line in self.lines() if key in line}

    def tensorboard(self, tag: str) -> dict[int, float]:
        """The same from TensorBoard's log, which upstream has too; as exact as float32."""
        (log,) = (self.folder / "tb").rglob("events.out.tfevents.*")
        events = EventAccumulator(str(log))
        events.Reload()
        return {event.step: event.value for event in events.Scalars(tag)}

    def checkpoint(self, step: int) -> Path:
        return self.folder / "checkpoint" / f"step-{step}"

    def refusal(self) -> str:
        """The sentence that it was refused with."""
        (sentence,) = [
            line.removeprefix("refused: ")
            for line in self.output.splitlines()
            if line.startswith("refused: ")
        ]
        return sentence


def train(
    folder: Path,
    *args: str,
    base: Options = TINY,
    processes: int = 1,
    env: Mapping[str, str] | None = None,
    module: str = "torchtitan.train",
    path: Path = ROOT,
    ok: bool = True,
) -> Run:
    """Run the trainer.

    Args:
        folder: the job's dump folder.
        args: command-line options, which win over ``base``.
        base: what is trained.
        processes: local processes.
        env: what differs from this process's environment.
        module: what is started.
        path: the folder that the module and torchtitan are imported from.
        ok: whether the process must succeed.
    """
    options = flags({"job.dump_folder": folder, **base})
    ranks: int | None = processes
    if processes == 1:
        single = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        rendezvous = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
        env, ranks = {**(env or {}), **single, **rendezvous}, None
    code, output = run_module(*(module, *options, *args), ranks=ranks, environment=env, path=path)
    if ok:
        assert code == 0, output
    else:
        assert code != 0, output
    return Run(folder, code, output)


def flags(options: Options) -> list[str]:
    """Options as the trainer's command line has them."""
    found = []
    for key, value in options.items():
        if isinstance(value, bool):
            section, name = key.rsplit(".", 1)
            found.append(f"--{section}.{name if value else f'no-{name}'}")
        else:
            found.append(f"--{key}={value}")
    return found


@dataclass(frozen=True)
class Sources:
    """Folders that every run of a test reads.

    Attributes:
        assets: a byte-level Hugging Face tokenizer.
        data: lines of text, each of which fills one training sample exactly.
        split_data: the same lines, those at even places before those at odd ones: two data-parallel
            ranks, which take a half each, see at every step what one process sees in ``data``.
    """

    assets: Path
    data: Path
    split_data: Path

    def debug_model(self) -> Options:
        """Upstream's debug model over this text: what upstream itself can train."""
        return {
            "model.name": "llama3",
            "model.flavor": "debugmodel",
            "model.hf_assets_path": self.assets,
            "optimizer.lr": 8e-4,
            "lr_scheduler.warmup_steps": 2,
            "training.dataset": "c4_test",
            "training.dataset_path": self.data,
            "training.seq_len": DEBUG_SEQ_LEN,
            "training.local_batch_size": 2,
            "training.steps": 5,
            "metrics.log_freq": 1,
            "metrics.enable_tensorboard": True,
            "metrics.disable_color_printing": True,
            "debug.seed": 7,
        }

    def environment(self) -> dict[str, str]:
        """For a run of it on CPUs, without a network."""
        cache = str(self.assets.parent / "huggingface")
        return {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}


def write_sources(folder: Path) -> Sources:
    """Write the folders of `Sources`; always the same text."""
    sources = Sources(folder / "assets", folder / "data", folder / "split_data")
    for path in (sources.assets, sources.data, sources.split_data):
        path.mkdir(parents=True)
    pieces = ["<s>", "</s>", *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(pieces[:2])
    tokenizer.save(str(sources.assets / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    (sources.assets / "tokenizer_config.json").write_text(json.dumps(special))

    words = (ROOT / "LICENSE").read_text().split()
    draw = random.Random(0)
    # A sample is DEBUG_SEQ_LEN inputs and one label more, of which two tokens are <s> and </s>.
    length = DEBUG_SEQ_LEN - 1
    lines = [" ".join(draw.choices(words, k=100))[:length] for _ in range(64)]
    for path, ordered in ((sources.data, lines), (sources.split_data, lines[::2] + lines[1::2])):
        (path / "data.json").write_text("".join(json.dumps({"text": x}) + "\n" for x in ordered))
    return sources
