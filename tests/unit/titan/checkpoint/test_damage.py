"""What a crash, a disk or a copy leaves of a checkpoint, and what is said of it."""

import copy
import errno
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torchtitan.config import JobConfig

from lighthouse.titan.checkpoint.damage import (
    _Part,
    _share,
    check_content,
    check_whole,
    say_unsealed,
)
from lighthouse.titan.checkpoint.reading import read_metadata
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.seal import _END_BYTES, _MARK, SealingWriter, _sum, unsealed

SHARD = "__0_0.distcp"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The later of two; of tensors and a value."""
    for step in (1, 2):
        state = {"a": torch.arange(1000.0), "b": torch.ones(30), "train_state": {"step": step}}
        dcp.save(state, checkpoint_id=tmp_path / f"step-{step}", no_dist=True)
    return tmp_path / "step-2"


def overwrite(checkpoint: Path, name: str, data: bytes) -> None:
    """The middle of what is stored under a name."""
    metadata = read_metadata(checkpoint)
    (place,) = (p for i, p in metadata.storage_data.items() if i.fqn == name)
    with (checkpoint / SHARD).open("r+b") as file:
        file.seek(place.offset + place.length // 2)
        file.write(data)


def test_a_whole_one_is_taken(checkpoint):
    check_whole(checkpoint)
    check_content(checkpoint)


@pytest.mark.parametrize(
    ("file", "size", "fault"),
    [
        (SHARD, 0, rf"{SHARD} has 0 of [\d,]+ bytes"),
        (SHARD, 5000, rf"{SHARD} has 5,000 of [\d,]+ bytes"),
        (SHARD, None, f"{SHARD} is missing"),
        (".metadata", 0, r"\.metadata is empty"),
        (".metadata", 100, r"\.metadata can't be read: .+"),
        ("resume.json", 0, r"resume\.json can't be read \(JSONDecodeError: .+\)"),
    ],
)
def test_what_is_cut_or_gone_is_named_with_the_way_on(checkpoint, file, size, fault):
    if size is None:
        (checkpoint / file).unlink()
    else:
        data = (checkpoint / file).read_bytes() if (checkpoint / file).exists() else b""
        (checkpoint / file).write_bytes(data[:size])
    way = "the newest whole one beside it is step-1: move step-2 away to go on from there"
    said = f"checkpoint {checkpoint} can't be read: {fault}; "
    with pytest.raises(ValueError, match=f"^{said}{way}$"):
        check_whole(checkpoint)


def _folder(file: Path) -> None:
    file.mkdir()


def _loop(file: Path) -> None:
    file.symlink_to(file)


def _endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("file", "put", "fault"),
    [
        (SHARD, _folder, f"{SHARD} is no file"),
        (SHARD, os.mkfifo, f"{SHARD} is no file"),
        (SHARD, _endless, f"{SHARD} is no file"),
        ("resume.json", os.mkfifo, r"resume\.json can't be read \(OSError: .* it is no file.*\)"),
        ("resume.json", _endless, r"resume\.json can't be read \(OSError: .* it is no file.*\)"),
        (".metadata", os.mkfifo, r"\.metadata can't be read \(it is no file\)"),
        (".metadata", _endless, r"\.metadata can't be read \(it is no file\)"),
        (SHARD, _loop, rf"{SHARD} can't be read \(Too many levels of symbolic links\)"),
        ("resume.json", _folder, r"resume\.json can't be read \(IsADirectoryError: .*\)"),
        ("resume.json", _loop, r"resume\.json can't be read \(OSError: .*\)"),
        (".metadata", _folder, r"\.metadata can't be read \(Is a directory\)"),
        (".metadata", _loop, r"\.metadata can't be read \(Too many levels of symbolic links\)"),
    ],
)
def test_what_is_no_file_is_named(checkpoint, file, put, fault):
    (checkpoint / file).unlink(missing_ok=True)
    put(checkpoint / file)
    with pytest.raises(ValueError, match=f"^checkpoint {checkpoint} can't be read: {fault}; "):
        check_whole(checkpoint)


def test_a_file_of_another_user_is_named(checkpoint, monkeypatch):
    monkeypatch.setattr("os.access", lambda file, mode: file.name != SHARD)
    with pytest.raises(ValueError, match=rf"{SHARD} can't be read \(Permission denied\)"):
        check_whole(checkpoint)


def test_a_disk_that_fails_while_it_is_read(checkpoint, monkeypatch):
    read = _Part.readinto

    def fails(part, buffer):
        if part.at == 0:  # the data, behind which a zip archive has its table
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(part, buffer)

    monkeypatch.setattr(_Part, "readinto", fails)
    with pytest.raises(ValueError, match=rf"{SHARD} can't be read \(Input/output error\), in "):
        check_content(checkpoint)


def test_a_record_of_something_else_is_broken(checkpoint):
    (checkpoint / "resume.json").write_text('{"optimizer": 1}')
    with pytest.raises(ValueError, match=r"resume\.json can't be read \(TypeError"):
        check_whole(checkpoint)


def seal(folder: Path, step: int) -> Path:
    """A checkpoint as the trainer writes it, with its record; in a shard for each value."""
    RunRecord.of(JobConfig(), 1).write(folder, model_only=False)
    state = {"a": torch.arange(1000.0) + step, "b": torch.ones(30), "c": torch.zeros(1000)}
    writer = SealingWriter(folder)
    writer.single_file_per_rank = False
    values = {**state, "train_state": {"step": step}}
    dcp.save(values, storage_writer=writer, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return seal(tmp_path / "step-3", 3)


def shard_of(checkpoint: Path, name: str) -> Path:
    (place,) = (p for i, p in read_metadata(checkpoint).storage_data.items() if i.fqn == name)
    return checkpoint / place.relative_path


def test_a_shard_of_another_step_is_found(sealed):
    """It has the size, and is sound in itself."""
    other = shard_of(seal(sealed.parent / "step-4", 4), "a")
    shard = shard_of(sealed, "a")
    shard.write_bytes(other.read_bytes())
    check_whole(sealed)
    with pytest.raises(ValueError, match=f"{shard.name} has changed since it was written; "):
        check_content(sealed)


def test_shards_in_each_others_place_are_found(sealed):
    a, c = shard_of(sealed, "a"), shard_of(sealed, "c")
    held = a.read_bytes()
    a.write_bytes(c.read_bytes())
    c.write_bytes(held)
    check_whole(sealed)
    with pytest.raises(ValueError, match=r"distcp has changed since it was written; "):
        check_content(sealed)


def test_the_end_of_a_tensor_has_its_checksums(sealed):
    with zipfile.ZipFile(shard_of(sealed, "a")) as archive:
        assert archive.fp is not None
        size = shard_of(sealed, "a").stat().st_size - archive.start_dir
        assert len(archive.infolist()) > 3 and size <= _END_BYTES


def test_a_checkpoint_without_a_seal_is_taken_with_a_word(checkpoint, sealed, caplog):
    for look in (check_content, say_unsealed):
        look(sealed)
        assert not caplog.records
        look(checkpoint)
        (record,) = caplog.records
        caplog.clear()
        assert record.message.startswith(
            f"Checkpoint {checkpoint} was written without checksums of its files: "
        )


def test_a_sealed_one_is_whole_and_torch_reads_it(sealed):
    check_whole(sealed)
    state = {"a": torch.zeros(1000)}
    dcp.load(state, checkpoint_id=sealed, no_dist=True)
    assert torch.equal(state["a"], torch.arange(1000.0) + 3)


@pytest.mark.parametrize("name", [".metadata", "resume.json"])
def test_no_bit_of_a_small_file_turns_unseen(sealed, name):
    data = (sealed / name).read_bytes()
    for at in range(0, len(data), 13):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        (sealed / name).write_bytes(bytes(changed))
        with pytest.raises(ValueError, match=rf"{name} (has changed|can't be read)"):
            check_whole(sealed)


def test_a_sealed_record_that_is_gone_is_missed(sealed):
    (sealed / "resume.json").unlink()
    with pytest.raises(ValueError, match=r"resume\.json is missing"):
        check_whole(sealed)


@pytest.mark.parametrize(
    "sums",
    ["[1]", "{", "[" * 100_000, '{"resume.json": "x"}', '{"../step-1/resume.json": 1}'],
    ids=["list", "cut", "deep", "text", "elsewhere"],
)
def test_checksums_that_are_none(sealed, sums):
    pickled, _ = unsealed((sealed / ".metadata").read_bytes())
    data = pickled + _MARK + sums.encode()
    (sealed / ".metadata").write_bytes(data + _sum(data))
    with pytest.raises(ValueError, match=r"\.metadata can't be read: its checksums are none; "):
        check_whole(sealed)


def test_a_sealed_file_that_cannot_be_read_is_named(sealed):
    pickled, sums = unsealed((sealed / ".metadata").read_bytes())
    data = pickled + _MARK + json.dumps({**sums, "more.json": 1}).encode()
    (sealed / ".metadata").write_bytes(data + _sum(data))
    os.mkfifo(sealed / "more.json")
    with pytest.raises(ValueError, match=r"more\.json can't be read \(it is no file\)"):
        check_whole(sealed)


def test_places_of_another_kind_are_no_metadata(checkpoint):
    """As a bit in an older checkpoint's, which nothing seals, may leave them."""
    metadata = read_metadata(checkpoint)
    for field in ("relative_path", "length"):
        broken = copy.deepcopy(metadata)
        delattr(next(iter(broken.storage_data.values())), field)
        (checkpoint / ".metadata").write_bytes(pickle.dumps(broken))
        with pytest.raises(ValueError, match="metadata can't be read: it holds something else"):
            check_whole(checkpoint)


