"""What a folder of safetensors holds, from the heads of its files: no weight is read."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lighthouse.runs.files import read_file

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
FLOATS = (*_NAMES.values(), "F64")
"""Types of numbers that are what they say; others are quantized, and mean nothing by themselves."""

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

_NUMBERED = re.compile(r".*?(\d+)-of-\d+\.safetensors")

_MOST_HEAD_BYTES = 100_000_000
"""What safetensors takes."""

_BROKEN = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
"""What comes of JSON that says something else."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Attributes:
        dtype: as safetensors calls it, such as ``"BF16"``.
        file: that holds it.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Tensors of a model, by name.

    Of the files that transformers reads: the single one, or else those that the index names, or
    else all there are. The trainer's reader looks into all of the folder, so that a tensor of these
    must not be in another file as well.

    Raises:
        ValueError: there is none, a file is missing or damaged, or a tensor is in two; names it.
    """
    everything = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file():
        files = [folder / SINGLE_FILE]
    elif index.is_file():
        files = [folder / name for name in _indexed(index)]
    else:
        files = everything
    if not files:
        raise ValueError(f"{folder} has no safetensors, which are all that can be loaded")
    found: dict[str, Stored] = {}
    for file in files + [other for other in everything if other not in files]:
        for name, entry in _header(file).items():
            if name == "__metadata__":
                continue
            if name in found:
                raise ValueError(
                    f"{name} is in {found[name].file.name} and in {file.name}; move the files away "
                    "that are not of this model"
                )
            if file in files:
                found[name] = Stored(entry["dtype"], tuple(entry["shape"]), file)
    return found


def _indexed(index: Path) -> list[str]:
    """Names of the files of an index, all of its folder."""
    try:
        names = sorted({*_weight_map(index).values()})
        if all(Path(name).name == name for name in names):
            return names
    except (OSError, *_BROKEN):
        pass
    raise ValueError(f"{index} is no index of safetensors; fetch it again")


def _weight_map(index: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_file(index).decode())["weight_map"]
    return found


def numbered_files(folder: str) -> dict[str, int] | None:
    """The number of the file that has each tensor; None without an index that says so.

    It serves to write as many files. Whether it serves to read, `stored_weights` decides.
    """
    try:
        files = _weight_map(Path(folder, INDEX_FILE)).items()
        named = {name: _NUMBERED.fullmatch(file) for name, file in files}
    except (OSError, *_BROKEN):
        return None
    numbers = {name: int(match[1]) for name, match in named.items() if match}
    return numbers if len(numbers) == len(named) > 0 else None


def header_of(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> bytes:
    """The head of a file whose tensors follow in this order, without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _header(file: Path) -> dict[str, Any]:
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is no file; fetch it again")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(min(length, _MOST_HEAD_BYTES)))
        ends = [entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
        if size == whole:
            with safe_open(file, "pt"):  # which knows more of what a head must be
                return header
    except OSError as error:
        raise ValueError(f"{file} can't be read ({error.strerror}); fetch it again") from None
    except (SafetensorError, *_BROKEN):
        raise ValueError(f"{file} is no safetensors file; fetch it again") from None
    raise ValueError(f"{file} has {size:,} bytes, and {whole:,} by its head; fetch it again")
