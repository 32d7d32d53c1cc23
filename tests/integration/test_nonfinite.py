"""A run with gradients that are no numbers stops with what it has, or leaves the step out."""

import math

from lighthouse import report
from lighthouse.refusal import DIVERGED, ENDINGS
from tests.support.trainer import train

NAN = ("--experimental.custom_import", "tests.support.nan_in_step", "--training.steps", "6")
SAVES = "--checkpoint.enable --checkpoint.interval 2 --checkpoint.keep_latest_k 2".split()


def test_a_step_is_left_out_on_all_ranks(tmp_path):
    """Those of one rank's gradients; the norm is that of both."""
    run = train(
        *(tmp_path, *NAN, *SAVES, "--training.nonfinite", "skip"),
        processes=2,
        env={"NAN_IN_STEPS": "3 4"},
    )
    norms = {step: norm for step, (_, norm) in run.losses().items()}
    assert [step for step, norm in norms.items() if norm == "nan"] == [3, 4]
    assert all(math.isfinite(loss) for loss, _ in run.losses().values())
    assert run.values("nonfinite_steps") == {1: 0, 2: 0, 3: 1, 4: 2, 5: 2, 6: 2}
    assert "step 4: the gradient norm is not finite, and its update was withheld" in run.output
    kept = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert kept == ["step-4", "step-6"]  # as many as keep_latest_k, in the end too


def test_a_run_stops_and_keeps_its_last_checkpoint(tmp_path, capsys):
    run = train(
        *(tmp_path, *NAN, *SAVES, "--metrics.log_freq", "100", "--checkpoint.async_mode", "async"),
        env={"NAN_IN_STEPS": "3 4 5 6"},
        ok=False,
    )
    assert run.returncode == ENDINGS[DIVERGED]
    sentence = run.output.splitlines()[-1]
    assert sentence.startswith(
        f"diverged: step 3: the gradient norm is not finite, and its update was withheld; "
        f"{run.checkpoint(2)} is the last checkpoint; lower optimizer.lr = 0.002"
    )
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-2"]
    report.main([str(tmp_path)])
    assert sentence.removeprefix("diverged: ") in capsys.readouterr().out
