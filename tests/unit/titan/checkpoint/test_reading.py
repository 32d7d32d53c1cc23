"""A checkpoint that somebody else made is read, and nothing in it runs.

That of the loader, which the trainer reads, is in tests/integration/test_damage.py.
"""

import pickle
import pickletools
import resource
from collections import OrderedDict
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from lighthouse.refusal import Refusal
from lighthouse.titan.checkpoint.reading import _is_tiled, load_state, plain, read_metadata
from tests.support.payload import Payload


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that a payload makes, if it runs."""
    return tmp_path / "ran"


def save(folder: Path, **values: object) -> Path:
    dcp.save({"w": torch.arange(4.0), **values}, checkpoint_id=folder, no_dist=True)
    return folder


def test_what_the_trainer_writes_is_read(tmp_path):
    half = torch.full((2, 2), 1.5, dtype=torch.bfloat16)
    folder = save(tmp_path / "step-1", half=half, train_state={"step": 3, "betas": (0.9, 0.95)})
    states = {
        "w": torch.zeros(4),
        "half": torch.zeros(2, 2, dtype=torch.bfloat16),
        "train_state": {"step": 0, "betas": None},
    }
    load_state(states, folder, no_dist=True)
    assert states["w"].tolist() == [0, 1, 2, 3] and torch.equal(states["half"], half)
    assert states["train_state"] == {"step": 3, "betas": (0.9, 0.95)}
    assert plain(pickle.dumps({"a": [1, b"x", {2.5}, None]}), "it") == {"a": [1, b"x", {2.5}, None]}


def test_a_payload_in_the_metadata_does_not_run(tmp_path, ran):
    folder = save(tmp_path / "step-1")
    metadata = read_metadata(folder)
    metadata.planner_data = Payload(ran)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        ValueError, match=r"^\.metadata can't be read: it names pathlib\.Path\.touch$"
    ):
        read_metadata(folder)
    # torch 2.11 drops the reason.
    with pytest.raises(CheckpointException, match=r"it names|metadata is None"):
        load_state({"w": torch.zeros(4)}, folder, no_dist=True)
    assert not ran.exists()
    dcp.load({"w": torch.zeros(4)}, checkpoint_id=folder, no_dist=True)
    assert ran.exists()  # it would run


@pytest.mark.parametrize("state", ["train_state", "lr_scheduler"])
def test_a_payload_in_a_value_does_not_run(tmp_path, ran, state):
    folder = save(tmp_path / "step-1", **{state: {"step": Payload(ran)}})
    with pytest.raises(
        Refusal, match=rf"^{state}\.step of checkpoint .* is not loaded: it may run"
    ):
        load_state({state: {"step": 0}}, folder, no_dist=True)
    assert not ran.exists()


def test_a_payload_in_the_loaders_state_does_not_run(ran):
    with pytest.raises(
        Refusal, match=r"^its place is not loaded \(it names pathlib\.Path\.touch\)"
    ):
        plain(pickle.dumps({"a": Payload(ran)}), "its place")
    assert not ran.exists()


@pytest.mark.parametrize("value", [OrderedDict(a=1), torch.zeros(1), eval])
def test_nothing_but_what_is_allowed_is_found(value):
    with pytest.raises(Refusal, match="it names"):
        plain(pickle.dumps(value), "it")


def by_name(member: Any, _protocol: int) -> Any:
    return getattr, (type(member), member.name)


def test_what_python_3_11_2_writes_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    folder = save(tmp_path / "step-1")
    assert b"getattr" in (folder / ".metadata").read_bytes()
    states = {"w": torch.zeros(4)}
    load_state(states, folder, no_dist=True)
    assert states["w"].tolist() == [0, 1, 2, 3]


class Attribute:
    """Its pickle takes one out of what it names."""

    def __init__(self, of: Any, name: str) -> None:
        self.found = of, name

    def __reduce__(self) -> Any:
        return getattr, self.found


@pytest.mark.parametrize(
    ("of", "name"),
    [(torch.Size, "numel"), (_MEM_FORMAT_ENCODING, "__init__"), (Metadata, "__class__")],
)
def test_nothing_else_is_taken_out_of_what_is_named(tmp_path, of, name):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Attribute(of, name)))
    with pytest.raises(ValueError, match=r"can't be read: it names builtins\.getattr$"):
        read_metadata(tmp_path)


def fills(what: Any, state: Any) -> bytes:
    """A pickle that fills attributes of what it names: no class pickles itself so."""
    named = pickle.dumps(what, protocol=2)[2:-1]
    return pickle.PROTO + b"\2" + named + pickle.dumps(state, protocol=2)[2:-1] + b"b."


@pytest.mark.parametrize(
    "what",
    [Metadata, PosixPath, torch.serialization._get_layout, _MEM_FORMAT_ENCODING(0)],
    ids=["class", "path", "function", "enumeration"],
)
def test_nothing_of_the_process_is_changed(tmp_path, what):
    before = dict(vars(what))
    for state in ({"planted": 1}, (None, {"planted": 1})):
        data = fills(what, state)
        assert any(code.name == "BUILD" for code, _, _ in pickletools.genops(data))
        (tmp_path / ".metadata").write_bytes(data)
        with pytest.raises(ValueError, match=r"can't be read: it changes what .* is"):
            read_metadata(tmp_path)
    assert dict(vars(what)) == before


def test_the_memory_of_a_pickle_is_as_large_as_what_is_in_it():
    """A place in it that is a large number takes no room for all those before it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = pickle.PROTO + b"\2" + pickle.NONE + pickle.LONG_BINPUT + b"\0\0\0\x04" + pickle.STOP
    assert plain(data, "it") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "state_dict_metadata", []),
        lambda m: m.state_dict_metadata.update(w="x"),
        lambda m: setattr(m.state_dict_metadata["w"], "size", 4),
        lambda m: setattr(m.state_dict_metadata["w"], "size", (-4,)),
        lambda m: setattr(m.state_dict_metadata["w"], "properties", None),
        lambda m: setattr(m.state_dict_metadata["w"], "chunks", [1]),
        lambda m: setattr(next(iter(m.storage_data.values())), "offset", -1),
    ],
)
def test_metadata_of_other_types_is_none(tmp_path, change):
    folder = save(tmp_path / "step-1")
    metadata = read_metadata(folder)
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="can't be read: it holds something else"):
        read_metadata(folder)


