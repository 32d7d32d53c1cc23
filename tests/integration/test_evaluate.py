"""The command on a run, and on what is exported from it."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from lighthouse.evaluate.__main__ import main
from lighthouse.titan.export import main as export
from tests.support.trainer import Run, train

FIRST_LENGTH = "refused: --lengths: 20 tokens are too few for a task, which takes"
LENGTHS = "--lengths 400 4096 --trials 2 --device cpu".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    flags = "--training.steps 2 --training.seq_len 512 --checkpoint.enable --lighthouse.enable"
    flags += " --lighthouse.dense_from_step 2 --training.document_mask"
    return train(folder, *flags.split())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in ("a.txt", "b.txt"):  # a document ends among the sequences that are read
        (folder / name).write_text(Path("LICENSE").read_text()[: 200 if name == "a.txt" else None])
    return folder


def test_a_run_and_its_export_are_measured_alike(
    run: Run, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measures = "--measures positions needle variables --sequences 3".split()
    arguments = ["--text", str(text), *measures, *LENGTHS]
    main([str(run.folder), *arguments, "--seq-len", "128"])
    printed = capsys.readouterr().out
    assert "held-out loss, dense, 3 sequences of 128 tokens" in printed
    assert "left out: 4,096 tokens; positions end at 512, and --lengths names" in printed
    found = json.loads((run.folder / "evaluate-step-2.json").read_text())
    assert [row["length"] for row in found["variables"]] == [400]
    assert len(found["needle"]) == 7
    assert (run.folder / "evaluate-step-2.png").stat().st_size > 10_000

    pytest.importorskip("transformers")
    export([str(run.folder / "checkpoint" / "step-2"), str(tmp_path / "hf")])
    main([str(tmp_path / "hf"), *arguments, "--seq-len", "128", "--output", str(tmp_path)])
    exported = json.loads((tmp_path / "evaluate.json").read_text())
    for ours, theirs in zip(found["variables"], exported["variables"], strict=True):
        assert theirs["log_probability"] == pytest.approx(ours["log_probability"], rel=1e-4)
    assert exported["needle"] == found["needle"]
    assert exported["positions"]["loss"] == pytest.approx(found["positions"]["loss"], rel=1e-4)


def test_loss_by_position_has_no_lengths_and_says_nothing_of_libraries(
    run: Run, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--text", str(text), "--sequences", "2", "--output", str(tmp_path), *LENGTHS]
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        main([str(run.folder), "--measures", "positions", *arguments])
    assert not [warning for warning in found if "set_vital" in str(warning.message)]
    assert "left out" not in capsys.readouterr().out


@pytest.mark.thorough
def test_the_study_compares_a_run_that_was_not_validated_with_its_export(
    run: Run, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from benchmarks.study import exported

    wrapper = exported.ScaledDotProductAttentionWrapper  # its kernels are chosen for the process
    monkeypatch.setattr(wrapper, "sdpa_backends", getattr(wrapper, "sdpa_backends", []))
    monkeypatch.setattr(exported, "NEW", 4)
    found = exported.compare(run.folder, torch.device("cpu"), text)
    differences = found["largest_logit_difference_by_length"]
    assert set(differences) == {"512"} and differences["512"] < 1e-4
    assert found["greedy_tokens_equal"] == found["greedy_tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere has no config.toml: not the folder of a run"),
        (["RUN", "--step", "7"], "has no finished checkpoint of step 7"),
        (["RUN", "--measures", "positions"], "has no validation text: name held-out files"),
        (["RUN", "--text", "/no/such"], "refused: --text = '/no/such': no such file or folder"),
        (["RUN", "--seq-len", "513"], "--seq-len = 513: positions end at 512; use at most that"),
        (["RUN", "--sequences", "1"], "--sequences must be at least 2"),
        (["RUN", "--lengths", "64", "-1"], "numbers of tokens, got -1"),
        (["RUN", "--seq-len", "0"], "numbers of tokens, got 0"),
        (["RUN", "--lengths", "20", "--measures", "recall"], "20 tokens are too few for a task"),
        (["RUN", "--device", "cuda:99"], "refused: --device = 'cuda:99': this machine has no"),
        (["RUN", "--device", "gpu"], "refused: --device = 'gpu': this machine has no"),
        (["RUN", "--lengths", "4096", "--measures", "recall"], "nothing to measure; name shorter"),
        # Not after minutes of the other lengths and measures.
        (["RUN", "--lengths", "400", "20", "--measures", "needle", "recall"], FIRST_LENGTH),
    ],
)
def test_mistakes_are_named(
    run: Run, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(run.folder) if word == "RUN" else word for word in arguments])
    said = capsys.readouterr().err
    assert message in said and "needle:" not in said


def test_text_that_is_none_is_refused_by_what_the_command_has(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command has no keys of a run, neither for the column nor for passing over lines."""
    for name, line, said in (
        ("a", '{"body": "x"}', """line 1 has no string under "text", only ['body']"""),
        ("b", "no JSON", "line 1 is not JSON"),
    ):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(line + "\n")
        with pytest.raises(SystemExit):
            main([str(run.folder), "--text", str(file)])
        (refused,) = [
            shown for shown in capsys.readouterr().err.splitlines() if shown.startswith("refused: ")
        ]
        assert refused.startswith(f"refused: --text = '{file}': {file}, {said}")
        assert refused.endswith("; mend it, or name other files")


def test_code_in_a_folder_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    ran = tmp_path / "ran"
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--device", "cpu"])
    assert "its auto_map names code of its own, which is not run" in capsys.readouterr().err
    assert not ran.exists()
