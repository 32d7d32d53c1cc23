"""A training checkpoint as a Hugging Face Llama folder.

    python -m lighthouse.titan.export CHECKPOINT_STEP_FOLDER OUT [--flavor F] [--tokenizer T]

The sizes of the model and the tokenizer are those of the run that the checkpoint lies in, unless
they are named. Lighthouse Attention adds no weights, so the result is an ordinary dense Llama.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.models.llama3 import TransformerModelArgs, llama3_args
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

from lighthouse.titan.config.model_args import model_args_of
from lighthouse.titan.data.tokenizer import ByteTokenizer
from lighthouse.titan.trained import job_of_run, load_weights

# What a tokenizer folder may consist of; weights and configuration beside it are not copied.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


def export(
    checkpoint: Path,
    output: Path,
    model_args: TransformerModelArgs,
    tokenizer: str | None = None,
    dtype: str = "float32",
) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer's files.

    Args:
        checkpoint: a finished `step-N` folder of the trainer.
        output: folder to write; must be missing or empty.
        model_args: the sizes that were trained.
        tokenizer: "byte", a folder with Hugging Face tokenizer files, or None for no tokenizer.
        dtype: "float32" or "bfloat16", of the written weights.

    Raises:
        ValueError: an unfinished checkpoint, weights of another flavor, a used output folder, or a
            tokenizer that does not fit.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output {output} is there already: name a new or an empty folder")
    token_ids = _special_ids(tokenizer, model_args.vocab_size)
    weights = load_weights(checkpoint, model_args)
    config = llama_config(weights, model_args, dtype) | token_ids

    adapter = Llama3StateDictAdapter(model_args, hf_assets_path=None)
    renamed = {
        name: weight.to(TORCH_DTYPE_MAP[dtype]).contiguous()
        for name, weight in adapter.to_hf(weights).items()
    }
    output.mkdir(parents=True, exist_ok=True)
    save_file(renamed, output / "model.safetensors", metadata={"format": "pt"})
    _write_json(output / "config.json", config)
    _write_json(output / "generation_config.json", {"_from_model_config": True} | token_ids)
    if tokenizer == "byte":
        ByteTokenizer().save_pretrained(output)
    elif tokenizer is not None:
        for name in TOKENIZER_FILES:
            if (Path(tokenizer) / name).exists():
                shutil.copy(Path(tokenizer) / name, output / name)


def llama_config(
    weights: dict[str, torch.Tensor], model_args: TransformerModelArgs, dtype: str
) -> dict[str, Any]:
    """Hugging Face's LlamaConfig."""
    scaling = model_args.rope_scaling_args
    stretched = {
        "rope_type": "llama3",
        "factor": scaling.scaling_factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model_args.vocab_size,
        "hidden_size": model_args.dim,
        "intermediate_size": weights["layers.0.feed_forward.w1.weight"].shape[0],
        "num_hidden_layers": model_args.n_layers,
        "num_attention_heads": model_args.n_heads,
        "num_key_value_heads": model_args.n_kv_heads or model_args.n_heads,
        "head_dim": model_args.dim // model_args.n_heads,
        "hidden_act": "silu",
        "rms_norm_eps": model_args.norm_eps,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": model_args.max_seq_len,
        "rope_theta": float(model_args.rope_theta),
        "rope_scaling": None if scaling.scaling_factor == 1 else stretched,
        "torch_dtype": dtype,
    }


def _special_ids(tokenizer: str | None, vocab_size: int) -> dict[str, int | None]:
    if tokenizer is None:
        # Said, because LlamaConfig would otherwise take 1 and 2.
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    chosen: ByteTokenizer | HuggingFaceTokenizer
    pad_id = None
    if tokenizer == "byte":
        chosen, pad_id = ByteTokenizer(), ByteTokenizer.pad_id
    else:
        try:
            chosen = HuggingFaceTokenizer(tokenizer)
        except FileNotFoundError as error:
            raise ValueError(f"tokenizer {tokenizer!r}: {error}") from error
    if chosen.get_vocab_size() > vocab_size:
        raise ValueError(
            f"tokenizer {tokenizer!r} has {chosen.get_vocab_size()} tokens, the flavor's "
            f"vocabulary only {vocab_size}: name the tokenizer of the training run"
        )
    return {
        "bos_token_id": chosen.bos_id,
        "eos_token_id": chosen.eos_id,
        "pad_token_id": pad_id,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _of_run(
    checkpoint: Path, flavor: str | None, tokenizer: str | None
) -> tuple[TransformerModelArgs, str | None]:
    """Sizes and tokenizer: those named, else those of the run that a checkpoint lies in."""
    named = None if tokenizer == "none" else tokenizer
    if flavor is not None:
        return llama3_args[flavor], named
    folder = checkpoint.resolve().parents[1]
    try:
        job_config = job_of_run(folder)
    except ValueError as error:
        raise ValueError(f"{error}; name the sizes with --flavor") from None
    model_args = model_args_of(job_config)
    model_args.update_from_config(job_config)
    if tokenizer is None:
        byte = job_config.model.tokenizer == "byte"
        named = "byte" if byte else job_config.model.hf_assets_path
    return model_args, named


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.titan.export",
        description="Write a checkpoint as a Hugging Face Llama folder.",
    )
    parser.add_argument("checkpoint", type=Path, help="a step-N folder")
    parser.add_argument("output", type=Path, help="folder to write, missing or empty")
    parser.add_argument("--flavor", help="model.flavor of a checkpoint that lies in no run")
    parser.add_argument("--tokenizer", help='"byte", a folder with tokenizer files, or "none"')
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args(arguments)
    if options.flavor is not None and options.flavor not in llama3_args:
        parser.error(f"--flavor {options.flavor!r}: expected one of {sorted(llama3_args)}")
    try:
        model_args, tokenizer = _of_run(options.checkpoint, options.flavor, options.tokenizer)
        export(options.checkpoint, options.output, model_args, tokenizer, options.dtype)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
