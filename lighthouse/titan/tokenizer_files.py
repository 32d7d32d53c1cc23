"""The tokenizer of a training as a Hugging Face folder that encodes as training did."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from lighthouse.runs.files import read_object
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.run.assets import copy_files, tokenizer_files

_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"


def write_tokenizer(tokenizer: str, folder: Path, positions: int) -> None:
    """Write a tokenizer's files.

    Training puts a bos token, where the tokenizer knows one, in front of each document, and cuts
    and pads nothing; so does what is written, whatever the files said. A ``model_max_length`` of
    less than the model's positions was that of a model before it was extended.

    Args:
        tokenizer: ``"byte"``, or a folder with Hugging Face tokenizer files.
        positions: of the model.
    """
    if tokenizer == "byte":
        ByteTokenizer().save_pretrained(folder)
    else:
        copy_files(Path(tokenizer), folder, tokenizer_files(Path(tokenizer)))
    trained = HuggingFaceTokenizer(str(folder))
    inner: Tokenizer = trained.tokenizer
    lacks_bos = trained.bos_id is not None and not trained.hf_adds_bos
    cuts = inner.truncation is not None or inner.padding is not None
    if lacks_bos or cuts or not (folder / _FILE).is_file():
        inner.no_truncation()
        inner.no_padding()
        if lacks_bos:
            _put_in_front(inner, trained.bos_token, trained.bos_id)
        inner.save(str(folder / _FILE))
    file = folder / _CONFIG
    config = read_object(file)
    wanted = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    if lacks_bos:
        wanted["add_bos_token"] = True
    length = config.get("model_max_length")
    if isinstance(length, int | float) and length < positions:
        wanted["model_max_length"] = positions
    if wanted != config:
        file.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def _put_in_front(tokenizer: Tokenizer, token: str, token_id: int) -> None:
    """Let a tokenizer begin each text with a token, after what it does already."""
    first = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, token_id)]
    )
    before = tokenizer.post_processor
    tokenizer.post_processor = first if before is None else processors.Sequence([before, first])


def special_ids(tokenizer: str | None, vocab_size: int, begun: Mapping[str, Any]) -> dict[str, Any]:
    """bos_token_id, eos_token_id and pad_token_id, as ``config.json`` has them.

    Args:
        tokenizer: as for :func:`write_tokenizer`; None for none.
        vocab_size: the model's.
        begun: what the configuration had that the run began with. Values of it that agree with the
            tokenizer stay, such as a list of several eos tokens.

    Raises:
        ValueError: a tokenizer that can't be read, or with more tokens than the model.
    """
    # Said, because LlamaConfig would otherwise take 1 and 2.
    found: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    kept = {key: begun[key] for key in found if begun.get(key) is not None}
    if tokenizer is None:
        return found | kept
    if tokenizer == "byte":
        trained: Any = ByteTokenizer()
        found["pad_token_id"] = trained.pad_id
    else:
        try:
            trained = HuggingFaceTokenizer(tokenizer)
        except FileNotFoundError as error:
            raise ValueError(f"tokenizer {tokenizer!r}: {error}") from error
    if trained.get_vocab_size() > vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer!r} has {trained.get_vocab_size()} tokens, the model's "
            f"vocabulary only {vocab_size}: name the tokenizer of the training run"
        )
    found["pad_token_id"] = kept.get("pad_token_id", found["pad_token_id"])
    for key, value in (("bos_token_id", trained.bos_id), ("eos_token_id", trained.eos_id)):
        stays = value is None or value in _listed(kept.get(key))
        found[key] = kept.get(key) if stays else value
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
