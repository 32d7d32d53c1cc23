"""A tokenizer is the same if it makes the same of a text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torchtitan.config import JobConfig

from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.data.tokenizer_identity import tokenizer_identity


def identity(folder: Path) -> str:
    job = JobConfig()
    job.model.hf_assets_path = str(folder)
    return tokenizer_identity(job)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ByteTokenizer().save_pretrained(tmp_path / "here")
    return tmp_path / "here"


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=1))


def test_the_same_files_elsewhere_and_what_changes_no_token(folder: Path) -> None:
    before = identity(folder)
    assert before.startswith("hf, ")
    shutil.copytree(folder, folder.parent / "there")
    assert identity(folder.parent / "there") == before
    edit(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    edit(folder / "tokenizer.json", truncation={"max_length": 8})
    assert identity(folder) == before


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}),
        ("tokenizer_config.json", {"eos_token": "<|pad|>"}),
        ("tokenizer_config.json", {"add_bos_token": False}),
    ],
)
def test_what_changes_tokens(folder: Path, name: str, values: dict[str, Any]) -> None:
    before = identity(folder)
    edit(folder / name, **values)
    assert identity(folder) != before


def test_without_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("a\nb\n")
    before = identity(folder)
    (folder / "vocab.txt").write_text("b\na\n")
    assert identity(folder) != before


def test_bytes_are_bytes() -> None:
    job = JobConfig()
    job.model.tokenizer = "byte"
    assert tokenizer_identity(job) == "byte"
