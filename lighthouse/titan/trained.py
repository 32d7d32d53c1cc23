"""The model of a run at one of its steps, whole and on one device."""

import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import Transformer, TransformerModelArgs
from torchtitan.protocols.train_spec import get_train_spec

from lighthouse.config import LighthouseConfig
from lighthouse.runs.folder import (
    ASSETS_FOLDER,
    RESOLVED_FILE,
    all_steps,
    finished_steps,
    is_finished,
)
from lighthouse.titan.check.job import import_custom
from lighthouse.titan.checkpoint.damage import check_content, check_whole
from lighthouse.titan.checkpoint.reading import load_state, read_metadata
from lighthouse.titan.checkpoint.seal import METADATA
from lighthouse.titan.config.resolved_toml import check_resolved
from lighthouse.titan.config.section import num_chunks
from lighthouse.titan.config.stages import Stages
from lighthouse.titan.llama3.chunked_loss import token_losses
from lighthouse.titan.llama3.layers import apply_lighthouse, selecting_modules, set_stage
from lighthouse.titan.llama3.model_args import model_args_of
from lighthouse.titan.llama3.tied import apply_tied
from lighthouse.titan.run.quiet import keep_quiet

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

_LOGIT_TOKENS = 8192
"""Tokens whose logits exist at a time."""


