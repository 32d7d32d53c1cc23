"""What a folder of weights must agree with."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lighthouse.titan.llama3.safetensors_header import INDEX_FILE, SINGLE_FILE, stored_weights
from lighthouse.titan.plan.job import plan
from lighthouse.titan.run.assets import weights_left_out
from tests.support.llamas import LLAMA3, edit_config, parse, save_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save_llama(path, {"rope_scaling": LLAMA3})
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    for file in folder.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


AS_FLAVOR = (
    "--model.flavor tiny_byte --model.args.dim 64 --model.args.ffn_dim 96 --model.args.n_layers 2 "
    "--model.args.norm_eps 1e-3 --model.args.rope_theta 1e4 "
)
SCALED = (
    "--model.args.rope_scaling.factor 4 "
    "--model.args.rope_scaling.original_max_position_embeddings 32"
)


@pytest.mark.parametrize("flags", ["", AS_FLAVOR + SCALED, "--model.args.rope_theta 3e5"])
def test_accepted(folder: Path, flags: str) -> None:
    parse(folder, *flags.split(), checked=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (AS_FLAVOR, r"flavor = 'tiny_byte': has rope_scaling.factor = 8.0, but config.json of "
         r"model.hf_assets_path = '.*' has rope_scaling.factor = 4.0; use model.flavor = 'hf', or"),
        ("--model.flavor tiny_byte", "has dim = 128, but .* has hidden_size = 64; use model"),
        (f"{AS_FLAVOR} {SCALED} --model.args.n_kv_heads 2",
         "model.args.n_kv_heads = 2: .* has num_key_value_heads = 4, as the weights do"),
        ("--model.args.n_layers 1", "model.args.n_layers = 1: .* has num_hidden_layers = 2, as"),
        ("--model.args.tied True", "model.args.tied = true: .* has tie_word_embeddings = false"),
        ("--checkpoint.no-enable", "initial_load_in_hf = true: nothing is loaded with"),
        ("--checkpoint.no-initial_load_model_only", "initial_load_model_only = false: "),
        ("--model.hf_assets_path nowhere", "hf_assets_path = 'nowhere': its config.json can't be"),
    ],
)  # fmt: skip
def test_refused(folder: Path, flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(folder, *flags.split(), checked=True)


def test_weights_that_are_not_loaded_are_said(folder: Path, tmp_path: Path) -> None:
    flags = ("--job.dump_folder", str(tmp_path))
    assert weights_left_out(parse(folder, *flags)) == []
    job_config = parse(folder, *flags, "--checkpoint.no-initial_load_in_hf")
    (said,) = weights_left_out(job_config)
    assert str(folder) in said and "initial_load_in_hf = true" in said
    assert said in plan(job_config, gpus=1).remarks
    checkpoint = tmp_path / "checkpoint/step-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / ".metadata").touch()
    assert weights_left_out(job_config) == []


def test_weights_of_another_folder_than_the_description(folder: Path, copied: Path) -> None:
    edit_config(copied, rms_norm_eps=1e-5)
    with pytest.raises(
        ValueError, match=r"initial_load_path = '.*' has rms_norm_eps = 1e-05; name"
    ):
        parse(folder, "--checkpoint.initial_load_path", str(copied), checked=True)


def test_a_run_that_goes_on_does_not_ask_for_the_folder(folder: Path, tmp_path: Path) -> None:
    flags = f"--model.flavor tiny_byte --job.dump_folder {tmp_path} --model.hf_assets_path gone"
    with pytest.raises(ValueError, match="gone"):
        parse(folder, *flags.split(), checked=True)
    (tmp_path / "checkpoint" / "step-1").mkdir(parents=True)
    (tmp_path / "checkpoint" / "step-1" / ".metadata").touch()
    parse(folder, *flags.split(), checked=True)


def _by_other_names(folder: Path) -> None:
    """As a model without an output layer is saved."""
    for file in folder.glob("*.safetensors"):
        save_file({n.removeprefix("model."): w for n, w in load_file(file).items()}, file)


def _cut(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def _no_shard(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def _all_gone(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def _index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


def _second_set(folder: Path) -> None:
    """As a second save leaves it that made one file: transformers takes that, and no shards."""
    shapes = {name: stored.shape for name, stored in stored_weights(folder).items()}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / SINGLE_FILE)


def _lies(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A head that says something else of the tensors, and of as many bytes."""

    def lie(folder: Path) -> None:
        file = sorted(folder.glob("*.safetensors"))[-1]
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return lie


