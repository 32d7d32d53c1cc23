"""What may change between a checkpoint and the run that goes on from it, key by key."""

import copy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from torchtitan.config import JobConfig

from lighthouse.titan.check.checkpoint import check_checkpoint
from lighthouse.titan.checkpoint.change import Change
from lighthouse.titan.checkpoint.changes import changes
from lighthouse.titan.checkpoint.record import RunRecord, begin_save
from lighthouse.titan.checkpoint.resume import check_resume
from lighthouse.titan.checkpoint.settings import _NO_INFLUENCE, ACCEPTABLE, OF_STEPS_TO_COME
from lighthouse.titan.data.text_files import forget_files

STEP = 10

OTHERWISE = {
    "model.name": "deepseek_v3",
    "model.flavor": "530M",
    "training.dataset": "python",
    "training.dataset_path": "/other",
    "training.sources": [{"path": "/other"}],
    "model.tokenizer": "byte",
    "lr_scheduler.warmup_steps": 3,
    "lr_scheduler.total_steps": 40,
    "lr_scheduler.decay_ratio": 0.5,
    "lr_scheduler.decay_type": "cosine",
    "lr_scheduler.min_lr_factor": 0.5,
    "training.global_batch_size": 4,
    "stages": [{"steps": 20, "attention": "dense"}],
    "lighthouse.enable": False,
    "lighthouse.num_chunks": 2,
    "lighthouse.dense_from_step": 4,
}
"""Another value, where one of the same type would be none, or would mean the same."""

FOLLOWS = {
    # Not a setting of the run, or of another model, or the same by another name.
    *("model.hf_assets_path", "model.tokenizer_path", "lr_scheduler.decay_from_stage"),
    # A TOML's alone: they say what stands elsewhere.
    *("model.args", "training.rehearse_stages"),
}


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [(True, False, "false (was true)"), (None, 6, "6 (was not set)"), (1, "a", "'a' (was 1)")],
)
def test_values_are_said_as_a_file_has_them(was: Any, now: Any, said: str) -> None:
    assert str(Change("some.key", was, now, None)) == f"some.key = {said}"


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    job = JobConfig()
    job.job.dump_folder = str(tmp_path)
    job.checkpoint.enable = True
    job.training.steps = job.lr_scheduler.total_steps = 20
    job.lr_scheduler.warmup_steps = 2
    job.lighthouse.enable = True
    return job


def keys(config: Any = None, path: str = "") -> list[str]:
    found = []
    for field in fields(JobConfig() if config is None else config):
        value = getattr(JobConfig() if config is None else config, field.name)
        key = f"{path}{field.name}"
        is_section = is_dataclass(value) and key not in FOLLOWS
        found += keys(value, f"{key}.") if is_section else [key]
    return found


def other(key: str, value: Any) -> Any:
    if key in OTHERWISE:
        return OTHERWISE[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "another"]
    return "another" if value != "another" else ""


