"""Small random Llamas in Hugging Face's format, and the same in torchtitan's model."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import Transformer
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

from lighthouse.titan.llama3.model_args import model_args_of
from lighthouse.titan.llama3.tied import apply_tied

SMALL = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-3,
    "initializer_range": 0.2,  # large enough for positions to matter
    "bos_token_id": 256,
    "eos_token_id": 257,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"num_key_value_heads": 2},
    "theta": {"rope_theta": 1e6},
    "llama3": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YARN},
    "yarn_factor": {"rope_scaling": YARN | {"attention_factor": 1.5, "beta_fast": 4.0}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
}


def save_llama(
    folder: Path, change: dict[str, Any], dtype: torch.dtype = torch.float32, shard: str = "60KB"
) -> Any:
    """Write a folder, and return transformers' model.

    Args:
        change: what differs from ``SMALL``; with rope_theta and rope_scaling the file is as
            transformers 4 writes it, otherwise as transformers 5.
        shard: size of a file.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    values = copy.deepcopy(SMALL | change)  # transformers adds to it
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # ones would hide a mix-up
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        weight.data = weight.data.to(dtype)  # not the rotary frequencies, as model.to would
    model.save_pretrained(folder, max_shard_size=shard)
    if "rope_theta" in values or "rope_scaling" in values:
        file = folder / "config.json"
        written = json.loads(file.read_text())
        del written["rope_parameters"]
        four = {"rope_theta": 10000.0, "rope_scaling": None}
        file.write_text(json.dumps(written | four | {k: v for k, v in change.items() if k in four}))
    for weight in model.parameters():
        weight.data = weight.data.float()
    return model


def edit_config(folder: Path, **change: Any) -> None:
    """Change keys of a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


def parse(folder: Path, *flags: str, checked: bool = False) -> Any:
    """A job of the byte tokenizer that begins with a folder's weights."""
    hf = f"--model.flavor hf --model.tokenizer byte --model.hf_assets_path {folder}"
    load = "--checkpoint.enable --checkpoint.initial_load_in_hf"
    run = f"--job.dump_folder {folder}/run --training.dataset python --training.seq_len 128"
    arguments = [*hf.split(), *load.split(), *run.split(), *flags]
    return ConfigManager(checked=checked).parse_args(arguments)


def load_llama(job_config: Any) -> Transformer:
    """The job's model with its folder's weights, loaded as the trainer does."""
    args = model_args_of(job_config)
    args.update_from_config(job_config)
    with torch.device("meta"):
        model = Transformer(args)
        apply_tied(model, args)
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights()
    folder = job_config.model.hf_assets_path
    adapter = Llama3StateDictAdapter(args, folder)
    weights = adapter.to_hf(model.state_dict())
    dcp.load(weights, storage_reader=adapter.get_hf_storage_reader(folder), no_dist=True)
    model.load_state_dict(adapter.from_hf(weights))
    return model
