"""The adapter for transformers' attention interface."""

from typing import Any

import pytest
import torch

from lighthouse import LighthouseConfig
from lighthouse.attention import lighthouse_attention
from lighthouse.config import WindowConfig
from lighthouse.transformers import use_dense, use_lighthouse

transformers = pytest.importorskip("transformers")

CONFIG = LighthouseConfig(topk=8, stratum=8, num_levels=2)
TOKENS = 128


def llama(**change: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**sizes, **heads, "initializer_range": 0.3, **change})
    )
    return model.eval()


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    tokens = torch.randint(0, 50, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    return model(tokens, use_cache=False, **inputs).logits


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_layer_is_the_librarys_attention(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its inputs as they are after rotation, and its outputs in transformers' order."""
    model, seen = llama(num_key_value_heads=kv_heads), []

    def recorded(*inputs: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen.append([*inputs, lighthouse_attention(*inputs, **kwargs)])
        return seen[-1][-1]

    monkeypatch.setattr("lighthouse.attention.lighthouse_attention", recorded)
    use_lighthouse(model, CONFIG, dense_layers=[1])
    outputs: list[torch.Tensor] = []
    attention = model.model.layers[0].self_attn
    attention.o_proj.register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    ours = logits(model)
    assert len(seen) == 2  # layer 1 is dense
    q, k, _, out = seen[0]
    assert (q.shape, k.shape) == ((2, 4, TOKENS, 8), (2, kv_heads, TOKENS, 8))
    assert torch.equal(outputs[0], out.transpose(1, 2).flatten(2))
    use_dense(model)
    assert (ours - logits(model)).abs().max() > 1e-2


def test_where_all_is_refined_it_is_dense_attention() -> None:
    """And the weights, their names and what is saved are those of the model."""
    model = llama()
    names, dense = [*model.state_dict()], logits(model)
    use_lighthouse(model, WindowConfig(TOKENS))
    torch.testing.assert_close(logits(model), dense, rtol=1e-4, atol=1e-4)
    assert [*model.state_dict()] == names
    use_lighthouse(model, CONFIG, dense_layers=[0, 1, 2])
    assert torch.equal(logits(model), dense)
    use_dense(model)
    assert torch.equal(logits(model), dense) and model.config._attn_implementation == "sdpa"


def test_it_trains_with_checkpointed_layers() -> None:
    found = []
    for checkpointing in (False, True):
        model = llama().train()
        use_lighthouse(model, CONFIG, dense_layers=[0])
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        logits(model).square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(grad.abs().max() > 0 for grad in found[0])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_whole_mask_is_none_and_another_is_refused() -> None:
    model = llama()
    use_lighthouse(model, CONFIG)
    whole = torch.ones(2, TOKENS, dtype=torch.long)
    assert torch.equal(logits(model, attention_mask=whole), logits(model))
    padded = whole.clone()
    padded[0, :5] = 0
    with pytest.raises(ValueError, match="attention_mask: some tokens are hidden"):
        logits(model, attention_mask=padded)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: use_lighthouse(m, CONFIG, dense_layers=[3]), "dense_layers = .*layer 3 does"),
        (lambda _: use_lighthouse(torch.nn.Linear(2, 2), CONFIG), "Linear: has no layers of self-"),
        (lambda m: m(torch.zeros(1, 70, dtype=torch.long)), "seq_len = 70: must be divisible by"),
        (lambda m: m.generate(torch.zeros(1, TOKENS, dtype=torch.long), max_new_tokens=2,
                              do_sample=False), "1 queries and 129 keys: .*use_dense"),
    ],
)  # fmt: skip
def test_refused(call: Any, message: str) -> None:
    model = llama()
    use_lighthouse(model, CONFIG)
    with pytest.raises(ValueError, match=message):
        call(model)


def test_a_model_that_was_loaded_with_the_name_alone() -> None:
    use_lighthouse(llama(), CONFIG)
    model = llama()
    model.set_attn_implementation("lighthouse")
    with pytest.raises(ValueError, match=r"call lighthouse.transformers.use_lighthouse"):
        logits(model)


def test_the_example_trains() -> None:
    pytest.importorskip("accelerate")
    from examples.transformers_trainer import main

    trainer = main(["--steps", "8"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.model.config._attn_implementation == "sdpa"
