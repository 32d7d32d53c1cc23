"""Which tokenizer the tokens of a run are of, wherever its files lie."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

# What torchtitan reads of tokenizer_config.json. A chat template, say, changes no token.
_OF_CONFIG = (
    *(f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")),
    *("added_tokens_decoder", "add_bos_token", "add_eos_token"),
)


def tokenizer_identity(job_config: "JobConfig") -> str:
    """Equal for tokenizers that make the same of a text: "byte", or "hf" with a digest of files.

    What is switched off when a tokenizer is loaded does not count.
    """
    model = job_config.model
    if model.tokenizer == "byte":
        return "byte"
    folder = Path(model.hf_assets_path)
    names = ("tokenizer.json",) if (folder / "tokenizer.json").is_file() else _WITHOUT
    digest = hashlib.sha256()
    for name in (*names, "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            digest.update(name.encode() + b"\0" + _what_counts(name, file.read_bytes()))
    return f"hf, {digest.hexdigest()[:12]}"


_WITHOUT = ("vocab.json", "vocab.txt", "merges.txt")
"""What torchtitan reads where there is no tokenizer.json."""


def _what_counts(name: str, data: bytes) -> bytes:
    try:
        values: Any = json.loads(data)
    except ValueError:
        return data
    if not isinstance(values, dict):
        return data
    if name == "tokenizer_config.json":
        values = {key: values[key] for key in _OF_CONFIG if key in values}
    elif name == "tokenizer.json":
        values |= {"truncation": None, "padding": None}
        if isinstance(values.get("model"), dict):
            values["model"] = values["model"] | {"dropout": None}
    return json.dumps(values, sort_keys=True).encode()
