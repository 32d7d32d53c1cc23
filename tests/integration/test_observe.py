"""What a run tells of itself: statistics of the selection, and the loss of the other stage."""

from pathlib import Path

import pytest

from tests.support.trainer import Run, train

STEPS = 4
# In the shape of the batches that are trained on: a second one is compiled with symbols for sizes,
# which takes three times as long.
VALIDATION = "--validation.enable --validation.dataset python --validation.seq_len 256".split()
VALIDATION += "--validation.local_batch_size 2 --validation.steps 2 --validation.freq 2".split()
# The weights stay what they were, so that both runs below validate the same ones.
COMMON = ["--training.steps", str(STEPS), "--optimizer.lr", "1e-9", *VALIDATION]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Compiled, checkpointed, accumulating, three kinds of Lighthouse layers: through the switch.

    Each kind is compiled for both stages, in training and validation: more variants of the blocks'
    code than PyTorch allows unasked.
    """
    return train(
        tmp_path_factory.mktemp("observed"),
        *COMMON,
        *"--lighthouse.enable --lighthouse.dense_layers 0 --lighthouse.topk 8".split(),
        *"--lighthouse.layer_overrides 1:pooling_factor=2,2:num_levels=2".split(),
        *f"--lighthouse.dense_from_step {STEPS} --lighthouse.validate_dense".split(),
        *"--lighthouse.selection_log_freq 2 --metrics.enable_tensorboard".split(),
        *"--compile.enable --compile.backend eager".split(),
        *"--activation_checkpoint.mode full --training.global_batch_size 4".split(),
    )


def test_statistics_are_logged_where_they_belong(observed: Run) -> None:
    first = "lighthouse/layer_01/full_resolution_share"
    # One head of layer 1 sees 8 * 2 of 256 tokens, four heads at most four times that.
    shares = observed.values(first)
    assert list(shares) == [1, 2]  # step 3 is between, and 4 is dense
    assert all(16 / 256 <= share <= 64 / 256 for share in shares.values())
    assert list(observed.values("lighthouse/layer_03/selection_change")) == [2]
    assert not observed.values("lighthouse/layer_00/full_resolution_share")

    assert observed.tensorboard(first) == pytest.approx(shares)
    for kind in ("query", "key"):
        assert observed.tensorboard(f"lighthouse/layer_02/{kind}_score_p90")


def test_the_dense_loss_is_that_of_the_same_weights(observed: Run, tmp_path: Path) -> None:
    dense = train(tmp_path, *COMMON).values("validation_loss")
    foreseen = observed.values("validation_dense_loss")
    assert list(foreseen) == [1, 2]
    assert foreseen == pytest.approx({step: dense[step] for step in foreseen}, rel=1e-6)
    present = observed.values("validation_loss")
    assert list(present) == [1, 2, 4]
    assert present[4] == pytest.approx(dense[4], rel=1e-6)
    assert all(abs(present[step] - dense[step]) > 1e-5 * dense[step] for step in foreseen)
    assert f"dense loss: {foreseen[2]:7.4f}" in observed.output
