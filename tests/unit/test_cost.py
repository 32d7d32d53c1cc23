"""The cost model: its limits, its scaling, and that its rates are fitted to the results."""

import json
import runpy
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lighthouse.config import LighthouseConfig
from lighthouse.cost import GIB, RATES_FILE, Layout, Model, Work, cost, devices, load_rates

ROOT = Path(__file__).parents[2]
BODY = Model(dim=1024, layers=30, heads=8, kv_heads=8, ffn_dim=1536, vocab_size=264)
CONFIG = LighthouseConfig(num_levels=3, pooling_factor=4, topk=1536)
DENSE_LAYERS = (0, 1, 28, 29)
LIGHTHOUSE = tuple(None if layer in DENSE_LAYERS else CONFIG for layer in range(30))
N = 98304
WORK = Work(seq_len=N, attention=LIGHTHOUSE)
DENSE = replace(WORK, attention=(None,) * 30)
RATES = load_rates("h100")
ONE = Layout()


@pytest.fixture(scope="module")
def fitting():
    return runpy.run_path(str(ROOT / "benchmarks" / "fit_cost.py"))


def test_the_rates_are_those_of_the_results(fitting):
    content = json.loads(RATES_FILE.read_text())["devices"]
    assert list(content) == devices()
    assert content == fitting["rounded"]({d: asdict(r) for d, r in fitting["fit"]().items()})


def test_measured_steps_are_predicted(fitting):
    for device in ("h100", "h200"):
        for run in fitting["runs_of"](device):
            predicted = cost(*fitting["job"](run), load_rates(device))
            assert predicted.step_seconds == pytest.approx(fitting["step_seconds"](run), rel=0.06)
            assert predicted.peak_bytes / GIB == pytest.approx(run["memory_gib"], rel=0.08)


def test_the_table_of_the_documentation_is_made_by_the_model():
    made = runpy.run_path(str(ROOT / "benchmarks" / "far_table.py"))
    assert made["table"]("h200") in (ROOT / "docs" / "cost_model.md").read_text()


def test_a_fit_finds_the_rates_that_made_the_steps(fitting):
    truth = replace(RATES, matmul=5e14, elementwise=1.5e12)
    dense = "--lighthouse.no-enable --activation_checkpoint.mode"
    runs = [{"gpus": 1, "flags": f"{dense} {mode}"} for mode in ("none", "full")]
    runs.append({"gpus": 1, "flags": "--activation_checkpoint.mode none"})
    for run in runs:
        seconds = cost(*fitting["job"](run), truth).step_seconds
        run["tokens_per_second"] = N / seconds
    fitted = fitting["fit_steps"](RATES, runs)
    assert fitted.matmul == pytest.approx(truth.matmul, rel=1e-6)
    assert fitted.elementwise == pytest.approx(truth.elementwise, rel=1e-6)
    slower = fitting["scaled"](truth, 0.5, 0.25)
    assert fitting["fit_factors"](slower, runs) == pytest.approx((2, 4), rel=0.05)


def test_the_link_is_fitted_to_what_a_ring_takes_beyond_its_share(fitting):
    # Products are slower than the rates say, on one GPU as on two.
    truth = replace(RATES, nvlink=5e9, matmul=0.9 * RATES.matmul)
    alone = {"gpus": 1, "flags": ""}
    ring = {"gpus": 2, "flags": "--parallelism.context_parallel_degree 2"}
    for run in (alone, ring):
        seconds = cost(*fitting["job"](run), truth).step_seconds
        run["tokens_per_second"] = N / run["gpus"] / seconds
    fitted = fitting["fit_link"](RATES, [(alone, ring)])
    assert fitted.nvlink == pytest.approx(truth.nvlink, rel=0.03)


def test_attention_is_quadratic_and_the_rest_linear():
    once, twice = (cost(BODY, ONE, replace(DENSE, seq_len=n), RATES).seconds for n in (N, 2 * N))
    assert twice["dense attention"] == pytest.approx(4 * once["dense attention"], rel=1e-3)
    for part in ("matmuls", "elementwise", "loss"):
        assert twice[part] == pytest.approx(2 * once[part])


