"""Which checkpoints a run goes on from, and which it is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from lighthouse.refusal import NothingToDo
from lighthouse.titan.checkpoint.record import RECORD, RunRecord, begin_save
from lighthouse.titan.checkpoint.resume import check_loaded, check_resume
from lighthouse.titan.data.text_files import forget_files


@pytest.fixture
def job(tmp_path: Path):
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.job.dump_folder = str(tmp_path)
    job.checkpoint.enable = True
    job.training.steps = 20
    return job


def save(
    job, step: int, folder: Path | None = None, model_only: bool = False, **changes: object
) -> Path:
    """A finished checkpoint of the job in one process; ``changes`` are of its record."""
    path = (folder or Path(job.job.dump_folder) / "checkpoint") / f"step-{step}"
    begin_save(str(path), replace(RunRecord.of(job, 1), **changes), model_only)
    (path / ".metadata").touch()
    return path


def refused(job, degree: int = 1) -> str:
    with pytest.raises(ValueError) as error:
        check_resume(job, degree)
    return str(error.value)


def counted_by(job, degree: int = 1) -> int:
    """Of a resume that passes."""
    return check_resume(job, degree).counted_by


def finished(job) -> str:
    with pytest.raises(NothingToDo) as done:
        check_resume(job, 1)
    return str(done.value)


def test_a_matching_resume_passes(job):
    save(job, 10)
    assert counted_by(job, 1) == 1


def test_nothing_to_load_passes(job, tmp_path):
    assert counted_by(job, 3) == 3
    (tmp_path / "checkpoint").mkdir()
    assert counted_by(job, 3) == 3


@pytest.mark.parametrize("step", [20, 25])
def test_a_finished_run_is_no_mistake(job, step):
    path = save(job, step)
    message = finished(job)
    assert f"nothing is left to train: checkpoint {path} is at step {step}" in message
    assert "training.steps = 20; raise training.steps to go on" in message


@pytest.mark.parametrize("model_only", [False, True])
def test_a_finished_run_of_other_settings_is_told_from_this_one(job, model_only):
    """The same command says no more than that it is done, and a changed one what it would need."""
    save(job, 25, model_only=model_only)
    assert "other settings" not in finished(job)
    job.optimizer.lr, job.model.args.rope_theta = 1.0, 2e6
    said = "; it was trained under other settings than these (optimizer.lr, model.args.rope_theta);"
    assert said in finished(job)
    job.checkpoint.accept_changes = ["lr_scheduler", "model"]
    assert "other settings" not in finished(job)
    job.model.args.dim, job.training.dataset, job.training.local_batch_size = 64, "c4", 3
    assert ", ...); raise training.steps to go on" in finished(job)


def test_model_only_cannot_be_resumed(job):
    save(job, 10, model_only=True)
    assert "holds the model alone" in refused(job)


def test_changed_data_parallel_degree(job):
    save(job, 10)
    assert "data-parallel degree = 4" in refused(job, degree=4)
    job.training.local_batch_size //= 4
    job.checkpoint.exclude_from_loading = ["dataloader"]
    assert counted_by(job, 4) == 1  # by which its tokens were counted


def test_changed_data(job):
    save(job, 10)
    job.training.dataloader.num_workers = 2
    assert "training.dataloader.num_workers = 2" in refused(job)
    job.training.dataloader.num_workers, job.training.dataset = 0, "local"
    assert "training.dataset = 'local'" in refused(job)
    job.checkpoint.exclude_from_loading = ["dataloader"]
    check_resume(job, 1)


def test_a_record_from_before_the_order_had_a_seed(job):
    job.training.dataset_order = "shuffled"
    data = dict(RunRecord.of(job, 1).data)
    del data["training.dataset_seed"]
    save(job, 10, data=data)
    assert check_resume(job, 1).changes == []
    job.training.dataset_seed = 3
    assert refused(job).startswith("training.dataset_seed = 3 (was 0): checkpoint ")


def test_a_folder_has_one_model(job, tmp_path):
    path = save(job, 10)
    job.model.args.rope_theta = 2e6
    message = refused(job)
    assert message.startswith("model.args.rope_theta = 2000000.0 (was 500000): checkpoint ")
    assert f"checkpoint {path} was trained otherwise" in message
    # Elsewhere its weights may go on with another base, and with their optimizer.
    job.job.dump_folder = str(tmp_path / "other")
    job.checkpoint.initial_load_path = str(path)
    job.checkpoint.initial_load_model_only = False
    assert counted_by(job, 1) == 1


def test_steps_are_not_counted_again_over_finished_checkpoints(job, tmp_path):
    path = save(job, 10)
    job.checkpoint.exclude_from_loading = ["train_state"]
    message = refused(job)
    assert message.startswith("checkpoint.exclude_from_loading = ['train_state']: ")
    assert f"would overwrite the finished checkpoints in {path.parent}" in message
    # Where there are none to overwrite, they may be.
    job.job.dump_folder = str(tmp_path / "other")
    job.checkpoint.initial_load_path = str(path)
    job.checkpoint.initial_load_model_only = False
    assert counted_by(job, 1) == 1


def test_changed_local_text(job, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("one")
    job.training.dataset, job.training.dataset_path = "local", str(texts)
    save(job, 10)
    job.training.dataset_path = str(texts / "a.txt")
    check_resume(job, 1)
    (tmp_path / "other.txt").write_text("two")
    job.training.dataset_path = str(tmp_path / "other.txt")
    assert "other.txt, 1 files of 3 bytes' (was '" in refused(job)
    forget_files()
    moved = texts.rename(tmp_path / "moved")
    job.training.dataset_path = str(moved)
    check_resume(job, 1)
    (moved / "a.txt").write_text("eno")
    message = refused(job)
    assert ", changed: a.txt, and it is not known how far it was read: checkpoint " in message
    job.checkpoint.exclude_from_loading = ["dataloader"]
    check_resume(job, 1)


def test_weights_in_hugging_faces_format(job):
    path = save(job, 10, model_only=True)
    (path / ".metadata").rename(path / "model.safetensors.index.json")
    assert "checkpoint.initial_load_in_hf = true" in refused(job)
    job.training.steps = 10
    assert "is at step 10" in finished(job)


def test_the_model_alone_may_be_of_any_step(job, tmp_path):
    path = save(job, 30, folder=tmp_path / "other")
    job.checkpoint.initial_load_path = str(path)
    check_resume(job, 1)
    job.checkpoint.initial_load_model_only = False
    assert "is at step 30" in finished(job)


def test_seed_checkpoints_and_foreign_checkpoints_pass(job):
    save(job, 0, model_only=True)
    check_resume(job, 1)
    (save(job, 10, model_only=True) / RECORD).unlink()
    check_resume(job, 1)


def lighthouse_until(job, dense_from_step: int | None, selection: str) -> None:
    section = job.lighthouse
    section.enable, section.dense_from_step, section.selection = True, dense_from_step, selection


def test_a_lighthouse_stage_goes_on_with_the_selection_that_it_began_with(job):
    lighthouse_until(job, 15, "published")
    save(job, 10)
    lighthouse_until(job, 15, "causal")
    message = refused(job)
    assert message.startswith("lighthouse.selection = 'causal' (was 'published'): checkpoint ")
    assert "set lighthouse.selection = 'published' to go on as it began" in message
    lighthouse_until(job, 11, "published")  # what comes is dense
    check_resume(job, 1)


def test_steps_that_were_dense_have_been(job):
    lighthouse_until(job, 5, "published")
    save(job, 10)
    lighthouse_until(job, 15, "published")
    assert refused(job).startswith("lighthouse.dense_from_step = 15 (was 5), and step 5 was dense")
    job.lighthouse.enable = False  # dense from here on
    check_resume(job, 1)


@pytest.mark.parametrize(
    ("logged", "was_lighthouse"),
    [(None, False), ("", False), ("lighthouse", True), ("dense", False)],
)
def test_the_log_tells_the_selection_of_a_record_without_stages(
    job, tmp_path, logged, was_lighthouse
):
    """There was no other selection than the published one then."""
    lighthouse_until(job, 15, "causal")
    save(job, 10, stages=None)
    if logged is not None:
        lines = (f'{{"step": {step}, "loss": 1.0, "stage": "{logged}"}}\n' for step in (9, 10))
        later = '{"step": 11, "loss": 1.0, "stage": "other"}\n'
        text = "".join(lines) + later if logged else ""
        (tmp_path / "metrics.jsonl").write_text(text)
    if was_lighthouse:
        assert "lighthouse.selection = 'causal' (was 'published')" in refused(job)
    else:
        check_resume(job, 1)


def test_a_validation_that_was_logged_last_says_nothing_of_the_stage(job, tmp_path):
    lighthouse_until(job, 15, "causal")
    save(job, 10, stages=None)
    lines = [
        '{"step": 10, "loss": 1.0, "stage": "lighthouse"}',
        '{"step": 10, "validation_loss": 2}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "lighthouse.selection = 'causal' (was 'published')" in refused(job)


def stage(steps: int, attention: str = "dense", **keys: object) -> dict[str, object]:
    return {"steps": steps, "attention": attention, **keys}


def set_stages(job, *tables: dict[str, object]) -> None:
    job.stages = list(tables)
    job.training.steps = sum(table["steps"] for table in tables)


@pytest.fixture
def staged(job):
    """Steps 1 to 5, 6 to 10 and 11 to 20."""
    job.lighthouse.enable = True
    job.lr_scheduler.warmup_steps, job.lr_scheduler.decay_ratio = 2, 0.2
    set_stages(job, stage(5, seq_len=64), stage(5, "lighthouse", topk=8), stage(10))
    return job


def test_the_same_stages_pass(staged):
    for step in (4, 5, 6):
        save(staged, step)
        assert counted_by(staged, 1) == 1


def test_stages_ahead_may_change(staged):
    save(staged, 5)
    set_stages(staged, staged.stages[0], stage(3, seq_len=32, lr_factor=0.5), stage(1), stage(30))
    assert counted_by(staged, 1) == 1


def test_stages_ahead_may_not_change_a_rate_that_decays_already(staged):
    staged.lr_scheduler.decay_ratio = 0.8
    save(staged, 6)
    set_stages(staged, *staged.stages[:2], stage(30))
    message = refused(staged)
    assert "lr_scheduler.total_steps = 40 (was 20)" in message
    # A schedule of 20 steps has no rate for 40.
    assert "leave training.steps, the sum of [[stages]], at 20 to go on as it began" in message
    staged.checkpoint.accept_changes = ["lr_scheduler"]
    assert counted_by(staged, 1) == 1


@pytest.mark.parametrize("steps", [3, 4, 9])
def test_the_present_stage_may_end_elsewhere(staged, steps):
    save(staged, 3)
    set_stages(staged, stage(steps, seq_len=64), *staged.stages[1:])
    assert counted_by(staged, 1) == 1


def test_a_stage_that_has_just_ended_may_go_on(staged):
    save(staged, 5)
    set_stages(staged, stage(7, seq_len=64), *staged.stages[1:])
    assert counted_by(staged, 1) == 1


@pytest.mark.parametrize(
    ("step", "number", "table", "message"),
    [
        (6, 1, stage(5, seq_len=128), "stages.1.seq_len = 128 (was 64), of which 5 steps "),
        (6, 1, stage(5), "stages.1.seq_len = not set (was 64), of which"),
        (6, 1, stage(6, seq_len=64), "stages.1.steps = 6 (was 5), of which 5 "),
        (6, 1, stage(5, seq_len=64, lr_factor=2.0), "stages.1.lr_factor = 2.0 (was not set)"),
        (6, 2, stage(5, "lighthouse", topk=16), "stages.2.topk = 16 (was 8), of which 1 "),
        (8, 2, stage(2, "lighthouse", topk=8), "stages.2.steps = 2 (was 5), of which 3 "),
        (5, 1, stage(4, seq_len=64), "stages.1.steps = 4 (was 5), of which 5 "),
    ],
)
def test_what_is_trained_may_not_change(staged, step, number, table, message):
    path = save(staged, step)
    tables = list(staged.stages)
    tables[number - 1] = table
    set_stages(staged, *tables)
    assert refused(staged).startswith(message)
    assert str(path) in refused(staged)


def test_what_follows_from_a_stages_steps_goes_back_with_them(staged):
    """Each key by itself would make stages that there never were."""
    save(staged, 8)
    set_stages(staged, stage(2, seq_len=64), *staged.stages[1:])
    message = refused(staged)
    assert "stages.2.attention = 'lighthouse' (was 'dense'), at step 3" in message
    assert "; set stages.1.steps = 5 to go on as it began" in message
    staged.optimizer.weight_decay = 0.3  # which follows from nothing
    assert "; set optimizer.weight_decay = 0.1 and set stages.1.steps = 5 to go" in refused(staged)


def test_a_stage_that_is_trained_may_not_go(staged):
    save(staged, 6)
    set_stages(staged, stage(20, seq_len=64))
    assert refused(staged).startswith("stages.1.steps = 20 (was 5)")
    save(staged, 6)
    set_stages(staged, staged.stages[0] | {"steps": 5}, stage(5, "lighthouse", topk=8))
    save(staged, 6)
    staged.training.steps, staged.stages = 5, staged.stages[:1]
    assert "add to [[stages]] to go on" in finished(staged)


def test_what_sections_say_of_stages_behind(staged):
    save(staged, 6)
    staged.training.seq_len = 256
    assert refused(staged).startswith("training.seq_len = 256 (was 2048), at step 6: checkpoint")
    staged.training.seq_len = 2048
    assert counted_by(staged, 1) == 1
    staged.lighthouse.selection = "published"
    message = refused(staged)
    assert message.startswith("lighthouse.selection = 'published' (was 'causal'), at step 6: ")


def test_another_selection_in_the_next_stage_is_no_mistake(staged):
    tables = [stage(5, "lighthouse"), stage(15, "lighthouse", selection="published")]
    set_stages(staged, *tables)
    save(staged, 5)
    assert counted_by(staged, 1) == 1


def test_a_run_without_stages_goes_on_in_stages_that_say_what_it_was(job):
    job.lighthouse.enable, job.lighthouse.dense_from_step = True, 4
    save(job, 6)
    job.lighthouse.dense_from_step = None
    set_stages(job, stage(3, "lighthouse"), stage(17))
    assert counted_by(job, 1) == 1
    set_stages(job, stage(4, "lighthouse"), stage(16))
    assert refused(job).startswith("stages.1.attention = 'lighthouse' (was 'dense'), at step 4: ")
    set_stages(job, stage(3, "lighthouse", seq_len=64), stage(17))
    assert refused(job).startswith("stages.1.seq_len = 64 (was 2048), at step 1: checkpoint")


def test_a_run_with_stages_goes_on_without_them_only_if_that_is_the_same(job):
    job.lighthouse.enable = True
    set_stages(job, stage(5, "lighthouse"), stage(15))
    save(job, 7)
    job.stages, job.lighthouse.dense_from_step = [], 6
    assert counted_by(job, 1) == 1
    job.lighthouse.dense_from_step = 8
    assert "attention = 'lighthouse' (was 'dense'), and step 6 was dense" in refused(job)


def test_a_new_schedule_does_not_fit_stages(staged):
    save(staged, 6)
    staged.checkpoint.exclude_from_loading = ["optimizer", "lr_scheduler"]
    assert "change lr_factor or warmup_steps of stages to come" in refused(staged)


def test_in_another_folder_steps_may_count_from_one(staged, tmp_path):
    path = save(staged, 6, folder=tmp_path / "other")
    set_stages(staged, stage(20))
    staged.checkpoint.initial_load_path = str(path)
    staged.checkpoint.initial_load_model_only = False
    assert refused(staged).startswith("stages.1.")
    staged.checkpoint.exclude_from_loading = ["train_state"]
    assert counted_by(staged, 1) == 1
    staged.checkpoint.exclude_from_loading = []
    staged.checkpoint.initial_load_model_only = True
    assert counted_by(staged, 1) == 1


def test_a_checkpoint_under_the_name_of_another_step(job):
    """Those that the run saves from it would be older than it by their names."""
    check_loaded(job, 4, 4, None)
    check_loaded(job, 4, None, None)
    with pytest.raises(ValueError, match=r"^checkpoint step-9 holds step 4, .*rename it to step-4"):
        check_loaded(job, 4, 9, None)
    job.checkpoint.exclude_from_loading = ["train_state"]
    check_loaded(job, 0, 9, None)