def rewrite(folder: Path, change: Any) -> None:
    """Change the metadata of a checkpoint."""
    metadata = read_metadata(folder)
    change(metadata.state_dict_metadata, metadata.storage_data)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


W, V = MetadataIndex("w", (0,)), MetadataIndex("v", (0,))
HALF = ChunkStorageMetadata(torch.Size([2]), torch.Size([2]))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda entries, places: entries["w"].chunks.clear(), "the pieces of w are not its whole"),
        (lambda entries, places: entries["w"].chunks.append(HALF), "the pieces of w are not its"),
        (lambda entries, places: setattr(entries["w"], "size", (5,)), "the pieces of w are not"),
        (lambda entries, places: setattr(entries["w"], "size", (4, 1)), "the pieces of w are not"),
        (lambda entries, places: setattr(entries["w"], "chunks", [HALF]), "the pieces of w are"),
        (lambda entries, places: places.pop(W), "it does not say where w is"),
        (lambda entries, places: places.clear(), "it does not say where w is"),
        (
            lambda entries, places: entries.update(w=BytesStorageMetadata()),
            "it does not say where w is",
        ),
        (
            lambda entries, places: places.update({V: places[W]}),
            "v and w are in the same place of __0_0.distcp",
        ),
    ],
)
def test_metadata_that_leave_a_part_out_contradict_themselves(tmp_path, change, fault):
    folder = save(tmp_path / "step-1", v=torch.ones(4))
    rewrite(folder, change)
    with pytest.raises(ValueError, match=rf"^\.metadata contradicts itself: {fault}"):
        read_metadata(folder)


