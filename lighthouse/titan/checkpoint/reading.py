"""Reading a checkpoint without running anything that is in it.

A checkpoint is pickles: of the places of its tensors, of each value that is no tensor, and of where
the loader is. Unpickling runs what a pickle names, so a folder that somebody else made could do
anything. Here a pickle may name what a checkpoint consists of, and no more.
"""

import enum
import importlib
import io
import itertools
import math
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from lighthouse.refusal import Refusal
from lighthouse.runs.files import read_file
from lighthouse.titan.checkpoint.seal import METADATA, unsealed

_DCP = "torch.distributed.checkpoint"
_FILLED_IN = {
    *(
        (f"{_DCP}.metadata", name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "BytesStorageMetadata"),
            *("TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        )
    ),
    (f"{_DCP}.filesystem", "_StorageInfo"),
}
"""Classes whose pickles are an empty one, and then what is in it."""
_OF_METADATA = _FILLED_IN | {
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *(("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")),  # by the release of Python
}
_MOST_DIMENSIONS = 8
"""Of a tensor: a box has two to the power of that many corners, which are all looked at."""
_DTYPES = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


# Of bytes that are no pickle, or half of one, unpickling raises nearly anything.
_BROKEN = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, OverflowError, ImportError, MemoryError, RuntimeError),
)


