"""The cost model: its limits and its scaling."""

from dataclasses import replace

import pytest

from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.cost.rates import devices, load_rates
from lighthouse.cost.sizes import Layout, Model, Work, window_square
from lighthouse.cost.step import cost

BODY = Model(dim=1024, layers=30, heads=8, kv_heads=8, ffn_dim=1536, vocab_size=264)
CONFIG = LighthouseConfig(num_levels=3, pooling_factor=4, topk=1536)
DENSE_LAYERS = (0, 1, 28, 29)
LIGHTHOUSE = tuple(None if layer in DENSE_LAYERS else CONFIG for layer in range(30))
N = 98304
WORK = Work(seq_len=N, attention=LIGHTHOUSE)
DENSE = replace(WORK, attention=(None,) * 30)
RATES = load_rates("h100")
ONE = Layout()


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


def test_float8_products_are_those_of_layers_and_cost_casts():
    """The output layer's stay; what runs again is cast again, but not for gradients."""
    float8 = replace(WORK, float8=True)
    plain, fast, again = (
        cost(BODY, ONE, work, RATES).seconds
        for work in (WORK, float8, replace(float8, checkpointing="full"))
    )
    output = 6 * BODY.dim * BODY.vocab_size * N / RATES.matmul
    assert fast["matmuls"] - output == pytest.approx(
        (plain["matmuls"] - output) / RATES.float8, rel=1e-9
    )
    assert plain["float8 casts"] == 0
    assert 1.2 < again["float8 casts"] / fast["float8 casts"] < 1.4
    changed = ("matmuls", "float8 casts")
    assert all(fast[part] == plain[part] for part in plain if part not in changed)


WINDOWED = tuple(WindowConfig(4096) if layer in DENSE_LAYERS else CONFIG for layer in range(30))


def test_a_window_saves_what_is_outside_of_it():
    """An H100 does such a step of the trainer in about as long as was hoped for."""
    work = replace(WORK, attention=WINDOWED)
    windows, dense = (cost(BODY, ONE, w, RATES).seconds for w in (work, WORK))
    assert windows["dense attention"] == 0
    pairs = window_square(4096, N) / N**2
    assert 1 < windows["window attention"] / (pairs * dense["dense attention"]) < 1.6
    changed = ("dense attention", "window attention")
    assert all(windows[part] == dense[part] for part in windows if part not in changed)
    longer = replace(work, attention=(WindowConfig(8192),) * 30)
    short = replace(work, attention=(WindowConfig(4096),) * 30)
    ratio = cost(BODY, ONE, longer, RATES).seconds["window attention"]
    ratio /= cost(BODY, ONE, short, RATES).seconds["window attention"]
    assert 1.5 < ratio < 2