def set_key(job: JobConfig, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    section: Any = job
    for part in sections:
        section = getattr(section, part)
    setattr(section, name, value)


def get_key(job: JobConfig, key: str) -> Any:
    value: Any = job
    for part in key.split("."):
        value = getattr(value, part)
    return value


def changes_of(job: JobConfig, now: JobConfig, step: int = STEP) -> list[Change]:
    return changes(RunRecord.of(job, 1), RunRecord.of(now, 1), step, own=True)


@pytest.mark.parametrize("key", [key for key in keys() if key not in FOLLOWS])
def test_every_key_is_compared_unless_a_reason_is_given(job: JobConfig, key: str) -> None:
    now = copy.deepcopy(job)
    set_key(now, key, other(key, get_key(job, key)))
    if key == "model.name":  # not every model can be described
        now.lighthouse.enable = job.lighthouse.enable = False
    found = changes_of(job, now)
    listed = key.startswith(tuple(_NO_INFLUENCE)) and key not in (
        *("job.custom_config_module", "parallelism.fsdp_on_one_rank"),
        *("training.dataloader.num_workers", "lighthouse.num_chunks"),
        "parallelism.context_parallel_degree",  # which num_chunks follows
    )
    assert bool(found) != listed, found
    if not listed and key not in OF_STEPS_TO_COME:
        assert any(change.needs_a_word for change in found)
    elif key in ("lighthouse.dense_from_step",):
        assert any(change.needs_a_word for change in found)  # it lies behind
    else:
        assert not any(change.needs_a_word for change in found)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("optimizer.lr", 0.5, "lr_scheduler"),
        ("lr_scheduler.min_lr_factor", 0.5, "lr_scheduler"),
        ("optimizer.beta2", 0.5, "optimizer"),
        ("optimizer.weight_decay", 0.0, "optimizer"),
        ("training.dataset_order", "shuffled", "data"),
        ("training.dataset_seed", 3, "data"),
        ("training.task_rate", 0.5, "data"),
        ("model.tokenizer", "byte", "tokenizer"),
        ("lighthouse.scorer", "dilated", "attention"),
        ("lighthouse.window", 64, "attention"),
        ("training.max_norm", 0.5, "training"),
        ("training.mixed_precision_param", "float32", "training"),
        ("training.local_batch_size", 4, "training"),
        ("training.seq_len", 256, "training"),
        ("debug.seed", 5, "training"),
    ],
)
def test_a_change_of_steps_taken_goes_by_its_name_alone(
    job: JobConfig, tmp_path: Path, key: str, value: Any, name: str
) -> None:
    path = tmp_path / "checkpoint" / f"step-{STEP}"
    begin_save(str(path), RunRecord.of(job, 1), model_only=False)
    (path / ".metadata").touch()
    was = get_key(job, key)
    set_key(job, key, value)
    with pytest.raises(ValueError, match="was trained otherwise; ") as refused:
        check_resume(job, 1)
    if key != "model.tokenizer":
        assert str(refused.value).startswith(str(Change(key, was, value, name)))
    assert str(refused.value).startswith(f"{key} = ")
    assert f"by checkpoint.accept_changes = ['{name}']" in str(refused.value)
    job.checkpoint.accept_changes = [other for other in ACCEPTABLE if other != name]
    with pytest.raises(ValueError, match="was trained otherwise; "):
        check_resume(job, 1)
    job.checkpoint.accept_changes = [name]
    check_checkpoint(job)
    resume = check_resume(job, 1)
    assert resume.record.changes[0]["after_step"] == STEP
    assert {"key": key, "name": name}.items() <= resume.record.changes[0].items()


def test_changes_stay_in_the_records_to_come(job: JobConfig, tmp_path: Path) -> None:
    def save(step: int) -> None:
        path = tmp_path / "checkpoint" / f"step-{step}"
        begin_save(str(path), check_resume(job, 1).record, model_only=False)
        (path / ".metadata").touch()

    save(5)
    job.training.max_norm, job.checkpoint.accept_changes = 2.0, ["training"]
    save(10)
    job.training.nonfinite = "skip"
    save(15)
    record = RunRecord.read(tmp_path / "checkpoint" / "step-15")
    assert record is not None
    assert [(c["after_step"], c["key"], c["was"], c["now"]) for c in record.changes] == [
        (5, "training.max_norm", 1.0, 2.0),
        (10, "training.nonfinite", "stop", "skip"),
    ]


def test_a_schedule_that_agrees_on_all_steps_taken(job: JobConfig) -> None:
    job.lr_scheduler.decay_ratio = 0.5
    longer = copy.deepcopy(job)
    longer.training.steps = longer.lr_scheduler.total_steps = 40
    found = changes_of(job, longer)  # constant until step 10 in both
    assert {change.key for change in found} == {"lr_scheduler.total_steps", "training.steps"}
    assert not any(change.needs_a_word for change in found)
    assert any(change.needs_a_word for change in changes_of(job, longer, step=15))
    longer.lr_scheduler.warmup_steps = 3
    assert any(change.needs_a_word for change in changes_of(job, longer))


def test_microbatches_of_the_same_batch(job: JobConfig) -> None:
    job.training.local_batch_size, job.training.global_batch_size = 4, 8
    now = copy.deepcopy(job)
    now.training.local_batch_size = 2
    (change,) = changes_of(job, now)
    assert change.key == "training.local_batch_size" and not change.needs_a_word
    now.training.local_batch_size, now.training.global_batch_size = 8, -1
    assert not any(change.needs_a_word for change in changes_of(job, now))
    now.training.local_batch_size = 4
    assert "training.global_batch_size = 4 (was 8)" in str(changes_of(job, now)[0])


def test_a_key_that_is_newer_than_the_record_is_no_change(job: JobConfig, tmp_path: Path) -> None:
    record = RunRecord.of(job, 1)
    assert record.settings is not None
    del record.settings["training.max_norm"]
    path = tmp_path / "checkpoint" / f"step-{STEP}"
    begin_save(str(path), record, model_only=False)
    (path / ".metadata").touch()
    assert check_resume(job, 1).changes == []
    job.training.max_norm = 2.0
    with pytest.raises(ValueError, match=r"training\.max_norm = 2\.0 \(was 1\.0\)"):
        check_resume(job, 1)