def _member(kind: Any, name: Any) -> Any:
    """Instead of ``getattr``, by which Python 3.11.2 pickles a member of an enumeration."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum) and name in kind.__members__):
        raise pickle.UnpicklingError("it names builtins.getattr")
    return kind[name]


class _Unpickler(pickle._Unpickler):
    """Finds the named classes alone, and torch's dtypes.

    That in Python, which is half as fast as that in C: its memory is no list as long as a number in
    the pickle says, and what a pickle fills in can be looked at before.
    """

    def __init__(self, data: bytes, allowed: set[tuple[str, str]]) -> None:
        self._data = io.BytesIO(data)
        super().__init__(self._data)
        self._allowed = allowed

    def load_build(self) -> None:
        """Fill in what the pickle has made, and no class, function or member of an enumeration.

        Those are the process's own, and would stay as somebody else's checkpoint has left them.
        """
        kind = type(self.stack[-2])  # type: ignore[attr-defined]
        if (kind.__module__, kind.__name__) not in _FILLED_IN & self._allowed:
            raise pickle.UnpicklingError(f"it changes what {kind.__name__} is")
        super().load_build()  # type: ignore[misc]

    dispatch: ClassVar[Any] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}

    def load(self) -> Any:
        found = super().load()
        if self._data.read(1):
            raise pickle.UnpicklingError("there is more behind its end")
        return found

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return getattr(torch, name)
        if (module, name) == ("builtins", "getattr") and self._allowed:
            return _member
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return getattr(importlib.import_module(module), name)


def read_metadata(checkpoint: Path) -> Metadata:
    """What is where in a finished checkpoint of the trainer; raises as `read_sealed`."""
    metadata, _ = read_sealed(checkpoint)
    return metadata


def read_sealed(checkpoint: Path) -> tuple[Metadata, dict[str, int]]:
    """What is where in a finished checkpoint, and the checksums of its files; none of older ones.

    Raises:
        OSError: no ``.metadata``.
        ValueError: its ``.metadata`` is none, has changed since it was written, or names what a
            checkpoint does not consist of, or it does not say once where each part of a tensor is.
    """
    data = read_file(checkpoint / METADATA)
    if not data:
        raise ValueError(f"{METADATA} is empty")
    pickled, sums = unsealed(data)
    try:
        metadata = _Unpickler(pickled, _OF_METADATA).load()
    except _BROKEN as error:
        raise ValueError(f"{METADATA} can't be read: {error}") from error
    if not isinstance(metadata, Metadata) or not _is_filled_in(metadata):
        raise ValueError(f"{METADATA} can't be read: it holds something else")
    if (fault := _contradiction(metadata)) is not None:
        raise ValueError(f"{METADATA} contradicts itself: {fault}")
    return metadata, sums


def _is_filled_in(metadata: Metadata) -> bool:
    """Whether it says what tensors there are, and of names where in which file they are.

    A pickle may fill in anything.
    """
    try:
        return all(
            type(name) is str
            and (
                type(entry) is BytesStorageMetadata
                or (
                    type(entry) is TensorStorageMetadata
                    and isinstance(entry.properties.dtype, torch.dtype)
                    and _are_sizes(entry.size)
                    and all(_are_sizes(c.offsets) and _are_sizes(c.sizes) for c in entry.chunks)
                )
            )
            for name, entry in metadata.state_dict_metadata.items()
        ) and all(
            [type(index.fqn), type(place.relative_path)] == [str, str]
            and _are_sizes((place.offset, place.length))
            and not getattr(place, "transform_descriptors", None)  # the trainer compresses none
            for index, place in metadata.storage_data.items()
        )
    except (AttributeError, TypeError):
        return False


def _are_sizes(values: Any) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) <= _MOST_DIMENSIONS
        and all(type(value) is int and value >= 0 for value in values)
    )


def _contradiction(metadata: Metadata) -> str | None:
    """What would leave a part of a tensor unread, or read it from the place of something else."""
    stored = metadata.storage_data
    for name, entry in metadata.state_dict_metadata.items():
        indices = [MetadataIndex(name)]
        if isinstance(entry, TensorStorageMetadata):
            if not _is_tiled(entry):
                return f"the pieces of {name} are not its whole"
            indices = [MetadataIndex(name, chunk.offsets) for chunk in entry.chunks]
        if any(index not in stored for index in indices):
            return f"it does not say where {name} is"
    places = sorted((p.relative_path, p.offset, p.length, i.fqn) for i, p in stored.items())
    for (file, offset, length, name), (next_file, begin, _, other) in itertools.pairwise(places):
        if file == next_file and begin < offset + length:
            return f"{name} and {other} are in the same place of {file}"
    return None


def _is_tiled(entry: TensorStorageMetadata) -> bool:
    """Whether each element of a tensor is in one chunk, and no chunk has others.

    So it is if the corners of all chunks, of which the even and the odd ones count against each
    other, leave those of the whole.
    """
    dimensions = len(entry.size)
    corners: Counter[tuple[int, ...]] = Counter(_corners((0,) * dimensions, entry.size))
    for chunk in entry.chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == dimensions:
            return False
        corners.subtract(_corners(chunk.offsets, chunk.sizes))
    return not any(corners.values())


def _corners(offsets: Sequence[int], sizes: Sequence[int]) -> dict[tuple[int, ...], int]:
    """Of a box, each with its sign; of an empty one none."""
    if 0 in sizes:
        return {}
    ends = [((begin, 1), (begin + size, -1)) for begin, size in zip(offsets, sizes, strict=True)]
    return {
        tuple(at for at, _ in corner): math.prod(sign for _, sign in corner)
        for corner in itertools.product(*ends)
    }


def plain(data: bytes, what: str) -> Any:
    """What a pickle of numbers, strings and containers of them holds.

    Args:
        data: the pickle.
        what: whose it is, for the message.

    Raises:
        Refusal: it names anything else.
    """
    try:
        return _Unpickler(data, set()).load()
    except _BROKEN as error:
        raise Refusal(
            f"{what} is not loaded ({error}): it may run code, and the trainer writes none such; "
            "use a checkpoint that you have made"
        ) from error


class _Reader(FileSystemReader):
    def read_metadata(self) -> Metadata:
        metadata = read_metadata(Path(self.path))
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        self._entries = metadata.state_dict_metadata
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            if item.type == LoadItemType.TENSOR:
                self._check_tensor(item.storage_index)
        return super().read_data(plan, planner)

    def _check_tensor(self, index: MetadataIndex) -> None:
        """Refuse another tensor than the metadata say, which would be cut to size and cast.

        Of what is in the file only what it is, is read here.
        """
        place, entry = self.storage_data[index], self._entries[index.fqn]
        assert isinstance(entry, TensorStorageMetadata)
        dtype = entry.properties.dtype
        sizes = [chunk.sizes for chunk in entry.chunks if chunk.offsets == index.offset]
        file = Path(self.path) / place.relative_path
        try:
            with file.open("rb") as shard, torch.serialization.skip_data():
                found = torch.load(self._slice_file(shard, place), "cpu", weights_only=True)
        except _BROKEN as error:
            raise _no_such_value(file, index.fqn) from error
        if not isinstance(found, torch.Tensor) or found.dtype != dtype or found.size() not in sizes:
            raise _no_such_value(file, index.fqn)


def _no_such_value(file: Path, name: str) -> Refusal:
    return Refusal(
        f"checkpoint {file.parent} can't be read: {file.name} has something else in the place of "
        f"{name} than {METADATA} says; copy it again from where it is whole, or take another one"
    )


class _Planner(DefaultLoadPlanner):
    """The default one, whose values are read as tensors are: nothing but numbers and containers."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self._checkpoint = checkpoint

    def create_local_plan(self) -> LoadPlan:
        """As the default one, of a checkpoint that has all of what is loaded and in its shapes."""
        try:
            plan = super().create_local_plan()
        except (RuntimeError, ValueError) as error:  # which names no checkpoint
            raise self._of_another_model(str(error).rstrip(".")) from error
        assert self.metadata is not None
        for name, value in self.state_dict.items():
            entry = self.metadata.state_dict_metadata[name]
            if isinstance(entry, BytesStorageMetadata) and isinstance(value, torch.Tensor):
                raise self._of_another_model(f"{name} is no tensor there")
        return plan

    def _of_another_model(self, why: str) -> Refusal:
        return Refusal(
            f"checkpoint {self._checkpoint} is not of what this run trains: {why}; take one of the "
            "same model.flavor, [model.args] and [optimizer]"
        )

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise Refusal(
                f"{name} of checkpoint {self._checkpoint} is not loaded: it may run code, and the "
                "trainer writes none such; use a checkpoint that you have made"
            ) from error
        except _BROKEN as error:
            assert self.metadata is not None
            place = self.metadata.storage_data[read_item.storage_index]
            raise _no_such_value(self._checkpoint / place.relative_path, name) from error
        value.seek(0)  # the same bytes once more, of which it is known now that they run nothing
        super().load_bytes(read_item, value)


def load_state(
    states: dict[str, Any], checkpoint: str | os.PathLike[str], no_dist: bool = False
) -> None:
    """As ``torch.distributed.checkpoint.load``.

    Raises:
        Refusal: a value of the checkpoint may run code.
    """
    folder = Path(checkpoint)
    try:
        with warnings.catch_warnings():
            if no_dist:  # which is what is meant
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            reader, planner = _Reader(folder), _Planner(folder)
            dcp.load(states, storage_reader=reader, planner=planner, no_dist=no_dist)
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, Refusal):
                raise failure from error
        raise
