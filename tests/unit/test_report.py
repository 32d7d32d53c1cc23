import json
import math
from pathlib import Path

import pytest

from lighthouse.report import format_table, main, summarize
from lighthouse.runs.folder import RESOLVED_FILE, newest_checkpoint
from lighthouse.runs.metrics import METRICS_FILE, Record, to_json
from lighthouse.runs.stage_reports import smoothed


def record(step: int, loss: float, stage: str = "lighthouse", speed: float = 100.0) -> Record:
    return {"step": step, "loss": loss, "stage": stage, "tokens_per_second": speed}


def recipe() -> list[Record]:
    """Twelve lighthouse steps whose last ten average 3.0, then eleven dense ones.

    The first ten dense losses average 3.3, the last ten 2.99.
    """
    lighthouse = [8.0, 7.0] + [3.5, 2.5] * 5
    dense = [5.0, 4.0, 3.0, 2.2, 2.0, 2.0, 2.9, 2.1, 5.0, 4.8, 1.9]
    return [record(i, loss, speed=900.0 + i) for i, loss in enumerate(lighthouse, start=1)] + [
        record(i, loss, "dense", speed=200.0 + i) for i, loss in enumerate(dense, start=13)
    ]


def test_the_switch_by_hand() -> None:
    report = summarize(recipe(), Path("run/checkpoint/step-20"))
    assert report.loss_before_switch == pytest.approx(3.0)
    assert report.loss_before_steps == 10
    assert report.switch_step == 13
    assert report.spike == 5.0
    assert report.steps_to_recover == 10  # at step 23
    assert report.last_step == 23
    assert (report.final_loss, report.final_steps) == (pytest.approx(2.99), 10)
    # Medians of 902..912 and of 214..223: the first step of each stage is left out.
    assert report.lighthouse_tokens_per_second == 907.0
    assert report.dense_tokens_per_second == 218.5
    assert report.checkpoint == "run/checkpoint/step-20"
    assert summarize(recipe(), Path("run/checkpoint/step-24")).last_step == 24


def test_speeds_of_several_lengths_are_in_the_table_alone() -> None:
    records = [
        record(step, 3.0, "dense") | {"seq_len": length, "stage_number": number}
        for number, length in enumerate((64, 256), start=1)
        for step in range(4 * number, 4 * number + 4)
    ]
    text = format_table(summarize(records))
    assert "dense speed" not in text and "tokens/s" in text
    same = [r | {"seq_len": 64} for r in records]
    assert "dense speed" in format_table(summarize(same))
    # Of what the run has, and of nothing else.
    assert "lighthouse speed" not in format_table(summarize(same))
    windows = [record(step, 3.0, "window") for step in range(4)]
    assert "window speed" in format_table(summarize(windows))


def test_steps_without_a_speed_have_none() -> None:
    records = recipe()
    for step in records:
        del step["tokens_per_second"]
    assert summarize(records).dense_tokens_per_second is None
    assert "dense speed              not measured" in format_table(summarize(records))


def test_torn_lines_are_counted_and_what_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "".join(f"{to_json(record)}\n" for record in recipe())
    (tmp_path / METRICS_FILE).write_text(text + "[" * 10_000 + '\n{"step": 99, "lo')
    main([str(tmp_path)])
    assert f"lines of {METRICS_FILE} left out, torn or damaged: 2" in capsys.readouterr().out
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json").mkdir()
    main([str(tmp_path)])
    said = capsys.readouterr()
    assert "last step" in said.out and "loss curve" not in said.out
    assert f"Is a directory: '{tmp_path / 'report.json'}'" in said.err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--output", str(tmp_path)])


def test_the_spike_foreseen_is_the_last_one_measured() -> None:
    assert summarize(recipe()).foreseen_loss is None
    measured = [{"step": step, "validation_dense_loss": loss} for step, loss in ((6, 9), (11, 4.8))]
    report = summarize([*recipe()[:11], *measured, *recipe()[11:]])
    assert (report.foreseen_loss, report.foreseen_step) == (4.8, 11)
    assert "spike foreseen           4.8000  (dense validation loss at step 11)" in format_table(
        report
    )


