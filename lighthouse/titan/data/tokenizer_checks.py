"""What a Hugging Face tokenizer's files say that would change the stream of tokens unseen."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from torchtitan.tools.logging import logger

if TYPE_CHECKING:
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

_PROBE = "a b"
_RARE = "\ua66e"  # a letter that next to no vocabulary has
_INSIDE = (
    *("", " ", "  ", "\t", "\n", "\r\n", "\x01", "\u200b", "\ufeff"),
    *("e", "\xe9", "e\u0301", "fi", "\ufb01", _RARE, "\ua66d"),
    *map(chr, range(ord("!"), ord("~") + 1)),
)
_DIFFERENT = (*(f"a{inside}b" for inside in _INSIDE), " ab", "ab ", "\nab", "ab\n")
"""Texts that differ in what tokenizers are known to pass over."""
_MOST_SAID = 4


def settle_documents(tokenizer: "HuggingFaceTokenizer", folder: Path) -> None:
    """Make a document all its tokens, with an end behind it, or refuse.

    Truncation, padding and BPE's dropout are for batches of short texts: they are switched off,
    with a word in the log.

    Args:
        folder: that it was read from.

    Raises:
        ValueError: no token that ends documents, or one that does not begin and end as it should.
    """
    _switch_off(tokenizer, folder)
    _say_new_tokens(tokenizer, folder)
    _settle_end(tokenizer, folder / "tokenizer_config.json")
    tokenizer._infer_should_add_bos_eos()  # which it did with all of this still on
    _say_other_ids(tokenizer, folder)
    _check_unknown(tokenizer, folder)
    _say_rewritten(tokenizer, folder)
    _check_ends(tokenizer, folder)


def _switch_off(tokenizer: "HuggingFaceTokenizer", folder: Path) -> None:
    inner = tokenizer.tokenizer
    if inner.truncation is not None:
        length = inner.truncation["max_length"]
        logger.warning(f"{folder}: the tokenizer cuts texts to {length} tokens; switched off")
        inner.no_truncation()
    if inner.padding is not None:
        logger.warning(f"{folder}: the tokenizer pads texts; switched off")
        inner.no_padding()
    if getattr(inner.model, "dropout", None):
        logger.warning(f"{folder}: the tokenizer drops merges at random; switched off")
        inner.model.dropout = None


def _say_new_tokens(tokenizer: "HuggingFaceTokenizer", folder: Path) -> None:
    """torchtitan adds special tokens of the configuration that the vocabulary lacks."""
    file = folder / "tokenizer.json"
    if file.is_file():
        new = sorted(tokenizer.get_vocab().keys() - Tokenizer.from_file(str(file)).get_vocab())
        if new:
            logger.warning(f"{file} lacks {new} of tokenizer_config.json, which get new ids")


def _settle_end(tokenizer: "HuggingFaceTokenizer", config: Path) -> None:
    if tokenizer.eos_id is None and tokenizer.bos_id is not None:
        named = tokenizer._get_token_from_config(tokenizer.config, "eos_token")
        if named == tokenizer.bos_token:  # torchtitan takes one that is both for a bos alone
            tokenizer.eos_token, tokenizer.eos_id = named, tokenizer.bos_id
    if tokenizer.eos_id is None:
        lacks = "names no eos_token" if config.is_file() else "is missing"
        raise ValueError(
            f"{config} {lacks}: documents would run into each other without an end; set eos_token "
            "to a token of the vocabulary"
        )
    if tokenizer.bos_id is None:
        logger.warning(f"{config} names no bos_token: documents have an end, and no beginning")


def _say_other_ids(tokenizer: "HuggingFaceTokenizer", folder: Path) -> None:
    """A model's own configuration may name other tokens than the tokenizer's."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or its own check says so
        return
    for name, used in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        theirs = config.get(f"{name}_id") if isinstance(config, dict) else None
        if None not in (theirs, used) and used not in (
            theirs if isinstance(theirs, list) else [theirs]
        ):
            logger.warning(
                f"{folder}: config.json has {name}_id = {theirs}, and the tokenizer's {name} is "
                f"{used}, which documents are trained with"
            )


def _check_unknown(tokenizer: "HuggingFaceTokenizer", folder: Path) -> None:
    """What becomes of characters that the vocabulary lacks."""
    way = "give its model an unk_token, or bytes to fall back on"
    try:
        found = tokenizer.tokenizer.encode(_RARE, add_special_tokens=False).ids
    except Exception as error:  # which is what tokenizers raises
        raise ValueError(
            f"{folder}: the tokenizer ends at characters that its vocabulary lacks ({error}); {way}"
        ) from error
    if not found:
        logger.warning(
            f"{folder}: the tokenizer leaves characters out that its vocabulary lacks; to keep "
            f"them, {way}"
        )


def _say_rewritten(tokenizer: "HuggingFaceTokenizer", folder: Path) -> None:
    """What makes a model see other text than the files have: normalizers, and whatever else."""
    inner = tokenizer.tokenizer
    said = []
    if inner.normalizer is not None:
        rule = json.loads(inner.normalizer.__getstate__())
        rules = rule["normalizers"] if rule["type"] == "Sequence" else [rule]
        if rules:
            said.append(f"rewrites texts by {', '.join(rule['type'] for rule in rules)}")
    first: dict[tuple[int, ...], str] = {}
    alike = []
    for text in _DIFFERENT:
        tokens = tuple(inner.encode(text, add_special_tokens=False).ids)
        if first.setdefault(tokens, text) != text:
            alike.append(f"{first[tokens]!r} and {text!r}")
    if alike:
        rest = f", and of {len(alike) - _MOST_SAID} more pairs" if alike[_MOST_SAID:] else ""
        said.append(f"makes the same tokens of {', of '.join(alike[:_MOST_SAID])}{rest}")
    if said:
        logger.warning(f"{folder}: the tokenizer {', and '.join(said)}")


def _check_ends(tokenizer: "HuggingFaceTokenizer", folder: Path) -> None:
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    found = tokenizer.encode(_PROBE, add_bos=True, add_eos=True)
    begin = [] if bos is None else [bos]
    inside = found[len(begin) : -1]
    alone = tokenizer.tokenizer.encode(_PROBE, add_special_tokens=False).ids
    if found != [*begin, *alone, eos] or {bos, eos} & set(inside):
        wanted = f"{bos} (bos_token), its tokens, {eos} (eos_token)"
        raise ValueError(
            f"{folder}: the tokenizer makes {found} of {_PROBE!r}, which should be {wanted}; mend "
            "the post_processor in tokenizer.json"
        )
