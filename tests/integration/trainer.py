"""Runs of the trainer for the integration tests: data, tokenizer, command line, logged numbers."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tests.integration.processes import ROOT, run_module

SEQ_LEN = 128


@dataclass(frozen=True)
class Sources:
    """Folders that every run of a test reads.

    Attributes:
        assets: A byte-level Hugging Face tokenizer.
        data: Lines of text, each of which fills one training sample exactly.
        split_data: The same lines, those at even places before those at odd ones: two data-parallel
            ranks, which take a half each, see at every step what one process sees in `data`.
    """

    assets: Path
    data: Path
    split_data: Path


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
    # A sample is SEQ_LEN inputs and one label more, of which two tokens are <s> and </s>.
    lines = [" ".join(draw.choices(words, k=100))[: SEQ_LEN - 1] for _ in range(64)]
    for path, ordered in ((sources.data, lines), (sources.split_data, lines[::2] + lines[1::2])):
        (path / "data.json").write_text("".join(json.dumps({"text": x}) + "\n" for x in ordered))
    return sources


def run_trainer(
    folder: Path,
    sources: Sources,
    *options: str,
    processes: int = 1,
    module: str = "torchtitan.train",
    path: Path = ROOT,
) -> str:
    """Train upstream's debug model on CPUs through torchrun, and return what it printed.

    Args:
        folder: The run's folder; its TensorBoard log goes below it.
        sources: Tokenizer and text.
        options: Further command-line options, which win over the values here.
        processes: Number of processes.
        module: What torchrun starts.
        path: The folder that the module and torchtitan are imported from.
    """
    config = {
        "job": {"dump_folder": str(folder)},
        "model": {
            "name": "llama3",
            "flavor": "debugmodel",
            "hf_assets_path": str(sources.assets),
        },
        "optimizer": {"lr": 8e-4},
        "lr_scheduler": {"warmup_steps": 2},
        "training": {
            "dataset": "c4_test",
            "dataset_path": str(sources.data),
            "seq_len": SEQ_LEN,
            "local_batch_size": 2,
            "steps": 5,
        },
        "metrics": {"log_freq": 1, "enable_tensorboard": True, "disable_color_printing": True},
        "debug": {"seed": 7},
    }
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "config.toml"
    config_file.write_text(tomli_w.dumps(config))
    code, output = run_module(
        *(module, f"--job.config_file={config_file}", *options),
        ranks=processes,
        environment={
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HOME": str(folder / "huggingface"),
            "HF_HUB_OFFLINE": "1",
        },
        path=path,
    )
    assert code == 0, output[-6000:]
    return output


def logged(folder: Path, tag: str) -> list[float]:
    """Return the values, one a step, that the run logged under the tag, as exact as float32."""
    (log,) = (folder / "tb").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(log))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]