@pytest.mark.parametrize(
    ("resolved", "noted"),
    [
        ('[lighthouse]\nselection = "published"', True),
        ('[lighthouse]\nselection = "causal"', False),
        ('[lighthouse]\nselection = "causal"\nlayer_overrides = ["2:selection=published"]', True),
        # From before there was a choice.
        ("[lighthouse]\nenable = true", True),
        pytest.param(None, False, marks=pytest.mark.thorough),
    ],
)
def test_a_selection_that_sees_the_future_is_named(
    tmp_path: Path, resolved: str | None, noted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "run", recipe())
    if resolved is not None:
        (folder / RESOLVED_FILE).write_text(resolved)
    main([str(folder)])
    assert ("no language model's" in capsys.readouterr().out) == noted
    assert json.loads((folder / "report.json").read_text())["sees_future"] == noted
    dense = write(tmp_path / "dense", [record(1, 5.0, "dense"), record(2, 4.0, "dense")])
    (dense / RESOLVED_FILE).write_text('[lighthouse]\nselection = "published"')
    main([str(dense)])
    assert "no language model's" not in capsys.readouterr().out


def test_a_step_says_its_attention_in_one_way_or_the_other() -> None:
    """Older runs say "stage", and nothing where all layers are always dense."""
    older = recipe()
    newer = [{k if k != "stage" else "attention": v for k, v in r.items()} for r in older]
    assert summarize(newer) == summarize(older)
    dense = [record(1, 5.0, "dense"), record(2, 4.0, "dense")]
    silent = [{k: v for k, v in r.items() if k != "stage"} for r in dense]
    assert summarize(silent) == summarize(dense)


def test_the_leak_is_the_last_one_measured() -> None:
    measured = [{"step": step, "validation_leak": leak} for step, leak in ((4, 0.1), (9, 0.25))]
    report = summarize([*recipe()[:9], *measured, *recipe()[9:]])
    assert report.leak == 0.25
    assert "owed to later tokens     0.2500" in format_table(report)
    assert summarize(recipe()).leak is None


def test_not_recovered_yet() -> None:
    report = summarize(recipe()[:16])
    assert report.switch_step == 13
    assert report.steps_to_recover is None
    assert report.final_loss == pytest.approx((5.0 + 4.0 + 3.0 + 2.2) / 4)
    assert report.checkpoint is None


def test_a_full_window_of_dense_steps_is_needed_to_recover() -> None:
    records = [record(10, 3.0), record(20, 3.0)]
    records += [record(step, 2.9, "dense") for step in range(30, 120, 10)]
    report = summarize(records)
    assert (report.switch_step, report.spike, report.steps_to_recover) == (30, 2.9, None)
    assert report.dense_tokens_per_second == 100.0
    report = summarize([*records, record(120, 2.9, "dense")])
    assert report.steps_to_recover == 90
    assert report.loss_before_steps == 2
    assert report.lighthouse_tokens_per_second == 100.0


@pytest.mark.parametrize("stage", ["lighthouse", "dense"])
def test_one_stage_only(stage: str) -> None:
    report = summarize([record(1, 5.0, stage), record(2, 4.0, stage)])
    assert report.switch_step is report.spike is report.loss_before_switch is None
    assert (report.final_loss, report.final_steps) == (4.5, 2)


def test_a_loss_that_became_nan_is_the_spike() -> None:
    report = summarize([record(1, 3.0), record(2, 4.0, "dense"), record(3, math.nan, "dense")])
    assert math.isnan(report.spike)
    assert report.steps_to_recover is None


def test_smoothed() -> None:
    assert smoothed([4.0, 2.0, 3.0, 1.0], 2) == [4.0, 3.0, 2.5, 2.0]