def test_weights_of_other_shapes_cannot_go_on(job: JobConfig, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / f"step-{STEP}"
    begin_save(str(path), RunRecord.of(job, 1), model_only=False)
    (path / ".metadata").touch()
    job.model.args.dim = 64
    job.checkpoint.accept_changes = list(ACCEPTABLE)
    with pytest.raises(ValueError, match=r"start another job\.dump_folder from its weights"):
        check_resume(job, 1)


def test_a_name_that_there_is_not(job: JobConfig) -> None:
    job.checkpoint.accept_changes = ["lr"]
    with pytest.raises(ValueError, match="there is no 'lr', but lr_scheduler, optimizer, data"):
        check_checkpoint(job)


def test_text_that_was_read_needs_a_word(job: JobConfig, tmp_path: Path) -> None:
    job.training.dataset, job.training.dataset_path = "local", str(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    before = RunRecord.of(job, 1)
    (tmp_path / "b.txt").write_text("text")
    forget_files()
    after = RunRecord.of(job, 1)
    (change,) = changes(before, after, STEP, own=True, why_read=[""])
    assert (change.name, change.note) == (None, "new: b.txt")
    (change,) = changes(before, after, STEP, own=True, why_read=["some of which was read"])
    assert (change.name, change.note) == ("data", "new: b.txt, some of which was read")


def test_the_batch_is_that_of_all_ranks(job: JobConfig) -> None:
    """Twice the ranks with half the sequences each are the same batch, and else twice as many."""
    before = RunRecord.of(job, 1)

    def by_two_ranks() -> list[Change]:
        found = changes(before, RunRecord.of(job, 2), STEP, own=True)
        return [change for change in found if change.needs_a_word and change.name != "data"]

    (change,) = by_two_ranks()
    assert change.name == "training" and change.key == "training.local_batch_size"
    assert "are 16 by 2 data-parallel ranks, and were 8 by 1" in str(change)
    assert change.back == "set training.local_batch_size = 4"
    job.training.local_batch_size = 4
    assert by_two_ranks() == []


def test_what_a_rank_had_is_said_of_several(job: JobConfig) -> None:
    before = RunRecord.of(job, 2)
    job.training.local_batch_size = 4
    (change,) = changes(before, RunRecord.of(job, 2), STEP, own=True)
    assert (change.was, change.now, change.back) == (8, 4, "set training.local_batch_size = 8")


def test_the_number_of_sources_is_said_once(job: JobConfig, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    sources = [{"path": str(tmp_path / name)} for name in "ab"]
    job.training.dataset, job.training.dataset_path = "local", str(tmp_path / "a")
    now = copy.deepcopy(job)
    now.training.dataset_path, now.training.sources = None, sources
    assert [str(change) for change in changes_of(job, now)] == [
        "training.sources = 2 (was 0), in number"
    ]
    one = copy.deepcopy(now)
    one.training.sources = sources[:1]
    assert [str(change) for change in changes_of(one, now)] == [
        "training.sources = 2 (was 1), in number"
    ]
    of_python = copy.deepcopy(job)
    of_python.training.dataset, of_python.training.dataset_path = "python", None
    assert "training.sources" not in "".join(map(str, changes_of(job, of_python)))


def test_sources_go_by_number_and_key(job: JobConfig, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"text {name}")
    a, b = ({"path": str(tmp_path / f"{name}.txt")} for name in "ab")
    job.training.dataset, job.training.sources = "local", [a | {"weight": 2.0}, b]
    now = copy.deepcopy(job)
    now.training.sources = [a | {"weight": 4.0}, b | {"weight": 2.0}]
    assert changes_of(job, now) == []  # the same shares
    now.training.sources = [a | {"weight": 2.0}, b | {"weight": 2.0, "text": "body"}]
    found = {change.key: (change.was, change.now, change.name) for change in changes_of(job, now)}
    assert found == {
        "training.sources.2.weight": (1.0, 2.0, "data"),
        "training.sources.2.text": ("text", "body", "data"),
    }


def test_what_was_not_set_is_left_out(job: JobConfig, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / f"step-{STEP}"
    begin_save(str(path), RunRecord.of(job, 1), model_only=False)
    (path / ".metadata").touch()
    job.lighthouse.dense_from_step = 4
    with pytest.raises(ValueError, match=r"leave lighthouse\.dense_from_step out to go on as it"):
        check_resume(job, 1)
