"""Both ways to dense, and resumes, give the losses of an uninterrupted run, bit for bit."""

import shutil

import pytest

from tests.support.trainer import train

SAVES = (
    *"--checkpoint.enable --checkpoint.no-last_save_model_only".split(),
    *"--lr_scheduler.total_steps 8 --checkpoint.interval 3".split(),
)
LIGHTHOUSE = ("--lighthouse.enable",)
ONE_RUN = (*SAVES, *LIGHTHOUSE, "--lighthouse.dense_from_step", "6")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"), *ONE_RUN, "--training.steps", "8")


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """Steps 1 to 5 under Lighthouse, saved in full."""
    return train(tmp_path_factory.mktemp("stage1"), *SAVES, *LIGHTHOUSE, "--training.steps", "5")


@pytest.fixture
def stage1_copy(stage1, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(stage1.folder, folder)
    return folder


def test_the_switch_changes_the_loss(undisturbed, stage1, tmp_path):
    on = train(tmp_path, *SAVES, *LIGHTHOUSE, "--training.steps", "7")
    assert list(undisturbed.losses()) == list(range(1, 9))
    assert {s: on.losses()[s] for s in range(1, 6)} == stage1.losses()
    assert on.losses()[5] == undisturbed.losses()[5]
    assert on.losses()[6] != undisturbed.losses()[6]


@pytest.mark.thorough
def test_two_resumes_in_a_row(undisturbed, tmp_path):
    for steps in (2, 4, 8):
        run = train(tmp_path, *ONE_RUN, "--training.steps", str(steps))
    assert run.losses() == undisturbed.losses()


def test_tokens_are_counted_on_at_another_data_parallel_degree(stage1_copy):
    fresh_data = ("--checkpoint.exclude_from_loading", "dataloader")
    same_batch = ("--training.local_batch_size", "1")
    more = (*fresh_data, *same_batch, "--training.steps", "6")
    run = train(stage1_copy, *ONE_RUN, *more, processes=2)
    assert run.values("tokens_seen") == {s: 512 * s for s in range(1, 7)}


def test_killed_in_the_middle_of_a_save(undisturbed, tmp_path):
    killed = train(
        tmp_path,
        *(*ONE_RUN, "--training.steps", "8"),
        *("--experimental.custom_import", "tests.support.kill_in_save"),
        env={"KILL_IN_SAVE_OF_STEP": "6"},
        ok=False,
    )
    assert killed.checkpoint(6).exists() and not (killed.checkpoint(6) / ".metadata").exists()
    assert max(killed.losses()) == 6
    resumed = train(tmp_path, *ONE_RUN, "--training.steps", "8")
    assert "Training starts at step 4" in resumed.output
    assert resumed.losses() == undisturbed.losses()
    assert (resumed.checkpoint(6) / ".metadata").exists()


@pytest.mark.thorough
def test_killed_in_the_middle_of_the_first_save(undisturbed, tmp_path):
    train(
        tmp_path,
        *(*ONE_RUN, "--training.steps", "8"),
        *("--experimental.custom_import", "tests.support.kill_in_save"),
        env={"KILL_IN_SAVE_OF_STEP": "3"},
        ok=False,
    )
    resumed = train(tmp_path, *ONE_RUN, "--training.steps", "8")
    assert resumed.losses() == undisturbed.losses()


def test_second_run_in_the_same_folder(undisturbed, stage1_copy):
    run = train(stage1_copy, *SAVES, "--training.steps", "8")
    assert run.losses() == undisturbed.losses()


def test_an_older_checkpoint_that_is_closed_is_said_and_in_nobodys_way(stage1_copy):
    closed = stage1_copy / "checkpoint" / "step-3"
    run = train(
        stage1_copy,
        *(*SAVES, "--training.steps", "6"),
        *("--experimental.custom_import", "tests.support.lock_checkpoint"),
        env={"LOCKED_CHECKPOINT": str(closed)},
    )
    assert "Training starts at step 6" in run.output
    assert f"checkpoint {closed} can't be read (Permission denied) and stays as it is" in run.output


def test_second_run_in_a_new_folder(undisturbed, stage1, tmp_path):
    # An empty checkpoint folder must not mean training from scratch.
    (tmp_path / "checkpoint").mkdir()
    load = ("--checkpoint.initial_load_path", str(stage1.checkpoint(5)))
    run = train(
        tmp_path, *SAVES, *load, "--checkpoint.no-initial_load_model_only", "--training.steps", "8"
    )
    assert run.losses() == {step: undisturbed.losses()[step] for step in (6, 7, 8)}


def test_a_finished_run_says_so_and_changes_nothing(stage1, stage1_copy):
    run = train(stage1_copy, *SAVES, "--training.steps", "5")
    assert f"nothing is left to train: checkpoint {run.checkpoint(5)} is at step 5" in run.output
    assert "Traceback" not in run.output and "Training starts" not in run.output
    assert run.lines() == stage1.lines()


@pytest.mark.thorough
def test_a_changed_data_parallel_degree(stage1_copy):
    more = (*SAVES, "--training.steps", "8")
    run = train(stage1_copy, *more, processes=2, ok=False)
    assert "training.local_batch_size = 2 (was 2), sequences of a step are 4" in run.refusal()
    more += ("--training.local_batch_size", "1")
    run = train(stage1_copy, *more, processes=2, ok=False)
    assert run.refusal().startswith("data-parallel degree = 2")
    assert "exclude_from_loading = ['dataloader']" in run.refusal()
    run = train(stage1_copy, *more, "--checkpoint.exclude_from_loading", "dataloader", processes=2)
    assert max(run.losses()) == 8
