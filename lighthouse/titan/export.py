"""A run's model as a Hugging Face folder.

    python -m lighthouse.titan.export RUN OUT [--step N] [--dtype D] [--accept-nonfinite]

RUN is the run's folder, or one of its checkpoints. What is written is what was trained: sizes,
rotary base and scaling, positions, tokenizer and special tokens come from the run. Lighthouse
Attention adds no weights, so the result is an ordinary dense Llama. A checkpoint that lies in no
run's folder needs ``--flavor`` and ``--tokenizer``.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.models.llama3 import TransformerModelArgs, llama3_args
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

from lighthouse.refusal import refuse
from lighthouse.runs.files import read_object
from lighthouse.runs.folder import ASSETS_FOLDER, RESOLVED_FILE, step_of
from lighthouse.titan.checkpoint.damage import check_whole
from lighthouse.titan.checkpoint.record import RunRecord
from lighthouse.titan.checkpoint.seal import METADATA
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.llama3.config_json import CONFIG_FILE, config_of
from lighthouse.titan.llama3.description import weight_shapes
from lighthouse.titan.llama3.model_args import model_args_of
from lighthouse.titan.llama3.safetensors_header import INDEX_FILE, SINGLE_FILE, header_of
from lighthouse.titan.run.assets import GENERATION_FILE, begun_with, tokenizer_files
from lighthouse.titan.tokenizer_files import special_ids, write_tokenizer
from lighthouse.titan.trained import finished_checkpoint, job_of_run, weights_by_layer

FILE_BYTES = 5 * 10**9
"""Of weights in a file, at most, but for a weight that is larger."""

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Exported:
    """What is written.

    Attributes:
        checkpoint: a finished ``step-N`` folder of the trainer.
        model_args: what was trained; ``max_seq_len`` is the longest sequence until then.
        tokenizer: ``"byte"``, a folder with Hugging Face tokenizer files, or None for none.
        dtype: of the written weights.
        original: the folder with the ``config.json`` and ``generation_config.json`` that the run
            began with, whose other keys are kept; None for none.
        accept_nonfinite: write values that are no finite numbers as they are, and say on stderr in
            which weight the first is, instead of refusing them.
    """

    checkpoint: Path
    model_args: TransformerModelArgs
    tokenizer: str | None = None
    dtype: str = "float32"
    original: Path | None = None
    accept_nonfinite: bool = False


def export(what: Exported, output: Path) -> None:
    """Write config.json, generation_config.json, safetensors and the tokenizer's files.

    A layer is in memory at a time. Either the whole folder is there afterwards, or none.

    Args:
        output: folder to write; must be missing or empty.

    Raises:
        ValueError: an unfinished checkpoint, weights of another model or that are no numbers, a
            used output folder, or a tokenizer that does not fit.
    """
    if output.is_symlink() and not output.exists():
        raise ValueError(f"output {output} is a link to nothing that is there: name a new folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output {output} is there already: name a new or an empty folder")
    output = output.resolve()  # of a link to an empty folder, that
    partial = output.parent / f".{output.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        _write_configs(what, partial)
        layers = weights_by_layer(what.checkpoint, what.model_args)
        if what.tokenizer is not None:
            write_tokenizer(what.tokenizer, partial, what.model_args.max_seq_len)
        _write_weights(what, layers, partial)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_configs(what: Exported, folder: Path) -> None:
    begun = {} if what.original is None else read_object(what.original / CONFIG_FILE)
    generation = {} if what.original is None else read_object(what.original / GENERATION_FILE)
    ids = special_ids(what.tokenizer, what.model_args.vocab_size, begun)
    _write_json(folder / CONFIG_FILE, config_of(what.model_args, what.dtype, begun) | ids)
    generation = generation or {"_from_model_config": True}
    known = {key: generation[key] for key in ids if key in generation}
    ids = special_ids(what.tokenizer, what.model_args.vocab_size, begun | known)
    _write_json(folder / GENERATION_FILE, generation | ids)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_weights(what: Exported, layers: Iterator[dict[str, torch.Tensor]], folder: Path) -> None:
    """Files of ``FILE_BYTES``, and their index where there are several.

    Raises:
        ValueError: a weight has a value that is no finite number, and that is not accepted.
    """
    dtype = TORCH_DTYPE_MAP[what.dtype]
    shapes = weight_shapes(what.model_args)
    files = _split({n: dtype.itemsize * torch.Size(s).numel() for n, s in shapes.items()})
    weights = _renamed(what, layers, dtype)
    places: dict[str, str] = {}
    warned = False
    for number, names in enumerate(files, start=1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors" if files[1:] else SINGLE_FILE
        places |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as stream:
            stream.write(header_of({name: shapes[name] for name in names}, dtype))
            for name in names:
                written, weight = next(weights)
                assert written == name
                if not warned and not weight.isfinite().all():
                    _refuse_or_warn(what, name)
                    warned = True
                _write_tensor(stream, weight)
    if files[1:]:
        total = sum(dtype.itemsize * torch.Size(shape).numel() for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(folder / INDEX_FILE, index)


def _refuse_or_warn(what: Exported, name: str) -> None:
    said = f"checkpoint {what.checkpoint} has values in {name} that are no finite numbers in "
    if not what.accept_nonfinite:
        raise ValueError(
            f"{said}{what.dtype}: take an earlier step, or another --dtype, or write all values as "
            "they are with --accept-nonfinite"
        )
    print(f"warning: {said}{what.dtype}; all values are written as they are", file=sys.stderr)


def _split(sizes: dict[str, int]) -> list[list[str]]:
    """Names in their order, in files."""
    files: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if files[-1] and filled + size > FILE_BYTES:
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size
    return files


def _renamed(
    what: Exported, layers: Iterator[dict[str, torch.Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights by Hugging Face's names, in the order of ``weight_shapes``, in the written dtype."""
    adapter = Llama3StateDictAdapter(what.model_args, hf_assets_path=None)
    order = {name: place for place, name in enumerate(weight_shapes(what.model_args))}
    for layer in layers:
        for name, weight in sorted(adapter.to_hf(layer).items(), key=lambda item: order[item[0]]):
            yield name, weight.to(dtype).contiguous()


