"""Statistics of a selection: against loops over the oracle's entries, and in a training step."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lighthouse import LighthouseConfig, select
from lighthouse.observe import QUANTILES, refined_entries, selection_change, statistics
from lighthouse.ops import reference
from lighthouse.titan.model import apply_lighthouse, lighthouse_modules
from lighthouse.titan.observe import SelectionObserver
from tests import oracle
from tests.inputs import geometries, normal


def tokens_seen(config: LighthouseConfig, scores: list[np.ndarray]) -> list[list[set[int]]]:
    """Tokens at level 0 of the sub-sequence, for each batch row and head."""
    index_BKS = oracle.select_flat(config, *scores)
    seq_len = scores[0].shape[-1]
    return [[{int(i) for i in index_S if i < seq_len} for index_S in row] for row in index_BKS]


@settings(max_examples=40)
@given(geometries(max_seq_len=300), st.integers(0, 2**32 - 1))
def test_statistics_equal_loops_over_the_oracle(
    geometry: tuple[LighthouseConfig, int], seed: int
) -> None:
    config, seq_len = geometry
    batch, heads = 2, 3
    scores = [normal((batch, heads, seq_len), seed + i).abs().float() for i in range(4)]
    pairs = scores[:2], scores[2:]  # query and key scores of an earlier text and of a later one
    earlier, later = (
        refined_entries(select(*pair, config=config, impl="reference"), config, seq_len)
        for pair in pairs
    )
    values = statistics(*pairs[1], later, earlier)

    before, now = (tokens_seen(config, [x.numpy() for x in pair]) for pair in pairs)
    by_any_head = [len(set.union(*row)) for row in now]
    expected = {"full_resolution_share": sum(by_any_head) / (batch * seq_len)}
    kept = sum(len(before[b][h] & now[b][h]) for b in range(batch) for h in range(heads))
    chosen = batch * heads * config.topk * config.pooling_factor
    by_chance = 1 - config.topk * config.pooling_factor / seq_len
    expected["selection_change"] = (1 - kept / chosen) / by_chance if by_chance else 0.0
    for kind, pooled in zip(("query", "key"), pairs[1], strict=True):
        for quantile in QUANTILES:
            rows = [float(np.quantile(row, quantile)) for row in pooled.flatten(0, 1).numpy()]
            expected[f"{kind}_score_p{round(100 * quantile)}"] = sum(rows) / len(rows)
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )


def test_change_of_equal_and_of_independent_selections() -> None:
    config = LighthouseConfig(num_levels=2, topk=64, stratum=64)

    def refined(seed: int) -> torch.Tensor:
        pair = (normal((2, 8, 1024), seed + i).abs().float() for i in range(2))
        return refined_entries(select(*pair, config=config), config, 1024)

    first, second = refined(0), refined(10)
    assert selection_change(first, first) == 0
    # 1,024 refined entries, of which a quarter coincide by chance: a deviation of 0.014.
    assert selection_change(second, first).item() == pytest.approx(1, abs=0.07)
    everything = torch.ones_like(first)
    assert selection_change(everything, everything) == 0


def build(*args: str) -> tuple[torch.nn.Module, SimpleNamespace]:
    from torchtitan.config import ConfigManager
    from torchtitan.protocols.train_spec import get_train_spec

    options = "--model.flavor tiny_byte --model.tokenizer byte --training.seq_len 128"
    options += " --lighthouse.enable --lighthouse.topk 8 --lighthouse.stratum 8"
    options += " --lighthouse.dense_layers 0 --lighthouse.selection_log_freq 20"
    job = ConfigManager().parse_args([*options.split(), *args])
    spec = get_train_spec("llama3")
    model_args = spec.model_args["tiny_byte"]
    model_args.update_from_config(job)
    torch.manual_seed(0)
    model = spec.model_cls(model_args)
    with torch.no_grad():
        model.init_weights()
    apply_lighthouse(model, job)
    return model, job


ONE_DEVICE = SimpleNamespace(get_optional_mesh=lambda name: None)
TOKENS = torch.arange(256).view(2, 128)


def test_what_is_observed_is_what_training_selects(monkeypatch: pytest.MonkeyPatch) -> None:
    model, job = build()
    selected: list[torch.Tensor] = []
    original = reference.select

    def spy(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        index, slot = original(*args)
        selected.append(slot)
        return index, slot

    monkeypatch.setattr(reference, "select", spy)
    model(TOKENS)
    used = dict(zip((1, 2, 3), selected, strict=True))
    observer = SelectionObserver([model], job, ONE_DEVICE)
    observer.begin_step(1)
    model(TOKENS)
    metrics = observer.metrics()
    for layer, slot in used.items():
        share = (slot[..., :128] >= 0).any(dim=1).float().mean().item()
        assert metrics[f"lighthouse/layer_{layer:02}/full_resolution_share"] == share
    assert not any("layer_00" in name or "selection_change" in name for name in metrics)

    observer.begin_step(20)
    model(TOKENS)
    metrics = observer.metrics()
    assert [metrics[f"lighthouse/layer_{layer:02}/selection_change"] for layer in used] == [0.0] * 3


def test_only_the_first_microbatch_of_a_step_whose_turn_it_is() -> None:
    model, job = build()
    observer = SelectionObserver([model], job, ONE_DEVICE)
    observer.begin_step(20)
    model(TOKENS)
    first = observer.metrics()
    observer.begin_step(20)
    model(TOKENS)
    model(TOKENS.flip(0) % 7)
    assert {k: v for k, v in observer.metrics().items() if "change" not in k} == first

    for step, dense in ((19, False), (40, True)):
        for module in lighthouse_modules([model]):
            module.dense = dense
        observer.begin_step(step)
        assert not any(block._forward_pre_hooks for block in model.layers.values())
        assert observer.metrics() == {}


def test_gradients_are_those_of_an_unobserved_step() -> None:
    gradients = []
    for observed in (False, True):
        model, job = build()
        observer = SelectionObserver([model], job, ONE_DEVICE)
        # Casts of weights are kept for the time of the context.
        with torch.autocast("cpu", torch.bfloat16):
            if observed:
                observer.begin_step(1)
            loss = model(TOKENS).float().logsumexp(dim=-1).sum()
        assert bool(observer.metrics()) == observed
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, beside in zip(*gradients, strict=True):
        assert torch.equal(plain, beside)