def test_only_finished_checkpoints_count(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-20"):
        (tmp_path / "checkpoint" / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path) is None
    for name in ("step-9", "step-10"):
        (tmp_path / "checkpoint" / name / ".metadata").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint" / "step-10"


def write(folder: Path, records: list[Record]) -> Path:
    folder.mkdir()
    (folder / METRICS_FILE).write_text("".join(to_json(r) + "\n" for r in records))
    return folder


def test_command_with_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = recipe()
    stage_1 = write(tmp_path / "1", records[:12])
    stage_2 = write(tmp_path / "2", [*records[12:], {"step": 23, "validation_loss": 2.3}])
    main([str(stage_1), str(stage_2)])
    table = capsys.readouterr().out
    assert "loss before the switch   3.0000  (mean of the last 10 logged steps)" in table
    assert "steps to recover         10\n" in table
    assert "907 tokens/s per device" in table
    written = json.loads((stage_2 / "report.json").read_text())
    assert (written["spike"], written["switch_step"]) == (5.0, 13)
    assert (stage_2 / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (stage_1 / "loss.png").exists()


def test_the_table_of_a_run_of_someone_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "run", recipe())

    def closed(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", closed)
        main([str(folder)])
        said = capsys.readouterr()
        assert "last step" in said.out and "loss curve" not in said.out
        assert said.err == (
            f"note: no loss curve and no report.json: {folder} can't be written (Permission "
            "denied): name a folder for the results with --output\n"
        )
        with pytest.raises(SystemExit):
            main([str(folder), "--output", str(folder)])
    main([str(folder), "--output", str(tmp_path / "mine")])
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"loss.png", "report.json"}
    assert [path.name for path in folder.iterdir()] == [METRICS_FILE]


def test_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    assert stopped.value.code == 2
    assert "has no metrics.jsonl" in capsys.readouterr().err
    (tmp_path / METRICS_FILE).write_text(to_json(record(1, 2.0)) + "\n")
    (tmp_path / RESOLVED_FILE).write_text("half a")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert f"{tmp_path / RESOLVED_FILE} is damaged, no TOML: " in capsys.readouterr().err


def test_stages_that_come_again_and_sparse_logs() -> None:
    """Stages 1, 3 and 4 of a run that logs each tenth step: of the second there is none."""
    parts = ((1, "lighthouse", 1, 41), (3, "dense", 51, 91), (4, "lighthouse", 101, 141))
    steps = [
        record(step, 3.0, attention, speed=1.0 if step == first else 100.0 * number)
        | {"stage_number": number}
        for number, attention, first, end in parts
        for step in range(first, end, 10)
    ]
    measured = [
        {"step": s, "validation_dense_loss": s / 10, "validation_loss": 2.0} for s in (30, 120)
    ]
    report = summarize(sorted([*steps, *measured], key=lambda r: r["step"]))
    assert [stage.number for stage in report.stages] == [1, 3, 4]
    assert [stage.unlogged_before for stage in report.stages] == [0, 19, 19]
    # Each stage's first is slow with what came before it.
    assert report.lighthouse_tokens_per_second == 250.0
    assert report.dense_tokens_per_second == 300.0
    assert (report.foreseen_loss, report.foreseen_step) == (3.0, 30)  # not what was measured later
    assert (report.validation_loss, report.validation_step) == (2.0, 120)
    shown = format_table(report)
    assert "up to 19 steps before a stage are not logged" in shown
    assert "no step was logged of stage 2: lower metrics.log_freq" in shown
    assert "validation loss" in shown and "(at step 120)" in shown
    assert "not logged" not in format_table(summarize(recipe()))


def test_a_recovery_that_is_too_early_to_tell_is_no_failure_to_recover() -> None:
    report = summarize(recipe()[:16])
    assert report.steps_to_recover is None
    shown = format_table(report)
    assert "not yet: 4 logged steps so far, the mean of 10 tells" in shown
    assert "so far, the mean" not in format_table(summarize(recipe()))