def test_lighthouse_saves_attention_alone():
    lighthouse, dense = (cost(BODY, ONE, work, RATES).seconds for work in (WORK, DENSE))
    same = ("matmuls", "elementwise", "loss", "optimizer")
    assert [lighthouse[part] for part in same] == [dense[part] for part in same]
    assert lighthouse["dense attention"] == pytest.approx(dense["dense attention"] * 4 / 30)
    assert sum(lighthouse.values()) < 0.3 * sum(dense.values())


def test_checkpointing_buys_memory_with_time():
    costs = [
        cost(BODY, ONE, replace(WORK, checkpointing=mode), RATES) for mode in ("none", "op", "full")
    ]
    seconds = [c.step_seconds for c in costs]
    assert seconds == sorted(seconds)
    peaks = [c.peak_bytes for c in costs]
    assert peaks == sorted(peaks, reverse=True)
    every_other = cost(BODY, ONE, replace(WORK, checkpointing="2"), RATES)
    assert costs[0].step_seconds < every_other.step_seconds < costs[2].step_seconds


def test_state_is_sharded_and_activations_but_gathered_keys_are_split_over_the_ring():
    alone = cost(BODY, ONE, WORK, RATES).memory
    sharded = cost(BODY, Layout(dp_shard=8), WORK, RATES).memory
    ring = cost(BODY, Layout(cp=8), WORK, RATES).memory
    state, activations = "parameters and optimizer", "activations"
    assert alone[state] == 16 * BODY.parameters
    assert sharded[state] == ring[state] == alone[state] / 8
    assert sharded[activations] == alone[activations]
    rows = [config.gathered_len(N) if config else N for config in WORK.attention]
    gathered = sum(rows) * 2 * BODY.kv_dim * 2 * RATES.activations["none"]
    assert ring[activations] == pytest.approx(alone[activations] / 8 + gathered)


def test_a_ring_divides_the_work_and_costs_something():
    work = replace(WORK, attention=(LighthouseConfig(topk=4096),) * 30, seq_len=2**20)
    alone = cost(BODY, ONE, work, RATES)
    seconds = [alone.step_seconds]
    for degree in (2, 4, 8):
        ring = cost(BODY, Layout(cp=degree), work, RATES)
        assert ring.seconds["ring"] > 0
        assert ring.step_seconds > alone.step_seconds / degree
        seconds.append(ring.step_seconds)
    assert seconds == sorted(seconds, reverse=True)
    assert alone.seconds["ring"] == 0
    # Every rank gets all keys and values, whatever the degree: between nodes that takes longer.
    assert cost(BODY, Layout(cp=16), work, RATES).seconds["ring"] > ring.seconds["ring"]


def test_replicas_reduce_gradients_and_a_slow_network_shows():
    hidden = cost(BODY, Layout(dp_replicate=2, dp_shard=8), WORK, RATES)
    slow = cost(BODY, Layout(dp_replicate=2, dp_shard=8), WORK, replace(RATES, network=1e8))
    assert hidden.seconds["fsdp"] == 0 < slow.seconds["fsdp"]


def test_logits_in_chunks_do_not_fill_the_memory():
    words = replace(BODY, vocab_size=128256)
    whole = cost(words, ONE, WORK, RATES)
    chunks = cost(words, ONE, replace(WORK, loss_chunk_tokens=4096), RATES)
    assert whole.peak_bytes > RATES.memory > chunks.peak_bytes
    assert whole.memory["logits"] == N / 4096 * chunks.memory["logits"]
    assert whole.step_seconds == chunks.step_seconds


def test_scorers_cost_what_they_read():
    def scorer(name: str, **values: int) -> float:
        config = LighthouseConfig(topk=1536, scorer=name, **values)
        work = replace(WORK, attention=(config,) * 30)
        return cost(BODY, ONE, work, RATES).seconds["scorer"]

    assert scorer("norm") == 0 < scorer("gla") < scorer("dilated")
    assert scorer("dilated", dilation=8) == pytest.approx(scorer("dilated") / 2)
    assert scorer("dilated", num_chunks=4) == pytest.approx(scorer("dilated") / 4)


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match=r"device = 'a100': must be one of h100, h200, b200"):
        load_rates("a100")
