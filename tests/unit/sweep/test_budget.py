"""A budget that one stage makes up for."""

import json
from pathlib import Path
from typing import Any

import pytest

from lighthouse.sweep.resolve import resolve
from lighthouse.sweep.spec import read_spec

BASE = """
[model]
flavor = "tiny_byte"
tokenizer = "byte"
[training]
dataset = "python"
seq_len = 4096
local_batch_size = 1
[lighthouse]
enable = true
topk = 128
stratum = 8
[checkpoint]
enable = true
[[stages]]
steps = 40
attention = "dense"
seq_len = 1024
local_batch_size = 8
[[stages]]
steps = 30
attention = "lighthouse"
[[stages]]
steps = 10
attention = "dense"
"""


def planned(folder: Path, sweep: str, gpus: int = 0) -> list[Any]:
    (folder / "base.toml").write_text(BASE)
    file = folder / "sweep.toml"
    file.write_text(f'base = "base.toml"\n{sweep}\n[resources]\ngpus_per_node = {gpus}\n')
    return resolve(read_spec(file), None)


@pytest.mark.parametrize(
    ("hold", "filled"),
    [
        ("steps", [40 + 30 + 10 - 20 - 30, 40 + 30 + 10 - 50 - 30]),
        # A step of the first stage has twice as many tokens.
        ("tokens", [10 + 2 * (40 - 20), None]),
    ],
)
def test_the_filling_stage_makes_up_for_the_others(
    tmp_path: Path, hold: str, filled: list[int | None]
) -> None:
    for steps, expected in zip((20, 50), filled, strict=True):
        sweep = f"axes.stages.1.steps = [{steps}]\nbudget = {{hold = '{hold}', stage = 3}}"
        if expected is None or expected < 1:
            with pytest.raises(ValueError, match=rf"stages.3.steps: the other .* all {hold} of"):
                planned(tmp_path, sweep)
            continue
        (run,) = planned(tmp_path, sweep)
        assert run.run.overrides == {"stages.1.steps": steps, "stages.3.steps": expected}
        assert run.run.steps == steps + 30 + expected


def test_hours_of_gpus_are_held_by_the_estimate(tmp_path: Path) -> None:
    sweep = "axes.stages.2.steps = [30, 20]\nbudget = {hold = 'gpu_hours', stage = 1}"
    same, fewer = planned(tmp_path, sweep, gpus=1)
    assert same.run.overrides["stages.1.steps"] == 40
    first, second = fewer.plan.stages[:2]
    assert first.steps == 40 + int(10 * second.step_seconds / first.step_seconds + 1e-6)
    assert fewer.plan.gpu_hours == pytest.approx(same.plan.gpu_hours, rel=0.05)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("axes.stages.3.steps = [1]\nbudget = {stage = 3}", r"stages.3.steps: budget.stage says"),
        ("axes.stages.1.steps = [1]\nbudget = {stage = 4}", r"budget.stage = 4: there are stages"),
        ("axes.stages.1.steps = [1]\nbudget = {hold = 'steps'}", r"budget.stage = None: must be"),
        ("axes.stages.1.steps = [1]\nbudget = {stage = 3, hold = 'x'}", r"budget.hold = 'x': must"),
        (
            "axes.stages.1.steps = [1]\nbudget = {stage = 3, hold = 'gpu_hours'}",
            r"budget.hold = 'gpu_hours': these runs are not estimated",
        ),
        ("axes.stages.9.steps = [1]", r"stages.9.steps: there are stages 1 to 3"),
    ],
)
def test_what_cannot_be_held(tmp_path: Path, sweep: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, sweep)


def test_values_of_any_type_reach_a_stage(tmp_path: Path) -> None:
    values = {"stages.2.dense_layers": [[0], [0, 3]], "stages.2.scorer": ["dilated"]}
    axes = "\n".join(f"{key} = {json.dumps(choices)}" for key, choices in values.items())
    runs = planned(tmp_path, f"[axes]\n{axes}")
    assert [run.run.overrides for run in runs] == [
        {"stages.2.dense_layers": layers, "stages.2.scorer": "dilated"} for layers in ([0], [0, 3])
    ]
    assert len({run.run.identity for run in runs}) == 2
