"""The trainer, the dry run and sweeps refuse the same jobs, in the same words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from torchtitan.config import ConfigManager
from torchtitan.tools import utils

from lighthouse.refusal import Refusal
from lighthouse.sweep.resolve import resolve
from lighthouse.sweep.spec import read_spec
from lighthouse.titan.plan.__main__ import main
from lighthouse.titan.plan.job import machine_of as machine
from lighthouse.titan.plan.job import parse
from tests.support.tiers import tiers
from tests.support.trainer import flags

GPUS = 2
JOB = {
    "model": {"flavor": "tiny_byte", "tokenizer": "byte"},
    "training": {"dataset": "python", "seq_len": 256, "steps": 10},
    "lighthouse": {"topk": 16, "stratum": 8, "dense_from_step": 5, "enable": True},
    "checkpoint": {"enable": True, "last_save_model_only": False},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a ring in float32": (
        {
            "parallelism.context_parallel_degree": 2,
            "training.mixed_precision_param": "float32",
            "lighthouse.enable": False,
        },
        "training.mixed_precision_param = 'float32': ring attention, which "
        "parallelism.context_parallel_degree = 2 asks for, has no kernel for it on a GPU",
    ),
    "a missing text": (
        {"training.dataset": "local", "training.dataset_path": "/nowhere"},
        "training.dataset_path = '/nowhere': no such file",
    ),
    "a seed that no order follows": (
        {"training.dataset_seed": 3},
        "training.dataset_seed = 3: is for local text alone, and training.dataset = 'python'",
    ),
    "a layout of more processes": (
        {"parallelism.tensor_parallel_degree": 4},
        "parallelism.tensor_parallel_degree = 4: the number of processes, 2",
    ),
    "an odd topk": ({"lighthouse.topk": 17}, "lighthouse.topk = 17: "),
    "a switch that never comes": ({"lighthouse.dense_from_step": 99}, "lighthouse.dense_from_step"),
    "no clipping": ({"training.max_norm": 0.0}, "training.max_norm = 0.0"),
    "a rate beyond float32": ({"optimizer.lr": 1e308}, "optimizer.lr = 1e+308: a step moves"),
    "a number that is no float": (
        {"checkpoint.interval": 10**400},
        f"checkpoint.interval = {10**400}: must be a whole number of 64 bits",
    ),
    "a rising decay": ({"lr_scheduler.min_lr_factor": 10.0}, "lr_scheduler.min_lr_factor = 10.0"),
    "a missing checkpoint": (
        {"checkpoint.initial_load_path": "/nowhere"},
        "checkpoint.initial_load_path = '/nowhere': is not a finished checkpoint",
    ),
    "a key that nothing reads": ({"fault_tolerance.enable": True}, "fault_tolerance.enable = true"),
    "a window that nothing sees": ({"lighthouse.window": 64}, "lighthouse.window = 64: no layer "),
    "a missing module": ({"experimental.custom_import": "nope"}, "experimental.custom_import = "),
}
# One of each kind: a schedule, a layout, processes, a file, a folder, the method, a module.
QUICK = [
    "a rising decay",
    "a ring in float32",
    "a layout of more processes",
    "a missing text",
    "a missing checkpoint",
    "an odd topk",
    "a missing module",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(tomli_w.dumps(JOB))
    return path


def sweep(file: Path, overrides: dict[str, Any], resources: dict[str, Any]) -> Any:
    """The plan of the one point of a sweep."""
    path = file.with_name("sweep.toml")
    values = {"base": file.name, "overrides": overrides, "output": str(file.parent / "out")}
    path.write_text(tomli_w.dumps(values | {"resources": resources}))
    (planned,) = resolve(read_spec(path), None)
    return planned.plan


@pytest.fixture
def refusal(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[dict[str, Any]], str]:
    """The words in which all refuse the file with some changes."""

    def of(changes: dict[str, Any]) -> str:
        arguments = ["--job.config_file", str(file), *flags(changes)]
        monkeypatch.setattr(utils, "device_type", "cuda")
        monkeypatch.setenv("WORLD_SIZE", str(GPUS))
        with pytest.raises(Refusal) as by_trainer:
            ConfigManager().parse_args(arguments)

        with pytest.raises(SystemExit) as by_plan:
            main(["--gpus", str(GPUS), *arguments])
        assert by_plan.value.code == 2
        assert capsys.readouterr().err == f"refused: {by_trainer.value}\n"

        with pytest.raises(ValueError) as by_sweep:
            sweep(file, changes, {"gpus_per_node": GPUS})
        assert str(by_sweep.value) == f"1 of 1 runs can't be:\n  base: {by_trainer.value}"
        return str(by_trainer.value)

    return of


@pytest.mark.parametrize("case", tiers(REFUSED, *QUICK))
def test_a_job_is_refused_by_all_in_the_same_words(
    case: str, refusal: Callable[[dict[str, Any]], str]
) -> None:
    changes, words = REFUSED[case]
    assert refusal(changes).startswith(words)


def test_a_mistake_among_stages_names_its_file_to_all(
    file: Path, refusal: Callable[[dict[str, Any]], str]
) -> None:
    stages = [{"steps": 5, "attention": "dense"}, {"steps": 5, "attention": "lighthouse"}]
    lighthouse = {key: value for key, value in JOB["lighthouse"].items() if "step" not in key}
    saves = {"enable": True, "last_save_model_only": True}
    values = JOB | {"stages": stages, "lighthouse": lighthouse, "checkpoint": saves}
    file.write_text(tomli_w.dumps(values))
    said = refusal({})
    assert said.startswith("checkpoint.last_save_model_only = true: this run ends in a lighthouse")
    assert said.endswith(f" ([[stages]] stand in {file})")


def test_a_ring_in_float32_runs_on_cpus(file: Path) -> None:
    changes, _ = REFUSED["a ring in float32"]
    parse(["--job.config_file", str(file), *flags(changes)], machine("cpu", GPUS))
    sweep(file, changes, {"gpus_per_node": 0, "nodes": GPUS})


@pytest.mark.parametrize(
    ("changes", "resources", "remark"),
    [
        (
            {"activation_checkpoint.mode": "memory_budget", "compile.enable": True},
            {"gpus_per_node": GPUS},
            "it does not cover activation_checkpoint.mode = 'memory_budget'",
        ),
        ({}, {"gpus_per_node": 0}, "there are no rates of CPUs"),
        ({}, {"gpus_per_node": GPUS, "gpu": "mi300"}, "there are no rates of 'mi300'"),
    ],
    ids=["memory budget", "CPU", "unknown GPU"],
)
def test_a_sweep_of_what_is_not_estimated_is_planned_with_blanks(
    file: Path, changes: dict[str, Any], resources: dict[str, Any], remark: str
) -> None:
    result = sweep(file, changes, resources)
    assert result.gpu_hours is None and result.stages[0].memory_gib is None
    assert result.parameters > 0 and result.stages[0].flops_per_token > 0
    assert result.remarks[0].startswith(f"no estimate: {remark}")
