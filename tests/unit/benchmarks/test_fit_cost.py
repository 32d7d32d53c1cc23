"""The rates are fitted to the results, and what was measured is predicted."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks import fit_cost
from lighthouse.config import WindowConfig
from lighthouse.cost.memory import GIB
from lighthouse.cost.rates import RATES_FILE, devices, load_rates
from lighthouse.cost.sizes import Layout, Work
from lighthouse.cost.step import cost

N = 98304
RATES = load_rates("h100")


def test_the_rates_are_those_of_the_results():
    content = json.loads(RATES_FILE.read_text())["devices"]
    assert list(content) == devices()
    assert content == fit_cost.rounded({d: asdict(r) for d, r in fit_cost.fit().items()})


def test_measured_steps_are_predicted():
    for device in ("h100", "h200"):
        for run in fit_cost.runs_of(device):
            predicted = cost(*fit_cost.sizes(run), load_rates(device))
            assert predicted.step_seconds == pytest.approx(fit_cost.step_seconds(run), rel=0.06)
            assert run["memory_gib"] == pytest.approx(predicted.peak_bytes / GIB, rel=0.08)


def test_measured_float8_steps_are_predicted():
    two_layers = fit_cost.read("float8_two_layers_*.json")[0]["results"]
    fitted = [run for _, run in fit_cost.float8_runs()]
    assert len(fitted) == 2
    for run in (*fitted, *two_layers):
        predicted = cost(*fit_cost.sizes(run), load_rates("h200"))
        assert predicted.step_seconds == pytest.approx(fit_cost.step_seconds(run), rel=0.04)


def test_a_fit_finds_the_rates_that_made_the_steps():
    truth = replace(RATES, matmul=5e14, elementwise=1.5e12)
    dense = "--lighthouse.no-enable --activation_checkpoint.mode"
    runs = [{"gpus": 1, "flags": f"{dense} {mode}"} for mode in ("none", "full")]
    runs.append({"gpus": 1, "flags": "--activation_checkpoint.mode none"})
    for run in runs:
        seconds = cost(*fit_cost.sizes(run), truth).step_seconds
        run["tokens_per_second"] = N / seconds
    fitted = fit_cost.fit_steps(RATES, runs)
    assert fitted.matmul == pytest.approx(truth.matmul, rel=1e-6)
    assert fitted.elementwise == pytest.approx(truth.elementwise, rel=1e-6)
    slower = fit_cost.scaled(truth, 0.5, 0.25)
    assert fit_cost.fit_factors(slower, runs) == pytest.approx((2, 4), rel=0.05)


def test_the_link_is_fitted_to_what_a_ring_takes_beyond_its_share():
    # Products are slower than the rates say, on one GPU as on two.
    truth = replace(RATES, nvlink=5e9, matmul=0.9 * RATES.matmul)
    alone = {"gpus": 1, "flags": ""}
    ring = {"gpus": 2, "flags": "--parallelism.context_parallel_degree 2"}
    for run in (alone, ring):
        seconds = cost(*fit_cost.sizes(run), truth).step_seconds
        run["tokens_per_second"] = N / run["gpus"] / seconds
    fitted = fit_cost.fit_link(RATES, [(alone, ring)])
    assert fitted.nvlink == pytest.approx(truth.nvlink, rel=0.03)


def test_measured_windows_are_predicted():
    """One layer of the same body."""
    for file in fit_cost.read("windows_*.json"):
        (device,) = (d for d, s in fit_cost.SPECIFICATIONS.items() if s["name"] == file["device"])
        for row in file["rows"]:
            if row["kernel"] == "two triangles, cuDNN" and row["kv_heads"] == 8:
                work = Work(seq_len=file["seq_len"], attention=(WindowConfig(row["window"]),))
                parts = cost(fit_cost.BODY, Layout(), work, load_rates(device)).seconds
                # At 1,024 tokens the kernel is below the rate that it is taken to have.
                error = 0.06 if row["window"] > 1024 else 0.09
                assert parts["window attention"] == pytest.approx(row["ms"][1] / 1e3, rel=error)
