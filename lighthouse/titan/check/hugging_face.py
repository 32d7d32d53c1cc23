"""Checks of a model that begins as a folder in Hugging Face's format."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from lighthouse.titan.llama3.config_json import (
    CONFIG_FILE,
    HUGGING_FACE,
    SIZES,
    args_of_config,
)
from lighthouse.titan.llama3.description import describe, weight_shapes
from lighthouse.titan.llama3.flavors import BYTE_VOCAB_SIZE
from lighthouse.titan.llama3.model_args import HF, model_args_of
from lighthouse.titan.llama3.safetensors_header import FLOATS, Stored, stored_weights
from lighthouse.titan.run.assets import weights_folder
from lighthouse.toml_types import spelled

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")


def check_hugging_face(job_config: "JobConfig") -> None:
    """Refuse weights that would compute something else in this job's model, or not fit it.

    Raises:
        ValueError: naming the key of the job or of ``config.json``, its value and what would do.
    """
    config, model = job_config.checkpoint, job_config.model
    if config.initial_load_in_hf and not config.initial_load_model_only:
        raise ValueError(
            "checkpoint.initial_load_model_only = false: a folder of "
            "checkpoint.initial_load_in_hf has weights alone; set it to true"
        )
    if model.name != "llama3":
        return
    if model.tokenizer == "hf":
        _check_tokenizer(model.hf_assets_path, job_config.job.config_file is not None)
    _check_tied(job_config)
    folder = weights_folder(job_config)
    if folder is not None:
        key = "checkpoint.initial_load_path" if config.initial_load_path else "model.hf_assets_path"
        _check_config(job_config, folder, key)
        _check_weights(job_config, folder, key)
        if model.tokenizer == "byte":
            _check_bytes(job_config, folder, key)


def _check_tokenizer(written: str, from_file: bool) -> None:
    folder = Path(written)
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        found = "has none of" if folder.is_dir() else "there is no such folder, with one of"
        way = "" if from_file else "; no --job.config_file names a TOML that would say so"
        raise ValueError(
            f"model.hf_assets_path = {written!r}: {found} {', '.join(_VOCABULARIES)}, which "
            'model.tokenizer = "hf" reads; name a folder with a tokenizer of Hugging Face\'s, or '
            f'use model.tokenizer = "byte"{way}'
        )


def _check_bytes(job_config: "JobConfig", folder: Path, key: str) -> None:
    """Bytes mean nothing to weights that know the tokens of another tokenizer."""
    known = model_args_of(job_config).vocab_size
    own = [name for name in _VOCABULARIES if (folder / name).is_file()]
    if own and known != BYTE_VOCAB_SIZE:
        raise ValueError(
            f'model.tokenizer = "byte": the weights of {key} = {str(folder)!r} know the {known:,} '
            f'tokens of its {own[0]}; use model.tokenizer = "hf" with model.hf_assets_path = '
            f"{str(folder)!r}, or, for bytes on purpose, a copy of the folder without {own[0]}"
        )


def _check_tied(job_config: "JobConfig") -> None:
    if not model_args_of(job_config).tied:
        return
    for degree in ("tensor_parallel_degree", "pipeline_parallel_degree"):
        value = getattr(job_config.parallelism, degree)
        if value > 1:
            raise ValueError(
                f"parallelism.{degree} = {value}: the model's output layer has the embedding's "
                "weights (tie_word_embeddings), which this would split apart; use 1"
            )


def _check_config(job_config: "JobConfig", folder: Path, key: str) -> None:
    """The job's model is the folder's, but for what is changed on purpose and no weight shows."""
    from torchtitan.tools.logging import logger

    model = job_config.model
    if model.flavor != HF and not (folder / CONFIG_FILE).is_file():
        logger.warning(
            f"{key} = {str(folder)!r}: has no {CONFIG_FILE} to compare model.flavor = "
            f"{model.flavor!r} with"
        )
        return
    mine, theirs = describe(model_args_of(job_config)), describe(args_of_config(folder, key))
    for name, value in theirs.items():
        ours, is_told, is_size = mine.get(name, "none"), _is_told(model.args, name), name in SIZES
        if ours == value or (is_told and not is_size):
            continue
        theirs_name = HUGGING_FACE.get(name, name)
        of_file = f"{CONFIG_FILE} of {key} = {str(folder)!r} has {theirs_name} = {spelled(value)}"
        if is_told:
            raise ValueError(
                f"model.args.{name} = {spelled(ours)}: {of_file}, as the weights do; set it to "
                "that, or leave it out with model.flavor = 'hf'"
            )
        way = "name one folder in both" if model.flavor == HF else "use model.flavor = 'hf'"
        if not is_size:
            way += f", or set model.args.{name} = {spelled(ours)} to change it on purpose"
        raise ValueError(
            f"model.flavor = {model.flavor!r}: has {name} = {spelled(ours)}, but {of_file}; {way}"
        )


def _is_told(section: Any, name: str) -> bool:
    """Whether ``[model.args]`` sets what a key of the description follows from."""
    if name.startswith("rope_scaling."):
        return any(value is not None for value in vars(section.rope_scaling).values())
    return getattr(section, name) is not None


def _check_weights(job_config: "JobConfig", folder: Path, key: str) -> None:
    """The files hold the weights of the model, and no others.

    Their shapes are the model's own where ``config.json`` was compared, or is not there.
    """
    try:
        stored = stored_weights(folder)
    except ValueError as error:
        raise ValueError(f"{key} = {str(folder)!r}: {error}") from None
    args = model_args_of(job_config)
    needed = weight_shapes(args)
    where = f"{key} = {str(folder)!r}"
    unused = [n for n in stored if n not in needed and not _is_left_out(n, args.tied)]
    for name, shape in needed.items():
        if name not in stored:
            way = "fetch them again"
            if unused:
                way = f"they have {unused[0]}; name a folder as transformers saves a Llama"
            elif name == "lm_head.weight":
                way += ", or set tie_word_embeddings = true in its config.json if it has none"
            raise ValueError(f"{where}: its safetensors have no {name}; {way}")
        if stored[name].shape != shape:
            raise ValueError(
                f"{where}: its safetensors have {name} as {stored[name].shape}, its config.json as "
                f"{shape}; fetch both again"
            )
        if stored[name].dtype not in FLOATS:
            raise ValueError(
                f"{where}: {stored[name].file.name} has {name} as {stored[name].dtype}, which "
                f"needs scales that its config.json does not tell of; name a folder with weights "
                f"of {', '.join(FLOATS)}"
            )
    if unused:
        raise ValueError(
            f"{where}: its safetensors have {unused[0]}, which the Llama of its config.json has "
            "not; name a folder of a plain Llama, with the config.json that it came with"
        )
    output, embedding = stored.get("lm_head.weight"), stored["model.embed_tokens.weight"]
    if args.tied and output is not None:
        _check_copy(where, output, embedding)


def _check_copy(where: str, output: Stored, embedding: Stored) -> None:
    """An output layer that is said to be tied, and is in the files, is the embedding's copy.

    transformers 4 takes the embedding where they differ, transformers 5 the output layer.
    """
    with safe_open(output.file, "pt") as file:
        theirs = file.get_tensor("lm_head.weight")
    with safe_open(embedding.file, "pt") as file:
        if torch.equal(theirs, file.get_tensor("model.embed_tokens.weight")):
            return
    raise ValueError(
        f"{where}: its config.json has tie_word_embeddings = true, but its safetensors have a "
        "lm_head.weight that is not model.embed_tokens.weight; set tie_word_embeddings = false "
        "there to use it, or take it out of the files"
    )


def _is_left_out(name: str, tied: bool) -> bool:
    """Tables that older files carry along, and the output layer where it is the embedding."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")
