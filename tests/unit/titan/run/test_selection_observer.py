"""Statistics of the selection in a training step."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lighthouse.config import WindowConfig
from lighthouse.ops import reference
from lighthouse.pyramid import Selection
from lighthouse.titan.llama3.layers import wrapped_modules
from lighthouse.titan.run.selection_observer import SelectionObserver
from tests.support.models import drawn


def build(*args: str) -> tuple[torch.nn.Module, SimpleNamespace]:
    from torchtitan.config import ConfigManager

    options = "--model.flavor tiny_byte --model.tokenizer byte --training.seq_len 128"
    options += " --lighthouse.enable --lighthouse.topk 8 --lighthouse.stratum 8"
    options += " --lighthouse.dense_layers 0 --lighthouse.selection_log_freq 20"
    job = ConfigManager().parse_args([*options.split(), *args])
    return drawn(job), job


ONE_DEVICE = SimpleNamespace(get_optional_mesh=lambda name: None)
TOKENS = torch.arange(256).view(2, 128)


def test_what_is_observed_is_what_training_selects(monkeypatch: pytest.MonkeyPatch) -> None:
    model, job = build()
    selected: list[torch.Tensor] = []
    original = reference.select

    def spy(*args: Any) -> Selection:
        selection = original(*args)
        selected.append(selection.slot)
        return selection

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
        for module in wrapped_modules([model]):
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


def test_a_window_layer_has_no_selection() -> None:
    model, job = build()
    wrapped_modules([model])[0].config = WindowConfig(16)
    observer = SelectionObserver([model], job, ONE_DEVICE)
    observer.begin_step(20)
    model(TOKENS)
    layers = {name.split("/")[1] for name in observer.metrics()}
    assert layers == {"layer_02", "layer_03"}


def test_a_stage_of_other_shapes_or_parameters_is_not_compared_with_the_last() -> None:
    model, job = build()
    observer = SelectionObserver([model], job, ONE_DEVICE)
    for tokens, compared in ((TOKENS, False), (TOKENS[:1], False), (TOKENS[:1], True)):
        observer.begin_step(20)
        model(tokens)
        names = observer.metrics()
        assert ("lighthouse/layer_01/selection_change" in names) == compared
    for module in wrapped_modules([model]):
        module.config = replace(module.config, stratum=4)
    observer.begin_step(20)
    model(TOKENS[:1])
    assert "lighthouse/layer_01/selection_change" not in observer.metrics()
