import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, CharDelimiterSplit, Whitespace
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
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


def build(folder: Path, tmp_path: Path, change: Any, **config: Any) -> Any:
    """The tokenizer of a copy of the folder, changed; `config` replaces keys, None removes them."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    inner = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    change(inner)
    inner.save(str(tmp_path / "tokenizer.json"))
    file = tmp_path / "tokenizer_config.json"
    values = json.loads(file.read_text()) | config
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    job = JobConfig()
    job.model.hf_assets_path = str(tmp_path)
    return build_tokenizer(job)


def _pads_with_eos(inner: Tokenizer) -> None:
    inner.enable_padding(length=64, pad_id=257, pad_token=SPECIAL_TOKENS[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inner: inner.enable_truncation(5), "cuts texts to 5 tokens"),
        (lambda inner: inner.enable_padding(length=64), "pads texts"),
        (_pads_with_eos, "pads texts"),
        (lambda inner: setattr(inner.model, "dropout", 0.5), "drops merges at random"),
    ],
)
def test_what_changes_documents_is_switched_off(
    folder: Path, tmp_path: Path, change: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = build(folder, tmp_path, change)
    assert said in caplog.text
    assert tokenizer.tokenizer.model.dropout is None
    text = "longer than that"
    assert tokenizer.encode(text, add_bos=True, add_eos=True) == [256, *text.encode(), 257]


def _post_processor(template: str) -> Any:
    tokens = [(token, 256 + i) for i, token in enumerate(SPECIAL_TOKENS[:3])]

    def change(inner: Tokenizer) -> None:
        inner.post_processor = TemplateProcessing(single=template, special_tokens=tokens)

    return change


@pytest.mark.parametrize("template", ["$A", "<|bos|> $A", "<|bos|> $A <|eos|>", "$A <|eos|>"])
def test_documents_end_once_whoever_ends_them(folder: Path, tmp_path: Path, template: str) -> None:
    tokenizer = build(folder, tmp_path, _post_processor(template))
    assert tokenizer.encode("hi", add_bos=True, add_eos=True) == [256, *b"hi", 257]


@pytest.mark.parametrize(
    "template",
    [
        *("$A <|pad|> <|eos|> <|eos|>", "<|eos|> $A"),
        *("<|pad|> $A", "<|bos|> <|pad|> $A <|eos|>"),
    ],
)
def test_documents_that_do_not_end_so_are_refused(
    folder: Path, tmp_path: Path, template: str
) -> None:
    with pytest.raises(ValueError, match=r"the tokenizer makes \[.* mend the post_processor"):
        build(folder, tmp_path, _post_processor(template))


def test_special_tokens_that_are_absent_or_odd(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def as_it_is(inner: Tokenizer) -> None:
        pass

    with pytest.raises(ValueError, match=r"tokenizer_config\.json names no eos_token: documents"):
        build(folder, tmp_path / "1", as_it_is, eos_token=None)
    with caplog.at_level(logging.WARNING):
        only_end = build(folder, tmp_path / "2", as_it_is, bos_token=None)
        assert "names no bos_token" in caplog.text
        new = build(folder, tmp_path / "3", as_it_is, eos_token="<|new|>")
        assert "lacks ['<|new|>'] of tokenizer_config.json, which get new ids" in caplog.text
    assert only_end.encode("hi", add_bos=True, add_eos=True) == [*b"hi", 257]
    assert new.encode("hi", add_bos=True, add_eos=True) == [256, *b"hi", 264]
    both = build(folder, tmp_path / "4", as_it_is, eos_token=SPECIAL_TOKENS[0])
    assert both.encode("hi", add_bos=True, add_eos=True) == [256, *b"hi", 256]
    (tmp_path / "4" / "tokenizer_config.json").unlink()
    job = JobConfig()
    job.model.hf_assets_path = str(tmp_path / "4")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is missing: documents would run"):
        build_tokenizer(job)


def test_characters_that_a_vocabulary_lacks(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def letters(inner: Tokenizer) -> None:
        inner.pre_tokenizer = Whitespace()

    with caplog.at_level(logging.WARNING):
        build(folder, tmp_path / "1", letters)
    assert "leaves characters out that its vocabulary lacks" in caplog.text

    def words(inner: Tokenizer) -> None:
        inner.model = WordLevel({"a": 0, "b": 1})

    with pytest.raises(ValueError, match=r"ends at characters that its vocabulary lacks .*unk_tok"):
        build(folder, tmp_path / "2", words)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda inner: setattr(inner, "normalizer", normalizers.Lowercase()),
            "rewrites texts by Lowercase, and makes the same tokens of 'aeb' and 'aEb', of ",
        ),
        (
            lambda inner: setattr(
                inner,
                "normalizer",
                normalizers.Sequence([normalizers.NFC(), normalizers.Replace("x", "yy")]),
            ),
            "rewrites texts by NFC, Replace, and makes the same tokens of 'a\xe9b' and 'ae\u0301b'",
        ),
        (
            lambda inner: setattr(
                inner,
                "pre_tokenizer",
                PreTokenizers([CharDelimiterSplit("q"), ByteLevel(False, use_regex=False)]),
            ),
            "the tokenizer makes the same tokens of 'ab' and 'aqb'\n",
        ),
        (
            lambda inner: setattr(inner, "pre_tokenizer", ByteLevel(True)),
            "the tokenizer makes the same tokens of 'ab' and ' ab'\n",
        ),
        (lambda inner: setattr(inner, "normalizer", normalizers.Sequence([])), None),
    ],
)
def test_other_text_than_the_files_have_is_said(
    folder: Path, tmp_path: Path, change: Any, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build(folder, tmp_path / "0", change)
    assert said in caplog.text if said else not caplog.records


def test_a_model_that_ends_otherwise_is_said(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "0")
    with caplog.at_level(logging.WARNING):
        for ids in ([257, 258], 257, None):
            (tmp_path / "0" / "config.json").write_text(json.dumps({"eos_token_id": ids}))
            build(tmp_path / "0", tmp_path / str(ids), lambda inner: None)
        assert not caplog.records
        (tmp_path / "0" / "config.json").write_text(json.dumps({"eos_token_id": 258}))
        build(tmp_path / "0", tmp_path / "1", lambda inner: None)
    assert "has eos_token_id = 258, and the tokenizer's eos_token is 257" in caplog.text
