"""Sizes of a model in a job's TOML."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import llama3_args
from torchtitan.models.llama3.model.model import precompute_freqs_cis

from lighthouse.titan.config.resolved_toml import to_toml
from lighthouse.titan.llama3.model_args import model_args_of
from tests.support.models import on_meta

TINY = "--model.flavor tiny_byte --model.tokenizer byte --training.seq_len 512"


def parse(flags: str, checked: bool = False) -> Any:
    return ConfigManager(checked=checked).parse_args([*TINY.split(), *flags.split()])


def test_without_any_the_flavor_is_what_it_was() -> None:
    assert model_args_of(parse("")) == llama3_args["tiny_byte"]


@pytest.mark.parametrize("flags", ["", "--model.args.dim 64"])
def test_a_job_leaves_the_flavor_to_the_next_one(flags: str) -> None:
    """torchtitan puts the length of a job into the arguments of its model."""
    before = model_args_of(parse(flags)).max_seq_len
    model_args_of(parse("")).update_from_config(parse("--training.seq_len 64"))
    assert model_args_of(parse(flags)).max_seq_len == before != 64


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("rope_theta", 1e-300, "at least 1e-30"),
        ("rope_scaling.factor", 1e300, "at most 1000000000.0"),
        ("rope_scaling.factor", 1e-300, "at least 1e-09"),
    ],
)
def test_positions_that_float32_has_not(flag: str, value: float, wanted: str) -> None:
    said = re.escape(f"model.args.{flag} = {value}: must be {wanted}")
    with pytest.raises(ValueError, match=said):
        model_args_of(parse(f"--model.args.{flag} {value}"))


def test_each_key_changes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        "[model.args]\ndim = 96\nn_layers = 3\nn_heads = 6\nn_kv_heads = 2\nffn_dim = 100\n"
        "vocab_size = 300\nnorm_eps = 1e-6\nrope_theta = 1e4\n"
        "[model.args.rope_scaling]\nfactor = 4.0\noriginal_max_position_embeddings = 1024\n"
    )
    args = model_args_of(parse(f"--job.config_file {file}"))
    flavor = llama3_args["tiny_byte"]
    assert args == dataclasses.replace(
        flavor,
        dim=96,
        n_layers=3,
        n_heads=6,
        n_kv_heads=2,
        ffn_dim=100,
        vocab_size=300,
        norm_eps=1e-6,
        rope_theta=1e4,
        rope_scaling_args=dataclasses.replace(
            flavor.rope_scaling_args, scaling_factor=4.0, original_max_position_embeddings=1024
        ),
    )
    assert flavor.dim == 128  # the flavor stays what it is


def test_the_model_has_these_sizes() -> None:
    model = on_meta(parse("--model.args.ffn_dim 100 --model.args.n_layers 2"))
    assert len(model.layers) == 2
    assert model.layers["0"].feed_forward.w1.weight.shape == (100, 128)


def test_positions_that_are_not_stretched() -> None:
    args = model_args_of(parse("--model.args.rope_scaling.rope_type none"))
    got = precompute_freqs_cis(32, 4096, args.rope_theta, args.rope_scaling_args)
    wavelengths = 1.0 / (args.rope_theta ** (torch.arange(0, 32, 2).float() / 32))
    angles = torch.outer(torch.arange(4096), wavelengths).float()
    assert torch.equal(got, torch.polar(torch.ones_like(angles), angles))


def test_the_resolved_configuration_gives_the_same_model(tmp_path: Path) -> None:
    job = parse("--model.args.dim 64 --model.args.rope_scaling.rope_type none")
    file = tmp_path / "config.toml"
    file.write_text(to_toml(job))
    again = ConfigManager(checked=False).parse_args(["--job.config_file", str(file)])
    assert model_args_of(again) == model_args_of(job)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("n_heads 5", r"model.args.n_heads = 5: dim = 128 must be an even number"),
        ("n_kv_heads 3", r"model.args.n_kv_heads = 3: must divide n_heads = 4"),
        ("n_layers 1000000000", r"n_layers = 1000000000: must be at most 10000"),
        ("ffn_dim 4294967296", r"ffn_dim = 4294967296: must be at most 2147483647"),
        ("dim -1", r"model.args.dim = -1: must be more than 0"),
        ("rope_theta 0", r"model.args.rope_theta = 0.0: must be more than 0"),
        ("vocab_size 100", r"vocabulary of 100 is smaller .* model.args.vocab_size = 264"),
        (
            "rope_scaling.rope_type none --model.args.rope_scaling.factor 4",
            r"rope_scaling.factor = 4.0: means nothing with rope_type = 'none'",
        ),
        ("rope_scaling.factor -2", r"rope_scaling.factor = -2.0: must be more than 0"),
        ("rope_scaling.high_freq_factor 1", r"high_freq_factor = 1.0: must be more than low_fr"),
    ],
)
def test_sizes_that_make_no_model(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(f"--training.dataset python --model.args.{flags}", checked=True)


def test_other_models_have_only_their_flavors() -> None:
    job = parse("--model.name deepseek_v3 --model.flavor debugmodel --model.args.dim 64")
    with pytest.raises(ValueError, match=r"model.args.dim: model.name = 'deepseek_v3' has only"):
        model_args_of(job)
