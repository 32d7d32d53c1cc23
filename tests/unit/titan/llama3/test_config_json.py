"""A folder's config.json against what transformers makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lighthouse.titan.llama3.config_json import args_of_config
from lighthouse.titan.llama3.description import describe, ffn_dim, weight_shapes
from lighthouse.titan.llama3.model_args import flavor_args_of, model_args_of, told_args
from lighthouse.titan.plan.work import model_of
from tests.support.llamas import LLAMA3, SMALL, VARIANTS, YARN, load_llama, parse, save_llama
from tests.support.models import on_meta


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_of_transformers(tmp_path: Path, variant: str) -> None:
    theirs = save_llama(tmp_path, VARIANTS[variant])
    ours = load_llama(parse(tmp_path))
    tokens = torch.randint(0, SMALL["vocab_size"], (2, 129))
    inputs, labels = tokens[:, :-1], tokens[:, 1:].flatten()
    with torch.no_grad():
        expected = F.cross_entropy(theirs(inputs).logits.flatten(0, 1), labels)
        got = F.cross_entropy(ours(inputs).flatten(0, 1), labels)
    assert abs(got - expected) < 1e-5
    assert len(list(tmp_path.glob("*.safetensors"))) > 2


def test_the_loss_of_a_mistral(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    values = SMALL | {"num_key_value_heads": 2, "sliding_window": None}
    theirs = transformers.MistralForCausalLM(transformers.MistralConfig(**values)).eval()
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(0, SMALL["vocab_size"], (1, 128))
    with torch.no_grad():
        logits = load_llama(parse(tmp_path))(tokens)
        torch.testing.assert_close(logits, theirs(tokens).logits, rtol=0, atol=1e-4)


def test_the_variants_differ(tmp_path: Path) -> None:
    """Else the test before could not fail."""
    args = [
        VARIANTS[name] for name in ("plain", "theta", "llama3", "yarn", "yarn_factor", "linear")
    ]
    tokens, found = torch.arange(128)[None], []
    for number, change in enumerate(args):
        model = save_llama(tmp_path / str(number), change)
        with torch.no_grad():
            found.append(model(tokens).logits)
    for number, logits in enumerate(found):
        assert all((logits - other).abs().max() > 1e-2 for other in found[:number])


def write(folder: Path, **change: Any) -> Path:
    values = {"model_type": "llama", **SMALL, "rope_theta": 10000.0, **change}
    values = {k: v for k, v in values.items() if v != "left out"}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3"}, r'model_type = "qwen3": it normalizes queries and keys, which'),
        ({"model_type": "gemma"}, r'model_type = "gemma": must be "llama" or "mistral"'),
        ({"model_type": "left out"}, "no model_type: must be"),
        ({"model_type": "mistral"}, "sliding_window = 4096: .* must be null, or left out"),
        ({"attention_bias": True}, "attention_bias = true: in llama3 there are no biases"),
        ({"mlp_bias": True}, "mlp_bias = true"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu": .* must be "silu"'),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"head_dim": 32}, "head_dim = 32: .* must be 16"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5: hidden_size = 64 must be an even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide"),
        ({"hidden_size": "left out"}, "no hidden_size: must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: must be at most 10000"),
        ({"vocab_size": 2.5}, "vocab_size = 2.5: must be a whole number"),
        ({"rms_norm_eps": "small"}, 'rms_norm_eps = "small": must be a number'),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings = "no": must be true or false'),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {.*trained as they are"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types = .* are alike"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            'rope_scaling.rope_type = "dynamic"',
        ),
        ({"rope_parameters": {"rope_type": "longrope"}}, 'rope_parameters.rope_type = "longrope"'),
        ({"rope_scaling": {"type": "linear"}}, "no rope_scaling.factor: must be a number"),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            "high_freq_factor = 1.0: must be mo",
        ),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters = .* are rotated alike"),
        ({"model_type": ["llama"]}, r'model_type = \["llama"\]: must be'),
        ({"layer_types": 3}, "layer_types = 3: "),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = NaN: must be a number, more than 0"),
        ({"rope_theta": 1e-300}, "rope_theta = 1e-300: must be at least 1e-30 and at most 1e.30"),
        ({"rope_theta": float("inf")}, "rope_theta = Infinity: must be a number"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type = .* must be one of default"),
        ({"rope_scaling": YARN | {"mscale": "a"}}, 'rope_scaling.mscale = "a": must be a number'),
        ({"rope_scaling": YARN | {"truncate": "no"}}, 'truncate = "no": must be true or false'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: in llama3 all channels"),
    ],
)
def test_what_cannot_be_represented(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(
        ValueError, match=f"model.hf_assets_path = '.*': config.json has.*{message}"
    ):
        args_of_config(write(tmp_path, **change))


def test_a_mistral_without_a_window_is_a_llama(tmp_path: Path) -> None:
    args = args_of_config(
        write(
            tmp_path,
            model_type="mistral",
            sliding_window=None,
            head_dim=16,
            num_attention_heads=8,
            hidden_size=128,
        )
    )
    assert (args.n_kv_heads, args.n_heads) == (8, 8)


def test_both_spellings_of_rope(tmp_path: Path) -> None:
    """That of transformers 4, with its oldest word for the type, and that of transformers 5."""
    (tmp_path / "five").mkdir()
    old = {"type" if k == "rope_type" else k: v for k, v in YARN.items()}
    four = args_of_config(write(tmp_path, rope_theta=3e5, rope_scaling=old))
    new = {"rope_theta": "left out", "rope_parameters": YARN | {"rope_theta": 3e5}}
    assert args_of_config(write(tmp_path / "five", **new)) == four
    assert four.rope_theta == 3e5 and four.rope_scaling_args.scaling_factor == 4.0


def test_the_factor_of_yarn_follows_from_the_lengths(tmp_path: Path) -> None:
    change = {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 32}}
    assert args_of_config(write(tmp_path, **change)).rope_scaling_args.scaling_factor == 4.0


@pytest.mark.parametrize("flavor", ["tiny_byte", "530M_byte", "debugmodel", "8B"])
def test_shapes_are_those_of_the_model(flavor: str) -> None:
    job = parse(Path("nowhere"), "--model.flavor", flavor, "--model.args.n_layers", "1")
    model, args = on_meta(job), model_args_of(job)
    shapes = sorted(tuple(p.shape) for p in model.parameters())
    assert sorted(weight_shapes(args).values()) == shapes
    assert model.layers["0"].feed_forward.w1.out_features == ffn_dim(args) == model_of(job).ffn_dim


def test_tied_weights_are_one_parameter(tmp_path: Path) -> None:
    write(tmp_path, tie_word_embeddings=True)
    job = parse(tmp_path)
    parameters = dict(on_meta(job).named_parameters())
    assert "tok_embeddings.weight" in parameters and "output.weight" not in parameters
    assert sum(p.numel() for p in parameters.values()) == model_of(job).parameters


def test_args_change_the_folder_on_purpose_and_it_is_said(tmp_path: Path) -> None:
    write(tmp_path, rope_scaling=LLAMA3)
    yarn = "--model.args.rope_scaling.rope_type yarn --model.args.rope_scaling.factor 8"
    job = parse(tmp_path, "--model.args.rope_theta", "2e6", *yarn.split())
    args = model_args_of(job)
    scaling = args.rope_scaling_args
    assert (args.rope_theta, scaling.rope_type, scaling.scaling_factor) == (2e6, "yarn", 8.0)
    assert scaling.original_max_position_embeddings == 32  # the folder's
    assert scaling.attention_factor == pytest.approx(1.2079441541679836)  # 0.1 ln 8 + 1
    said = told_args(job)
    assert "model.args.rope_theta = 2000000.0, on purpose: config.json has 10000.0" in said
    assert (
        "model.args.rope_scaling.rope_type = 'yarn', on purpose: config.json has 'llama3'" in said
    )
    assert any("rope_scaling.attention_factor" in sentence for sentence in said)
    assert describe(flavor_args_of(job))["rope_scaling.rope_type"] == "llama3"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("rope_type yarn", "rope_type = 'yarn': needs a factor"),
        ("factor 2", "factor = 2.0: means nothing with rope_type = 'none'"),
        (
            "rope_type linear --model.args.rope_scaling.beta_fast 2",
            "beta_fast = 2.0: means nothing",
        ),
    ],
)
def test_scaling_that_says_too_little_or_too_much(tmp_path: Path, flags: str, message: str) -> None:
    job = parse(write(tmp_path), *f"--model.args.rope_scaling.{flags}".split())
    with pytest.raises(ValueError, match=message):
        model_args_of(job)