@dataclass(frozen=True)
class Trained:
    """A model to measure.

    Attributes:
        job_config: the run's, for one process.
        step: of the weights.
        body: the model without its output layer, in the stage of ``step``.
        output: the output layer.
        text_key: that named the held-out text, for messages.
    """

    job_config: "JobConfig"
    step: int
    body: nn.Module
    output: nn.Module
    text_key: str

    @property
    def selecting(self) -> list[LighthouseConfig]:
        """Of the layers that run Lighthouse Attention in the stage at hand."""
        return [config for _, config in selecting_modules([self.body])]

    @torch.no_grad()
    def losses(
        self, tokens_BN: Tensor, labels_BP: Tensor, position_BP: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the predictions at some positions, fp32 (B, P), in nats.

        Args:
            tokens_BN: int64 (B, N).
            labels_BP: int64 (B, P), what follows each position.
            position_BP: int64 (B, P); None for all N.
        """
        with self._precision(tokens_BN.device.type):
            hidden_BPD = self.body(tokens_BN)
            if position_BP is not None:
                index_BPD = position_BP[..., None].expand(-1, -1, hidden_BPD.shape[-1])
                hidden_BPD = hidden_BPD.gather(1, index_BPD)
            losses = token_losses(
                self.output, hidden_BPD.flatten(0, 1), labels_BP.flatten(), _LOGIT_TOKENS
            )
        return losses.view_as(labels_BP)

    @torch.no_grad()
    def logits(self, tokens_N: Tensor, position_P: Tensor) -> Tensor:
        """fp32 (P, V) at some positions, int64 (P,), of one sequence, int64 (N,)."""
        with self._precision(tokens_N.device.type):
            found: Tensor = self.output(self.body(tokens_N[None])[0, position_P])
        return found.float()

    def tokenizer(self) -> BaseTokenizer:
        """That of the run."""
        build = get_train_spec(self.job_config.model.name).build_tokenizer_fn
        assert build is not None
        return build(self.job_config)

    def held_out(self, sequences: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Tokens and labels, each int64 (N,): the first sequences of the validation text, or all.

        Raises:
            ValueError: the run was not validated.
            Refusal: the text makes none.
        """
        if not self.job_config.validation.enable:  # else its default would be taken, from the hub
            folder = self.job_config.job.dump_folder
            raise ValueError(f"{folder} has no validation text: name held-out files with --text")
        # Not imported above: it takes seconds, and a wrong folder is found out before.
        from lighthouse.titan.data.loaders import build_validation_dataloader

        tokenizer, key = self.tokenizer(), self.text_key
        loader = build_validation_dataloader(1, 0, tokenizer, self.job_config, key=key)
        return [
            (tokens["input"][0].to(device), labels[0].to(device))
            for tokens, labels in itertools.islice(loader, sequences)
        ]

    def _precision(self, device: str) -> AbstractContextManager[object]:
        """That of the run's training."""
        mixed = self.job_config.training.mixed_precision_param == "bfloat16" and device != "cpu"
        return torch.autocast(device, torch.bfloat16) if mixed else nullcontext()


def load_run(
    folder: Path,
    step: int | None,
    device: torch.device,
    *overrides: str,
    text: str | Path | None = None,
) -> Trained:
    """The model that a run's folder has at a step.

    Under the run's number of chunks, so that one device computes what its ranks did together; and
    with validation at the length of the step's stage.

    Args:
        step: of a finished checkpoint; None for the last.
        overrides: trainer flags that win over the run's configuration.
        text: held-out files, of a command's ``--text``; None for the run's validation text.

    Raises:
        ValueError: no run, no such checkpoint, or flags that the trainer would refuse.
    """
    keep_quiet()
    of_run = job_of_run(folder)
    arguments = _arguments_of(folder)
    chunks = num_chunks(of_run.lighthouse, of_run.parallelism)
    for degree in ("context_parallel_degree", "tensor_parallel_degree"):
        arguments += [f"--parallelism.{degree}", "1"]  # a device has all tokens and all heads

    checkpoint, step = finished_checkpoint(folder / of_run.checkpoint.folder, step)
    length = Stages.of(of_run).at(step).seq_len
    arguments += ["--validation.seq_len", str(length), *overrides]
    job_config = ConfigManager(checked=False).parse_args(arguments)
    job_config.lighthouse.num_chunks = chunks
    text_key, validation = "validation.dataset_path", job_config.validation
    if text is not None:
        validation.enable, validation.dataset, validation.dataset_path = True, "local", str(text)
        text_key = "--text"
    model_args = model_args_of(job_config)
    model_args.update_from_config(job_config)
    weights = load_weights(checkpoint, model_args)
    model = _on_meta(model_args)
    apply_lighthouse(model, job_config)
    model.to_empty(device=device)
    with torch.no_grad():
        model.init_weights(buffer_device=device)
    model.load_state_dict(weights)
    set_stage([model], Stages.of(job_config).at(step))
    output, model.output = model.output, None  # without one, the forward pass ends before it
    return Trained(job_config, step, model.eval(), output, text_key)


def job_of_run(folder: Path) -> "JobConfig":
    """The configuration that a run's folder has.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if not (folder / RESOLVED_FILE).is_file():
        raise ValueError(f"{folder} has no {RESOLVED_FILE}: not the folder of a run")
    check_resolved(folder / RESOLVED_FILE)
    job_config = ConfigManager(checked=False).parse_args(_arguments_of(folder))
    import_custom(job_config)
    return job_config


def finished_checkpoint(checkpoints: Path, step: int | None) -> tuple[Path, int]:
    """The checkpoint of a step in a run's folder of them, and its step; None for the last.

    Raises:
        ValueError: there is none, or the last one is a link to what is not there.
    """
    if step is not None and is_finished(checkpoints / f"step-{step}"):
        return checkpoints / f"step-{step}", step
    steps = finished_steps(checkpoints)
    for later in all_steps(checkpoints) if step is None else ():
        link = checkpoints / f"step-{later}"
        if later > max(steps, default=-1) and not link.exists():
            raise ValueError(
                f"{link} is a link to nothing that is there: bring that back, or name another of "
                f"the finished ones with --step, {steps or 'of which there are none'}"
            )
    if not steps or step is not None:
        finished = f"; finished are {', '.join(map(str, steps))}" if steps else ""
        named = "" if step is None else f" of step {step}"
        raise ValueError(f"{checkpoints} has no finished checkpoint{named}{finished}")
    return checkpoints / f"step-{steps[-1]}", steps[-1]


def _arguments_of(folder: Path) -> list[str]:
    """The run's configuration, and the copies of the files that it points to."""
    assets = folder / ASSETS_FOLDER
    kept = ["--model.hf_assets_path", str(assets)] if assets.is_dir() else []
    return ["--job.config_file", str(folder / RESOLVED_FILE), *kept]


def _on_meta(model_args: TransformerModelArgs) -> Transformer:
    with torch.device("meta"):
        model = Transformer(model_args)
        apply_tied(model, model_args)
    return model


def load_weights(checkpoint: Path, model_args: TransformerModelArgs) -> dict[str, torch.Tensor]:
    """The model's weights, and nothing else, from a checkpoint of any sharding.

    Raises:
        ValueError: as :func:`weights_by_layer`.
    """
    layers = weights_by_layer(checkpoint, model_args)
    return {name: weight for layer in layers for name, weight in layer.items()}


def weights_by_layer(
    checkpoint: Path, model_args: TransformerModelArgs
) -> Iterator[dict[str, torch.Tensor]]:
    """The same a layer at a time, read when it is asked for; the ends of the model are layers too.

    Raises:
        ValueError: at once: no finished checkpoint, a damaged one, or one of another model.
    """
    stored = _stored_weights(checkpoint, model_args)
    check_content(checkpoint, stored)

    def read() -> Iterator[dict[str, torch.Tensor]]:
        for _, names in itertools.groupby(stored, key=lambda name: name.split(".")[:2]):
            layer = {name: torch.empty_like(stored[name], device="cpu") for name in names}
            load_state(layer, checkpoint, no_dist=True)
            yield layer

    return read()


def _stored_weights(checkpoint: Path, model_args: TransformerModelArgs) -> dict[str, torch.Tensor]:
    """Shapes and dtypes, on the meta device, in the model's order."""
    if not checkpoint.is_dir():
        raise ValueError(f"checkpoint {checkpoint} is not a folder: name a step-N folder of a run")
    if not os.path.lexists(checkpoint / METADATA):
        if is_finished(checkpoint):
            raise ValueError(
                f"checkpoint {checkpoint} has weights in Hugging Face's format alone, of "
                "checkpoint.last_save_in_hf = true; take an earlier step"
            )
        raise ValueError(
            f"checkpoint {checkpoint} has no .metadata: not a step-N folder, or its save was never "
            "finished; take another step"
        )
    check_whole(checkpoint)
    expected = _on_meta(model_args).state_dict()
    stored = {
        name: entry
        for name, entry in read_metadata(checkpoint).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    for name, weight in expected.items():
        if name not in stored:
            raise ValueError(f"checkpoint {checkpoint} has no {name}: the flavor does not fit")
        if stored[name].size != weight.shape:
            raise ValueError(
                f"checkpoint {checkpoint} has {name} as {tuple(stored[name].size)}, the flavor as "
                f"{tuple(weight.shape)}: the flavor does not fit"
            )
    deeper = [name for name in stored if name.startswith("layers.") and name not in expected]
    if deeper:
        raise ValueError(
            f"checkpoint {checkpoint} has {deeper[0]} and {len(deeper) - 1} more weights that the "
            "flavor lacks: the flavor does not fit"
        )
    return {
        name: torch.empty(weight.shape, dtype=stored[name].properties.dtype, device="meta")
        for name, weight in expected.items()
    }
