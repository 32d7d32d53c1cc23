"""Files that a run's configuration points to, kept in the run's folder.

With them export and evaluation need that folder alone, whatever becomes of the ones they came from.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lighthouse.runs.files import read_object, write_atomic
from lighthouse.runs.folder import ASSETS_FOLDER, finished_steps
from lighthouse.titan.llama3.config_json import CONFIG_FILE
from lighthouse.titan.llama3.model_args import HF
from lighthouse.titan.llama3.safetensors_header import stored_weights

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

GENERATION_FILE = "generation_config.json"
BEGUN_FILE = "begun_with.json"
"""Of which folder the first weights were, and of which dtype."""

_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*",
    "*.model",
    "*.tiktoken",
)

_DTYPES = {"F16": "float16", "BF16": "bfloat16"}


def tokenizer_files(folder: Path) -> list[Path]:
    """What a folder's tokenizer consists of, relative to it: no weights, no configuration."""
    found = {path for pattern in _TOKENIZER for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder) for path in found)


def keep_assets(job_config: "JobConfig") -> None:
    """Copy tokenizer, ``config.json`` and generation settings into the run's folder.

    And write down of which dtype the weights are that the run begins with. Where nothing is used of
    a Hugging Face folder, nothing is kept.
    """
    model = job_config.model
    assets = Path(job_config.job.dump_folder) / ASSETS_FOLDER
    folder, begins = Path(model.hf_assets_path), weights_folder(job_config)
    if model.tokenizer == "hf":
        copy_files(folder, assets, tokenizer_files(folder))
    source = begins or (folder if model.flavor == HF else None)
    if source is not None:
        names = [Path(name) for name in (CONFIG_FILE, GENERATION_FILE) if (source / name).is_file()]
        copy_files(source, assets, names)
    if begins is not None:
        said = {"folder": str(begins.resolve()), "dtype": _dtype_of(begins)}
        assets.mkdir(parents=True, exist_ok=True)
        write_atomic(assets / BEGUN_FILE, json.dumps(said, indent=2) + "\n")


def weights_folder(job_config: "JobConfig") -> Path | None:
    """The folder in Hugging Face's format that the run begins with; None if with something else.

    A run that has a checkpoint goes on from that.
    """
    config = job_config.checkpoint
    own = Path(job_config.job.dump_folder) / config.folder
    if not (config.enable and config.initial_load_in_hf) or finished_steps(own):
        return None
    return Path(config.initial_load_path or job_config.model.hf_assets_path)


def weights_left_out(job_config: "JobConfig") -> list[str]:
    """A sentence for a run that takes the sizes of a folder, and not the weights beside them."""
    config, model = job_config.checkpoint, job_config.model
    own = Path(job_config.job.dump_folder) / config.folder
    if model.flavor != HF or config.initial_load_in_hf or config.initial_load_path:
        return []
    if finished_steps(own) or not any(Path(model.hf_assets_path).glob("*.safetensors")):
        return []
    return [
        f"model.hf_assets_path = {model.hf_assets_path!r}: its weights are not loaded, the model "
        "begins with random ones; checkpoint.initial_load_in_hf = true begins with them"
    ]


def begun_with(run: Path) -> dict[str, Any]:
    """What ``keep_assets`` wrote of the first weights; empty for a run that began at random."""
    return read_object(run / ASSETS_FOLDER / BEGUN_FILE)


def copy_files(source: Path, target: Path, names: list[Path]) -> None:
    """Copy files, by their path relative to both folders, with the modes of new files."""
    if target.is_dir() and source.samefile(target):
        return  # the run was started again from its own configuration
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _dtype_of(folder: Path) -> str:
    """That of all weights; float32, which holds them all, where they have several."""
    dtypes = {stored.dtype for stored in stored_weights(folder).values()}
    return _DTYPES.get(dtypes.pop(), "float32") if len(dtypes) == 1 else "float32"
