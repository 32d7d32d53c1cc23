from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torchtitan.components.tokenizer import HuggingFaceTokenizer, build_hf_tokenizer
from torchtitan.config import JobConfig

from lighthouse.titan.data.tokenizer import SPECIAL_TOKENS, ByteTokenizer, build_tokenizer

# Hugging Face tokenizers match special tokens inside text, ByteTokenizer never does.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80).filter(
    lambda text: not any(token in text for token in SPECIAL_TOKENS)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    ByteTokenizer().save_pretrained(folder)
    return folder


def test_ids_are_bytes_and_specials() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.get_vocab_size() == 264
    assert tokenizer.encode("aé", add_bos=True, add_eos=True) == [256, 97, 0xC3, 0xA9, 257]
    assert tokenizer.encode("") == []
    assert tokenizer.encode("<|eos|>") == list(b"<|eos|>")


def test_encode_array_is_uint16_and_takes_bytes() -> None:
    tokens = ByteTokenizer().encode_array(bytes(range(256)), add_eos=True)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [*range(256), 257]


def test_lone_surrogate_becomes_a_question_mark() -> None:
    assert ByteTokenizer().encode("a\ud800b") == list(b"a?b")


def test_decode() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([256, 104, 105, 257]) == "hi"
    assert tokenizer.decode([256, 104, 105, 258], skip_special_tokens=False) == "<|bos|>hi<|pad|>"
    assert tokenizer.decode([0xC3]) == "\ufffd"
    with pytest.raises(ValueError, match="token id 264"):
        tokenizer.decode([264])


@given(TEXT)
def test_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode_array(text)) == text


@given(text=TEXT)
def test_tokenizer_json_agrees(folder: Path, text: str) -> None:
    ours, theirs = ByteTokenizer(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = ours.encode(text)
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids) == text


def test_special_ids_agree(folder: Path) -> None:
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert theirs.get_vocab_size() == ByteTokenizer().get_vocab_size()
    assert [theirs.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(256, 264))


def test_torchtitan_reads_the_folder_alike(folder: Path) -> None:
    theirs = HuggingFaceTokenizer(str(folder))
    text = "naïve 漢字\r\n\x00"
    expected = ByteTokenizer().encode(text, add_bos=True, add_eos=True)
    assert theirs.encode(text, add_bos=True, add_eos=True) == expected


def test_transformers_reads_the_folder_alike(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (256, 257, 258)
    assert len(theirs) == 264
    for text in ("naïve 漢字\r\n\x00 ", "  two  spaces , here .", "", "👩‍👩‍👧"):
        ids = ByteTokenizer().encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text


def test_default_is_upstreams_tokenizer(folder: Path) -> None:
    config = JobConfig()
    config.model.hf_assets_path = str(folder)
    assert type(build_tokenizer(config)) is type(build_hf_tokenizer(config))
    config.model.tokenizer = "byte"
    assert type(build_tokenizer(config)) is ByteTokenizer


def test_a_tokenizer_larger_than_the_vocabulary(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchtitan.models.llama3 import llama3_args

    monkeypatch.setitem(llama3_args, "small", replace(llama3_args["tiny_byte"], vocab_size=263))
    config = JobConfig()
    config.model.hf_assets_path, config.model.flavor = str(folder), "small"
    with pytest.raises(ValueError, match=r"model\.hf_assets_path = .* has 264 .*'small' only 263"):
        build_tokenizer(config)
