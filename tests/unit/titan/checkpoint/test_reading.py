"""A checkpoint that somebody else made is read, and nothing in it runs.

That of the loader, which the trainer reads, is in tests/integration/test_damage.py.
"""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from lighthouse.refusal import Refusal
from lighthouse.titan.checkpoint.reading import load_state, plain, read_metadata
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
