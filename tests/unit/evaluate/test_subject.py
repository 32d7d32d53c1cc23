"""A folder in Hugging Face's format that somebody else made, or that is damaged."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import modeling_utils

from lighthouse.evaluate.subject import of_hugging_face
from tests.support.llamas import save_llama
from tests.support.payload import Payload


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_llama(tmp_path, {})
    return tmp_path


def edit(folder: Path, values: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel@main:attention"},
        {"_attn_implementation_internal": {"": "someone/kernel"}},
        {"text_config": {"experts_implementation": "someone/kernel"}},
        {"parts": [{"attn_implementation": "paged|someone/kernel"}]},
    ],
    ids=str,
)
def test_no_kernel_is_fetched(
    folder: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[object] = []
    for name in ("load_and_register_attn_kernel", "lazy_import_flash_attention"):
        if hasattr(modeling_utils, name):
            monkeypatch.setattr(modeling_utils, name, lambda *a, **k: fetched.append(a))
    edit(folder, values)
    with pytest.raises(ValueError, match=r"_implementation\w* in its config.json names code to be"):
        of_hugging_face(folder, torch.device("cpu"))
    assert not fetched


def _overlapping(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    next(entry for name, entry in header.items() if name != "__metadata__")["data_offsets"][1] += 4
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _no_heads(folder: Path) -> None:
    edit(folder, {"num_attention_heads": 0})


def _needs_more(folder: Path) -> None:
    edit(folder, {"quantization_config": {"quant_method": "gptq", "bits": 4}})


def _pickled(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save({"w": Payload(folder / "ran")}, folder / "pytorch_model.bin", pickle_module=pickle)


@pytest.mark.parametrize("damage", [_overlapping, _no_heads, _needs_more, _pickled])
def test_what_cannot_be_loaded_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=f"^{folder}: "):
        of_hugging_face(folder, torch.device("cpu"))
    assert not (folder / "ran").exists()