@pytest.mark.parametrize("name", [f"../step-1/{SHARD}", "/dev/zero", "\0", "\ud800", ""])
def test_a_file_elsewhere_is_not_read(checkpoint, name):
    metadata = read_metadata(checkpoint)
    for place in metadata.storage_data.values():
        place.relative_path = name
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="which is not in the folder"):
        check_whole(checkpoint)


def test_where_no_other_is_whole_it_is_said(checkpoint):
    for step in (1, 2):
        (checkpoint.parent / f"step-{step}" / SHARD).unlink()
    with pytest.raises(ValueError, match="there is no other whole one beside it; copy it again"):
        check_whole(checkpoint)


@pytest.mark.parametrize("name", ["a", "train_state.step"])
def test_changed_bytes_are_found(checkpoint, name):
    overwrite(checkpoint, name, b"\x7f" * 8)
    check_whole(checkpoint)
    with pytest.raises(ValueError, match=rf"{SHARD} has changed since it was written, in {name};"):
        check_content(checkpoint)
    check_content(checkpoint, ["b"])  # what is not asked for is not looked at


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_bytes(ranks):
    entries = [("f", at, length, "") for at, length in enumerate([5, 900, 20, 300, 300, 300, 1, 0])]
    shares = [_share(entries, rank, ranks) for rank in range(ranks)]
    assert [entry for share in shares for entry in share] == entries
    most = max(sum(length for _, _, length, _ in share) for share in shares)
    assert most <= 1826 / ranks + 900