def test_documents_save_the_pairs_between_them():
    """The layers of a step as ``benchmarks/documents.py`` measured one on an H200, by itself."""
    rates = load_rates("h200")

    def kernels(attention, pairs_left: float | None) -> float:
        work = Work(seq_len=N, attention=(attention,), pairs_left=pairs_left)
        found = cost(BODY, ONE, work, rates).seconds
        return 1e3 * sum(s for part, s in found.items() if part.endswith(" attention"))

    assert kernels(None, None) < kernels(None, 1.0)  # the kernel for documents is slower
    assert kernels(None, 0.109) == pytest.approx(25.4, rel=0.12)
    assert kernels(CONFIG, 0.109) == pytest.approx(1.63, rel=0.12)
    # A window has no pairs but those of documents.
    assert kernels(WindowConfig(N // 2), 0.109) == pytest.approx(kernels(None, 0.109))
    assert kernels(WindowConfig(1024), 0.109) == pytest.approx(kernels(WindowConfig(1024), 1.0))


def test_windows_of_a_ring_fetch_their_tails_alone():
    windows, dense = (
        cost(BODY, Layout(cp=8), replace(WORK, attention=(config,) * 30), RATES)
        for config in (WindowConfig(4096), None)
    )
    assert 0 < windows.seconds["ring"] < dense.seconds["ring"] / 2
    assert windows.memory["activations"] < dense.memory["activations"]


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
    gathered = sum(rows) * 2 * BODY.kv_dim * 2
    # While a dense layer runs backward, beside its own gradients and in place of the feed-forward
    # with the gradient of its hidden layer.
    gradients = N * 2 * BODY.kv_dim * 4
    gradients += N / 8 * 2 * (2 * (BODY.dim + BODY.kv_dim) - 2 * BODY.dim - 4 * BODY.ffn_dim)
    expected = alone[activations] / 8 + RATES.activations["none"] * (gathered + gradients)
    assert ring[activations] == pytest.approx(expected)


def test_the_gradients_of_gathered_keys_count_where_they_are_more_than_the_feed_forward() -> None:
    """Measured on four H200s: 18.6 GiB in use with dense layers, 12.6 with Lighthouse in all."""

    def gib(model: Model, kind: LighthouseConfig | None) -> float:
        work = Work(seq_len=2**19, attention=(kind,) * 30, checkpointing="full")
        return cost(model, Layout(cp=4), work, RATES).memory["activations"] / 2**30

    sparse = LighthouseConfig(num_levels=4, topk=4096)
    difference = gib(BODY, None) - gib(BODY, sparse)
    assert difference == pytest.approx(6.0, rel=0.1)
    wide = replace(BODY, ffn_dim=16 * BODY.ffn_dim)
    gradients = 2**19 * 2 * BODY.kv_dim * 4 / 2**30
    assert gib(wide, None) - gib(wide, sparse) < difference - gradients / 2


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


FULL = replace(WORK, checkpointing="full")


def test_offload_leaves_two_inputs_and_takes_time_only_where_a_copy_is_slower() -> None:
    plain, offloading = (cost(BODY, ONE, w, RATES) for w in (FULL, replace(FULL, offload=True)))
    assert plain.host_bytes == 0
    assert offloading.host_bytes == 29 * N * 2 * BODY.dim
    saved = (30 - 2) * N * 2 * BODY.dim * RATES.activations["full"]
    assert plain.peak_bytes - offloading.peak_bytes == pytest.approx(saved)
    assert offloading.step_seconds == plain.step_seconds
    work = replace(FULL, offload=True, accumulation=3)
    slow = cost(BODY, ONE, work, replace(RATES, host=1e9)).seconds["offload"]
    both_ways = 3 * 2 * offloading.host_bytes / 1e9
    assert both_ways - 3 * plain.step_seconds < slow < both_ways


@pytest.mark.parametrize(("mode", "again"), [("none", 2), ("op", 1), ("2", 1), ("full", 0)])
def test_the_feed_forward_in_chunks_runs_w1_and_w3_again(mode: str, again: int) -> None:
    """All else is as it was: under full checkpointing they run again in any case."""
    whole = replace(WORK, checkpointing=mode)
    chunks = replace(whole, ffn_chunk_tokens=16384)
    before, after = (cost(BODY, ONE, w, RATES) for w in (whole, chunks))
    flops = (after.seconds["matmuls"] - before.seconds["matmuls"]) * RATES.matmul
    assert flops == pytest.approx(again * 2 * N * 30 * BODY.dim * BODY.ffn_dim, abs=1e9)
    sums = 6 * 30 * 10 * 3 * BODY.dim * BODY.ffn_dim
    assert after.seconds["ffn chunks"] == pytest.approx(sums / RATES.copy)
    assert after.memory["activations"] < before.memory["activations"]


def test_the_feed_forward_in_chunks_leaves_the_gradients_of_attention_at_the_peak() -> None:
    def activations(**changes: int) -> float:
        memory = cost(BODY, ONE, replace(FULL, **changes), RATES).memory
        return memory["activations"] / RATES.activations["full"] / N

    hidden = (3 + 1) * 2 * BODY.ffn_dim  # and the gradient of what w2 takes
    of_attention = 4 * 2 * BODY.dim - 4 * BODY.dim
    assert activations() - activations(ffn_chunk_tokens=1024) == hidden - of_attention
    # A chunk of half of all tokens has more than those: three, and three gradients.
    assert activations() - activations(ffn_chunk_tokens=N // 2) == 2 * BODY.ffn_dim


def test_scorers_cost_what_they_read():
    def scorer(name: str, **values: int) -> float:
        config = LighthouseConfig(topk=1536, scorer=name, **values)
        work = replace(WORK, attention=(config,) * 30)
        return cost(BODY, ONE, work, RATES).seconds["scorer"]

    assert scorer("norm") == 0 < scorer("gla") < scorer("dilated")
    assert scorer("dilated", dilation=8) == pytest.approx(scorer("dilated") / 2)
    assert scorer("dilated", num_chunks=4) == pytest.approx(scorer("dilated") / 4)


def test_an_unknown_device_is_refused():
    assert {"h100", "h200"} <= set(devices())
    with pytest.raises(
        ValueError, match=rf"device = 'a100': must be one of {', '.join(devices())}$"
    ):
        load_rates("a100")