def _overlapping(header: dict[str, Any]) -> None:
    first, *_ = (entry for name, entry in header.items() if name != "__metadata__")
    first["data_offsets"][1] += 4


def _of_text(header: dict[str, Any]) -> None:
    first, *_ = (entry for name, entry in header.items() if name != "__metadata__")
    first["data_offsets"] = ["a", "b"]


def _endless(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.unlink()
    os.mkfifo(file)


def _untied(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)


def _quantized(dtype: torch.dtype) -> Callable[[Path], None]:
    """Weights in a type that needs scales, without a quantization_config."""

    def change(folder: Path) -> None:
        file = sorted(folder.glob("*.safetensors"))[-1]
        save_file({name: weight.to(dtype) for name, weight in load_file(file).items()}, file)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_quantized(torch.int8), "model-.*-of-.*.safetensors has .* as I8, which needs scales"),
        (_quantized(torch.float8_e4m3fn), "model-.*-of-.* has .* as F8_E4M3, which needs scales"),
        (_cut, "by its head; fetch it again"),
        (_lies(_overlapping), "is no safetensors file; fetch it again"),
        (_lies(_of_text), "is no safetensors file; fetch it again"),
        (_endless, "is no file; fetch it again"),
        (_no_shard, "No such file.*; fetch it again"),
        (_all_gone, "has no safetensors"),
        (_by_other_names, "have no model.embed_tokens.weight; they have embed_tokens.weight; name"),
        (_second_set, "is in model.safetensors and in model-00001-of-.*; move the files away"),
        (_untied, "tie_word_embeddings = true, but .* a lm_head.weight that is not"),
        (lambda f: _index(f, "[]"), "index.json is no index of safetensors"),
        (lambda f: _index(f, '{"weight_map": {"lm_head.weight": 3}}'), "is no index of"),
        (lambda f: edit_config(f, intermediate_size=97), r"as \(96, 64\), its .* \(97, 64\)"),
        (lambda f: edit_config(f, num_hidden_layers=3), "have no model.layers.2.self_attn.q_proj"),
        (
            lambda f: edit_config(f, num_hidden_layers=1),
            "have model.layers.1.*, which the Llama",
        ),
    ],
)
def test_files_that_do_not_fit(copied: Path, damage: Any, message: str) -> None:
    damage(copied)
    with pytest.raises(ValueError, match=rf"model.hf_assets_path = .*{message}"):
        parse(copied, checked=True)


def test_a_copy_of_the_embedding_is_no_other_output_layer(tmp_path: Path) -> None:
    model = save_llama(tmp_path, {"tie_word_embeddings": True})
    copy = {"lm_head.weight": model.model.embed_tokens.weight.detach()}
    index = tmp_path / INDEX_FILE
    said = json.loads(index.read_text())
    said["weight_map"]["lm_head.weight"] = "copy.safetensors"
    index.write_text(json.dumps(said))
    save_file(copy, tmp_path / "copy.safetensors")
    parse(tmp_path, checked=True)


@pytest.mark.parametrize("name", ["norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", ["nan", "inf", "0"])
def test_numbers_of_a_model_are_finite(folder: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"model.args.{name} = .*: must be more than 0, and fin"):
        parse(folder, f"--model.args.{name}", value, checked=True)


@pytest.mark.parametrize("degree", ["tensor", "pipeline"])
def test_tied_weights_are_not_split_apart(copied: Path, degree: str) -> None:
    edit_config(copied, tie_word_embeddings=True)
    flag = f"--parallelism.{degree}_parallel_degree"
    with pytest.raises(ValueError, match=rf"{degree}_parallel_degree = 2: .*tie_word_embeddings"):
        parse(copied, flag, "2", checked=True)


def test_weights_that_know_another_tokenizer_are_not_trained_on_bytes(tmp_path: Path) -> None:
    save_llama(tmp_path, {"vocab_size": 300})
    parse(tmp_path, checked=True)  # no tokenizer beside them
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"know the 300 tokens of its tokenizer\.json; use"):
        parse(tmp_path, checked=True)


def test_an_export_of_a_byte_model_goes_on_with_bytes(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{}")
    parse(copied, checked=True)
