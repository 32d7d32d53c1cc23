"""The tokenizer that is written encodes as training did."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.tokenizer_files import special_ids, write_tokenizer

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
ALPHABET = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
TEXT = "a document, é"


def bpe(folder: Path, config: dict[str, Any] | None = NAMES, **settings: Any) -> Path:
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(ALPHABET)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens(ALPHABET[:2])
    if settings.get("cut"):
        tokenizer.enable_truncation(max_length=4)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def vocabulary(folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", "<s>", "</s>", *TEXT.split()]))
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES))
    return folder


@pytest.mark.parametrize("kind", ["bpe", "no_config", "adds_itself", "vocab.txt", "byte"])
def test_transformers_encodes_as_training(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    source, text = tmp_path / "source", TEXT
    if kind == "vocab.txt":
        text = TEXT.split()[0]
        vocabulary(source)
    elif kind != "byte":
        bpe(source, None if kind == "no_config" else NAMES)
    if kind == "adds_itself":
        write_tokenizer(str(source), tmp_path / "again", 64)
        source = tmp_path / "again"
    trained = ByteTokenizer() if kind == "byte" else HuggingFaceTokenizer(str(source))
    write_tokenizer("byte" if kind == "byte" else str(source), tmp_path / "out", 64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = trained.encode(text, add_bos=True)
    assert theirs(text)["input_ids"] == expected
    if kind != "no_config":
        assert expected[0] == trained.bos_id and expected.count(trained.bos_id) == 1


def test_every_file_goes_along_and_no_weights(tmp_path: Path) -> None:
    source = bpe(tmp_path / "source")
    for name in ("chat_template.jinja", "tokenizer.model", "special_tokens_map.json"):
        (source / name).write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("")
    for name in ("model.safetensors", "config.json", "README.md"):
        (source / name).write_text("no")
    write_tokenizer(str(source), tmp_path / "out", 64)
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")}
    assert written == {
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model"),
        *("special_tokens_map.json", "additional_chat_templates/rag.jinja"),
    }


def test_a_file_that_cuts_does_not_any_more(tmp_path: Path) -> None:
    write_tokenizer(str(bpe(tmp_path / "source", cut=True)), tmp_path / "out", 64)
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).truncation is None


@pytest.mark.parametrize(("said", "written"), [(32, 64), (128, 128), (10**30, 10**30)])
def test_a_length_of_before_the_model_was_extended_is_not_kept(
    tmp_path: Path, said: int, written: int
) -> None:
    source = bpe(tmp_path / "source", NAMES | {"model_max_length": said})
    write_tokenizer(str(source), tmp_path / "out", 64)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == written


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ({}, {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}),
        ({"eos_token_id": [7, 1], "pad_token_id": 7}, {"eos_token_id": [7, 1], "pad_token_id": 7}),
        ({"eos_token_id": 7}, {"eos_token_id": 1}),
    ],
)
def test_special_ids_stay_where_they_agree(
    tmp_path: Path, begun: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert special_ids(str(bpe(tmp_path / "source")), 300, begun).items() >= expected.items()
