"""A checkpoint that is damaged, or that runs something, is refused before the first step."""

import shutil
from pathlib import Path

import pytest

from lighthouse.titan.checkpoint.reading import read_metadata
from tests.support.trainer import Run, train

SAVES = "--checkpoint.enable --checkpoint.interval 1 --training.steps 2".split()
SAVES += ["--lr_scheduler.total_steps", "3", "--checkpoint.no-last_save_model_only"]
MORE = [*SAVES, "--training.steps", "3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    return train(tmp_path_factory.mktemp("whole"), *SAVES)


@pytest.fixture
def nan(whole, tmp_path) -> Run:
    return damaged(whole, tmp_path, "layers.1.feed_forward.w1.weight")


def damaged(whole: Run, tmp_path: Path, weight: str) -> Run:
    """The same, with bytes in the middle of a weight set: to what is no number."""
    run = Run(tmp_path / "nan", 0, "")
    shutil.copytree(whole.folder, run.folder)
    stored = read_metadata(run.checkpoint(2)).storage_data
    (place,) = (p for i, p in stored.items() if i.fqn == weight)
    with (run.checkpoint(2) / place.relative_path).open("r+b") as file:
        file.seek(place.offset + place.length // 2)
        file.write(b"\xff" * 64)
    return run


def test_changed_bytes_are_refused_on_all_ranks(nan):
    layout = ("--parallelism.tensor_parallel_degree", "2")
    run = train(nan.folder, *MORE, *layout, processes=2, ok=False)
    assert run.refusal() == (
        f"checkpoint {nan.checkpoint(2)} can't be read: __0_0.distcp has changed since it was "
        "written, in layers.1.feed_forward.w1.weight; the newest whole one beside it is step-1: "
        "move step-2 away to go on from there"
    )


def test_moments_that_are_no_numbers_are_refused(whole, tmp_path):
    """A step would put them into the weights, and the next one blame the loss."""
    weight = "layers.1.feed_forward.w1.weight"
    run = damaged(whole, tmp_path, f"optimizer.state.{weight}.exp_avg_sq")
    run = train(run.folder, *MORE, "--checkpoint.no-verify", ok=False)
    assert f"has values in exp_avg_sq of {weight} that are not finite" in run.refusal()


def test_weights_that_are_no_numbers_are_refused_without_checksums_too(nan):
    run = train(nan.folder, *MORE, "--checkpoint.no-verify", ok=False)
    assert run.refusal().startswith(
        f"checkpoint {nan.checkpoint(2)} has values in layers.1.feed_forward.w1.weight that are not"
    )
    assert run.refusal().endswith("by checkpoint.accept_changes = ['nonfinite']")


@pytest.mark.thorough
def test_weights_that_are_no_numbers_go_on_where_that_is_accepted(whole, tmp_path):
    """Those of tokens that the text has not; others end the run with the first loss."""
    nan = damaged(whole, tmp_path, "tok_embeddings.weight")
    accepts = ("--checkpoint.no-verify", "--checkpoint.accept_changes", "nonfinite")
    run = train(nan.folder, *MORE, *accepts)
    assert "Values in tok_embeddings.weight, and perhaps behind it, are not finite" in run.output
    shutil.copytree(whole.folder, tmp_path / "whole")
    assert run.losses()[3] == train(tmp_path / "whole", *MORE).losses()[3]
    assert run.checkpoint(3).is_dir()


def test_a_payload_in_the_loaders_state_does_not_run(tmp_path):
    ran = tmp_path / "ran"
    planted = ("--experimental.custom_import", "tests.support.payload")
    run = train(tmp_path / "run", *SAVES, *planted, env={"PAYLOAD": str(ran)})
    assert "Importing tests.support.payload, as experimental.custom_import says" in run.output
    run = train(tmp_path / "run", *MORE, ok=False)
    assert run.refusal().startswith(
        "the loader's place in the data is not loaded (it names pathlib"
    )
    assert not ran.exists()
