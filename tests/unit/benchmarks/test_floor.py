"""The least that a step can take, beside steps that were measured."""

import pytest

from benchmarks.floor import Alone, elements, floor_around_attention, floor_ms
from benchmarks.training_table import by_case, load
from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.cost.sizes import Model

ALONE = Alone(load("attention_h100.json"), load("windows_h100.json"))


@pytest.mark.parametrize("file", ["training_h100.json", "training_windows_h100.json"])
def test_no_step_is_below_its_floor(file: str) -> None:
    report = load(file)
    steps = [run for run in by_case(report).values() if run["flags"].endswith("mode none")]
    steps = [run for run in steps if "--model.flavor" not in run["flags"]]
    assert steps
    for run in steps:
        floor = floor_ms(run, ALONE, report["matmul_tflops"])
        assert 0.8 < sum(floor.values()) * run["tokens_per_second"] / 98304e3 < 1
        for profile in run.get("profile", []):
            kinds = profile["by_kind_ms"]
            assert floor["products"] < kinds["matmul"]
            assert floor["attention"] < kinds["attention"] + kinds["lighthouse"]
            assert floor["elementwise"] < kinds["compiled elementwise"]
            assert floor["optimizer"] < kinds["optimizer"]


@pytest.mark.parametrize(
    "file",
    ["training_8b_h200_x2.json", "training_8b_h200_x2_second.json", "training_h200_x4.json"],
)
def test_no_step_of_several_gpus_is_below_its_floor(file: str) -> None:
    report = load(file)
    copy = load("joint_operators_h200.json")["copy_tb_per_s"]
    steps = [run for run in by_case(report).values() if run.get("profile")]
    assert steps
    for run in steps:
        floor = floor_around_attention(run, copy, report["matmul_tflops"])
        for profile in run["profile"]:
            kinds = profile["by_kind_ms"]
            assert 0.75 * kinds["matmul"] < floor["products"] < kinds["matmul"]
            assert floor["elementwise"] < kinds["compiled elementwise"]
            assert floor["optimizer"] < kinds["optimizer"]


def test_elements_are_counted_tensor_by_tensor() -> None:
    narrow, wide = (
        Model(dim=1, layers=1, heads=1, kv_heads=1, ffn_dim=ffn, vocab_size=1) for ffn in (0, 1)
    )
    rotary, first_norm, sum_and_norm, last_sum = 2 * 4, 2 + 6, 4 + 5, 3
    assert elements(narrow) == rotary + first_norm + sum_and_norm + last_sum
    assert elements(wide) - elements(narrow) == 3 + 5
    assert elements(narrow, again=True) - elements(narrow) == rotary / 2 + 2 + 4
    assert elements(wide, again=True) - elements(narrow, again=True) == 3 + 5 + 1


def test_a_layer_that_was_not_measured_alone_is_named() -> None:
    with pytest.raises(LookupError, match="4,096 tokens"):
        ALONE.layer(None, 4096)
    with pytest.raises(LookupError, match="WindowConfig"):
        ALONE.layer(WindowConfig(999), 98304)
    with pytest.raises(LookupError, match="topk=3072"):
        ALONE.layer(LighthouseConfig(topk=3072), 98304)