def _write_tensor(stream: BinaryIO, weight: torch.Tensor) -> None:
    stream.write(weight.flatten().view(torch.uint8).numpy().data)


def of_run(folder: Path, step: int | None = None, dtype: str | None = None) -> Exported:
    """What a run's folder has at a step, by its own configuration.

    Says on stderr if that is a step of a stage that is not dense.

    Args:
        step: of a finished checkpoint; None for the last.
        dtype: of the weights; None for that of the folder that the run began with, or float32.

    Raises:
        ValueError: no run, or no such checkpoint.
    """
    job_config = job_of_run(folder)
    checkpoint, step = finished_checkpoint(folder / job_config.checkpoint.folder, step)
    if os.path.lexists(checkpoint / METADATA):
        check_whole(checkpoint)
    record = RunRecord.read(checkpoint)
    stages = Stages.of(job_config) if record is None or record.stages is None else record.stages
    stage = stages.at(step)
    if not stage.dense:
        print(
            f"warning: step {step} is of a {stage.attention} stage, and what is written computes "
            "dense attention; train a dense tail first",
            file=sys.stderr,
        )
    positions = max((s.seq_len for s in stages if s.first <= step), default=stages.longest)
    assets = folder / ASSETS_FOLDER
    byte = job_config.model.tokenizer == "byte"
    return Exported(
        checkpoint,
        replace(model_args_of(job_config), max_seq_len=positions),
        "byte" if byte else job_config.model.hf_assets_path,
        dtype or begun_with(folder).get("dtype", "float32"),
        assets if (assets / CONFIG_FILE).is_file() else None,
    )


def _named(path: Path, options: argparse.Namespace) -> Exported:
    """What the command line names.

    Raises:
        ValueError: it is in no run and not described, or described otherwise than its run is.
    """
    # A checkpoint may be a link, to another disk or as "latest".
    inside = [p for p in (path.absolute(), path.resolve()) if _is_run(p.parent.parent)]
    if not _is_run(path) and not inside:
        if options.flavor is None:
            where = (
                "lies in no run's folder" if path.is_dir() else "is no folder of a run, nor in one"
            )
            raise ValueError(f"{path} {where}; if it is a checkpoint, name the sizes with --flavor")
        if options.flavor not in llama3_args:
            known = ", ".join(sorted(llama3_args))
            raise ValueError(f"--flavor {options.flavor!r}: must be one of {known}")
        tokenizer = None if options.tokenizer == "none" else options.tokenizer
        args = llama3_args[options.flavor]
        return Exported(path, args, tokenizer, options.dtype or "float32")
    run, step = path, options.step
    if not _is_run(path):
        named = [p for p in inside if step_of(p.name) is not None]
        if not named:
            raise ValueError(f"{path} is neither a run's folder nor a step-N folder of one")
        run, step = named[0].parent.parent, step_of(named[0].name)
    found = of_run(run, step, options.dtype)
    if not _is_run(path) and not found.checkpoint.samefile(path):
        raise ValueError(
            f"{path} is not among the run's checkpoints, where step {step} is {found.checkpoint}; "
            "name that, or move this one there"
        )
    flavor = job_of_run(run).model.flavor
    if options.flavor not in (None, flavor):
        raise ValueError(
            f"--flavor {options.flavor!r}: the run has model.flavor = {flavor!r}; leave it out"
        )
    if options.tokenizer == "none":
        return replace(found, tokenizer=None)
    if options.tokenizer is not None and not _same_tokenizer(options.tokenizer, found.tokenizer):
        raise ValueError(
            f"--tokenizer {options.tokenizer!r}: the run was trained with {found.tokenizer!r}; "
            "leave it out"
        )
    return found


def _is_run(folder: Path) -> bool:
    return (folder / RESOLVED_FILE).is_file()


def _same_tokenizer(named: str, of_run: str | None) -> bool:
    if "byte" in (named, of_run) or of_run is None:
        return named == of_run
    ours, theirs = Path(named), Path(of_run)
    names = tokenizer_files(ours)
    return names == tokenizer_files(theirs) and all(
        (ours / name).read_bytes() == (theirs / name).read_bytes() for name in names
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lighthouse.titan.export",
        description="Write a run's model as a Hugging Face Llama folder.",
    )
    parser.add_argument("run", type=Path, help="a run's folder, or a step-N folder")
    parser.add_argument("output", type=Path, help="folder to write, missing or empty")
    parser.add_argument("--step", type=int, help="of the run's checkpoints; the last by default")
    parser.add_argument("--dtype", choices=DTYPES, help="that of the folder begun with, or float32")
    parser.add_argument("--flavor", help="model.flavor of a checkpoint that lies in no run")
    parser.add_argument("--tokenizer", help='of such a one: "byte", or a folder; "none" for none')
    parser.add_argument(
        "--accept-nonfinite", action="store_true", help="write weights that are no finite numbers"
    )
    options = parser.parse_args(arguments)
    try:
        what = replace(_named(options.run, options), accept_nonfinite=options.accept_nonfinite)
        export(what, options.output)
    except (ValueError, OSError) as error:  # the error of a disk names the file
        refuse(error)
    print(
        f"wrote {options.output}: step {what.checkpoint.name.removeprefix('step-')}, {what.dtype}"
    )


if __name__ == "__main__":
    main()
