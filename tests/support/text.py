"""Texts on disk, the trainer's loaders of them, and what they should give."""

import json
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig

from lighthouse.titan.data.loaders import build_dataloader
from lighthouse.titan.data.tokenizer import ByteTokenizer

BOS, EOS = 256, 257
SEQ_LEN = 50


class Letters(BaseTokenizer):
    """Not a ByteTokenizer: one token per character, no bos, no eos."""

    def encode(self, text: str, **_: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))

    def get_vocab_size(self) -> int:
        return 0x110000


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [f"{i}:" + "x" * int(rng.integers(0, 120)) for i in range(count)]


def stream(documents: list[str]) -> list[int]:
    return [t for text in documents for t in (BOS, *text.encode(), EOS)]


def write_txt(folder: Path, documents: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(documents):
        (folder / f"{i:04}.txt").write_text(text)
    return folder


def write_jsonl(path: Path, documents: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in documents))


def config_for(dataset: str, path: Path | None, **training: Any) -> JobConfig:
    config = JobConfig()
    config.model.tokenizer = "byte"
    for section in (config.training, config.validation):
        section.dataset = dataset
        section.dataset_path = None if path is None else str(path)
        section.seq_len = SEQ_LEN
        section.local_batch_size = 1
    for key, value in training.items():
        setattr(config.training, key, value)
    return config


def loader(config: JobConfig, rank: int = 0, ranks: int = 1, **kwargs: Any) -> Any:
    return build_dataloader(ranks, rank, ByteTokenizer(), config, **kwargs)


def rows(batches: Any) -> list[list[int]]:
    """Sequences of seq_len + 1 tokens, from (input, label) batches."""
    result = []
    for inputs, labels in batches:
        assert inputs["input"].dtype == labels.dtype == torch.int64
        for x, y in zip(inputs["input"].tolist(), labels.tolist(), strict=True):
            assert x[1:] == y[:-1]
            result.append([x[0], *y])
    return result


def assert_resumes_exactly(config: JobConfig, total: int, cuts: tuple[int, ...], most: int) -> None:
    """A loader that is left and resumed after each of ``cuts`` sequences gives what one gives that
    is not, and its state takes at most ``most`` bytes."""
    expected = rows(islice(loader(config), total))
    got: list[list[int]] = []
    state = None
    for count in (*cuts, total - sum(cuts)):
        resumed = loader(config)
        if state is not None:
            resumed.load_state_dict(pickle.loads(state))
        got += rows(islice(resumed, count))
        state = pickle.dumps(resumed.state_dict())
    assert got == expected
    assert state is not None and len(state) <= most