@pytest.mark.parametrize(
    ("size", "chunks", "tiled"),
    [
        ((), [((), ())], True),
        ((), [], False),
        ((0,), [], True),
        ((3,), [((0,), (2,)), ((2,), (1,)), ((3,), (0,))], True),  # a rank that has none of it
        ((4, 6), [((y, x), (2, 3)) for y in (0, 2) for x in (0, 3)], True),
        ((4, 6), [((0, 0), (1, 6)), ((1, 0), (3, 2)), ((1, 2), (3, 4))], True),
        ((4, 6), [((y, x), (2, 3)) for y in (0, 2) for x in (0, 2)], False),
        ((4, 6), [((0, 0), (4, 3)), ((0, 0), (4, 3))], False),  # as many elements
        ((4, 6), [((0, 0), (4, 6)), ((0, 0), (0, 6)), ((1, 1), (1, 1))], False),
    ],
)
def test_chunks_are_all_of_a_tensor_and_once(size, chunks, tiled):
    found = [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for at, sizes in chunks]
    entry = TensorStorageMetadata(TensorProperties(), torch.Size(size), found)
    assert _is_tiled(entry) == tiled


def swap(entries: dict[str, Any], places: dict[MetadataIndex, Any]) -> None:
    places[W], places[V] = places[V], places[W]


def cast(entries: dict[str, Any], places: dict[MetadataIndex, Any]) -> None:
    entries["w"].properties.dtype = torch.bfloat16


def value_for_tensor(entries: dict[str, Any], places: dict[MetadataIndex, Any]) -> None:
    value = MetadataIndex("train_state.step")
    places[W], places[value] = places[value], places[W]


def cut(entries: dict[str, Any], places: dict[MetadataIndex, Any]) -> None:
    places[W].length //= 2


@pytest.mark.parametrize("change", [swap, cast, value_for_tensor, cut])
def test_another_tensor_than_the_metadata_say_is_not_loaded(tmp_path, change):
    """torch would cut a larger one to size, and cast another type."""
    folder = save(tmp_path / "step-1", v=torch.ones(5), train_state={"step": 3})
    rewrite(folder, change)
    state = {"w": torch.zeros(4)}
    with pytest.raises(
        Refusal,
        match=rf"^checkpoint {folder} can't be read: __0_0.distcp has something else in the place "
        r"of w than \.metadata says; ",
    ):
        load_state(state, folder, no_dist=True)
    assert state["w"].tolist() == [0] * 4


def test_a_value_that_is_cut_is_named(tmp_path):
    folder = save(tmp_path / "step-1", train_state={"step": 3})
    value = MetadataIndex("train_state.step")
    rewrite(folder, lambda entries, places: setattr(places[value], "length", 9))
    with pytest.raises(Refusal, match=r"something else in the place of train_state\.step than"):
        load_state({"train_state": {"step": 0}}, folder, no_dist=True)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"w": torch.zeros(5)}, r"Size mismatch .* for w"),
        ({"u": torch.zeros(4)}, "Missing key in checkpoint state_dict: u"),
        ({"w": 1}, "Invalid checkpoint metadata for w, .*"),
        ({"train_state": {"step": torch.zeros(1)}}, r"train_state\.step is no tensor there"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, state, why):
    folder = save(tmp_path / "step-1", train_state={"step": 3})
    with pytest.raises(
        Refusal, match=rf"^checkpoint {folder} is not of what this run trains: {why}; take one of"
    ):
        load_state(state, folder, no_dist=True)


def test_what_the_metadata_say_of_their_writer_does_not_matter(tmp_path):
    folder = save(tmp_path / "step-1")
    metadata = read_metadata(folder)
    metadata.storage_meta = "x"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    state = {"w": torch.zeros(4)}
    load_state(state, folder, no_dist=True)
    assert state["w"].tolist() == [0, 1, 2, 3]
