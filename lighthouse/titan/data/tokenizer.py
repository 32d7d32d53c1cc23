"""Byte-level tokenizer: one token per UTF-8 byte, and eight special tokens.

Ids 0..255 are the bytes; 256 starts a document, 257 ends it, 258 pads, 259..263 are reserved. The
same vocabulary is written as a Hugging Face `tokenizer.json` by `ByteTokenizer.save_pretrained`.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torchtitan.components.tokenizer import BaseTokenizer, HuggingFaceTokenizer
from torchtitan.config import JobConfig
from torchtitan.tools.logging import logger

from lighthouse.refusal import refusals
from lighthouse.titan.data.tokenizer_checks import settle_documents
from lighthouse.titan.llama3.flavors import BYTE_VOCAB_SIZE
from lighthouse.titan.llama3.model_args import HF, model_args_of

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", *(f"<|reserved_{i}|>" for i in range(5)))


class ByteTokenizer(BaseTokenizer):
    """Text to UTF-8 bytes and back.

    Text never turns into special tokens: `"<|eos|>"` inside a document is seven ordinary bytes. (A
    `tokenizer.json` reader does match such strings, as Hugging Face tokenizers always do.)
    """

    bos_id: int = 256
    eos_id: int = 257
    pad_id: int = 258

    def __init__(self) -> None:
        """Needs nothing; torchtitan's initialiser would set `eos_id` to None."""

    def encode_array(
        self, text: str | bytes, *, add_bos: bool = False, add_eos: bool = False
    ) -> np.ndarray:
        """Encode by copying a buffer.

        Args:
            text: a string (lone surrogates, which UTF-8 cannot hold, become "?") or UTF-8 bytes.
            add_bos: put `bos_id` in front.
            add_eos: put `eos_id` at the end.

        Returns:
            uint16 array of shape (number of bytes + add_bos + add_eos,).
        """
        data = text.encode("utf-8", errors="replace") if isinstance(text, str) else text
        tokens = np.empty(len(data) + add_bos + add_eos, dtype=np.uint16)
        tokens[add_bos : add_bos + len(data)] = np.frombuffer(data, dtype=np.uint8)
        if add_bos:
            tokens[0] = self.bos_id
        if add_eos:
            tokens[-1] = self.eos_id
        return tokens

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """As `encode_array`, as a list: torchtitan's interface."""
        return self.encode_array(text, add_bos=add_bos, add_eos=add_eos).tolist()

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Bytes of `token_ids` as text; what is not UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id outside 0..263.
        """
        pieces = bytearray()
        for token in token_ids:
            if not 0 <= token < BYTE_VOCAB_SIZE:
                raise ValueError(f"token id {token}: expected 0..{BYTE_VOCAB_SIZE - 1}")
            if token < 256:
                pieces.append(token)
            elif not skip_special_tokens:
                pieces += SPECIAL_TOKENS[token - 256].encode()
        return pieces.decode("utf-8", errors="replace")

    def get_vocab_size(self) -> int:
        return BYTE_VOCAB_SIZE

    def save_pretrained(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` into `folder` (made if missing).

        Byte-level BPE without merges: the letter that stands for byte b has id b.
        """
        folder.mkdir(parents=True, exist_ok=True)
        vocab = {letter: byte for byte, letter in enumerate(_byte_letters())}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
        tokenizer.save(str(folder / "tokenizer.json"))
        bos, eos, pad, *reserved = SPECIAL_TOKENS
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "additional_special_tokens": reserved,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _byte_letters() -> list[str]:
    """The printable letter for each byte in GPT-2's byte-level alphabet.

    Printable Latin-1 bytes stand for themselves; the others, in order, take U+0100 and up.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)}
    printable |= set(range(ord("®"), ord("ÿ") + 1))
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


@refusals()
def build_tokenizer(job_config: JobConfig) -> BaseTokenizer:
    """The tokenizer that `model.tokenizer` names: "byte", or "hf" for upstream's own.

    Raises:
        Refusal: a token that the flavor's embedding does not have, or documents without an end.
    """
    if job_config.model.tokenizer == "byte":
        return ByteTokenizer()
    tokenizer = read_tokenizer(job_config.model.hf_assets_path, "model.hf_assets_path")
    _check_fits(job_config, _ids_of(tokenizer))
    return tokenizer


def check_tokenizer(job_config: JobConfig) -> None:
    """Read the tokenizer as a run will, without a word.

    Raises:
        ValueError: as :func:`build_tokenizer`.
    """
    if job_config.model.tokenizer == "byte":
        return
    folder = Path(job_config.model.hf_assets_path)
    times = tuple((file.name, file.stat().st_mtime_ns) for file in sorted(folder.glob("*")))
    _check_fits(job_config, _ids_in(str(folder), times))


@lru_cache(maxsize=16)  # reading takes long, and a sweep checks each of its runs
def _ids_in(folder: str, times: tuple[tuple[str, int], ...]) -> int:
    del times
    logger.disabled, was = True, logger.disabled
    try:
        return _ids_of(read_tokenizer(folder, "model.hf_assets_path"))
    finally:
        logger.disabled = was


def read_tokenizer(folder: str, key: str) -> HuggingFaceTokenizer:
    """Hugging Face's tokenizer of a folder, whose documents all end.

    Args:
        key: that named the folder, for messages.

    Raises:
        ValueError: it can't be read, or makes documents without an end.
    """
    try:
        tokenizer = HuggingFaceTokenizer(folder)
    except Exception as error:  # which is what tokenizers raises
        raise ValueError(
            f"{key} = {folder!r}: its tokenizer can't be read: {error}; fetch it "
            "again, or name another"
        ) from error
    settle_documents(tokenizer, Path(folder))
    return tokenizer


def _ids_of(tokenizer: HuggingFaceTokenizer) -> int:
    return 1 + max(tokenizer.get_vocab().values())  # ids may have gaps


def _check_fits(job_config: JobConfig, needed: int) -> None:
    section, known = job_config.model, model_args_of(job_config).vocab_size
    if needed > known:
        way = f"use a flavor with more, or model.args.vocab_size = {needed}"
        if section.flavor == HF:
            way = "name a folder with the tokenizer that its model came with"
        raise ValueError(
            f"model.hf_assets_path = {section.hf_assets_path!r}: has {needed} tokens, "
            f"model.flavor = {section.flavor!r} only {known}; {way}"
        )
