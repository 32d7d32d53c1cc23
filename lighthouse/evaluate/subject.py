"""The model that is evaluated: of a run's folder, or of Hugging Face's."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lighthouse.runs.files import read_object

Spans = list[tuple[int, int]]


# What transformers raises of a folder that is damaged, or needs a package that is not there.
_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, ImportError),
    *(RuntimeError, SafetensorError, pickle.UnpicklingError),
)


@dataclass(frozen=True)
class Subject:
    """A model under dense attention, and its tokenizer.

    Attributes:
        name: for people.
        step: of the weights; None where they are of no run.
        longest: tokens of a sequence, at most.
        device: where the model is.
        encode: token ids of a text with the bos in front that training puts there, and the
            (start, end) of each in its characters.
        logits: fp32 (P, V) at the positions (P,) of one sequence of tokens (N,).
        losses: cross-entropy fp32 (N,) of the predictions of labels (N,) from tokens (N,), nats.
        end: token id behind a document of held-out text, where it is not a run that packs it.
    """

    name: str
    step: int | None
    longest: int
    device: torch.device
    encode: Callable[[str], tuple[list[int], Spans]]
    logits: Callable[[Tensor, Tensor], Tensor]
    losses: Callable[[Tensor, Tensor], Tensor]
    end: int | None = None


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model in Hugging Face's format."""
    return (folder / "config.json").is_file()


def of_hugging_face(folder: Path, device: torch.device) -> Subject:
    """A causal model that transformers loads, in bfloat16 on a GPU.

    Raises:
        ValueError: transformers is not installed, or can't load it, or would run code for it.
    """
    # Not imported above: a wrong folder is found out before.
    from lighthouse.titan.llama3.chunked_loss import token_losses

    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError:
        raise ValueError(
            f"{folder} is a Hugging Face folder: pip install 'lighthouse-attention[evaluate]'"
        ) from None
    if (key := _fetched_code(read_object(folder / "config.json"))) is not None:
        raise ValueError(
            f"{folder}: {key} in its config.json names code to be fetched and run; take it out "
            "there, or evaluate another model"
        )
    try:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False
        )
        model = model.to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except _UNREADABLE as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{folder}: its auto_map names code of its own, which is not run; evaluate a model "
                "that transformers has itself"
            ) from error
        raise ValueError(f"{folder}: {error}") from error

    def encode(text: str) -> tuple[list[int], Spans]:
        encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
        spans = [tuple(span) for span in encoded["offset_mapping"]]
        return _begun(encoded["input_ids"], spans, tokenizer.bos_token_id)

    @torch.no_grad()
    def hidden(tokens_N: Tensor) -> Tensor:
        states: Tensor = model.model(tokens_N[None]).last_hidden_state[0]
        return states

    @torch.no_grad()
    def logits(tokens_N: Tensor, position_P: Tensor) -> Tensor:
        found: Tensor = model.lm_head(hidden(tokens_N)[position_P]).float()
        return found

    @torch.no_grad()
    def losses(tokens_N: Tensor, labels_N: Tensor) -> Tensor:
        return token_losses(model.lm_head, hidden(tokens_N), labels_N, chunk_tokens=8192)

    longest = model.config.max_position_embeddings
    end = tokenizer.eos_token_id
    return Subject(folder.name, None, longest, device, encode, logits, losses, end)


def _begun(ids: list[int], spans: Spans, bos: int | None) -> tuple[list[int], Spans]:
    """A text as training begins it, whether its tokenizer puts the bos there or not."""
    if bos is None or ids[:1] == [bos]:
        return ids, spans
    return [bos, *ids], [(0, 0), *spans]


def _fetched_code(config: Any) -> str | None:
    """The key of a ``config.json`` by which transformers would fetch a kernel, and run it."""
    if isinstance(config, list):
        return next(filter(None, map(_fetched_code, config)), None)
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        # A path, as of a repository, is the name of no implementation that transformers has.
        if key.endswith(("_implementation", "_implementation_internal")) and "/" in str(value):
            return str(key)
    return _fetched_code(list(config.values()))


def of_run(
    folder: Path,
    step: int | None,
    device: torch.device,
    *overrides: str,
    text: Path | None = None,
) -> tuple[Subject, Callable[[int, torch.device], list[tuple[Tensor, Tensor]]]]:
    """The model of a run's folder at a step, dense in every layer, and its held-out text.

    Raises:
        ValueError: as :func:`lighthouse.titan.trained.load_run`.
    """
    # Not imported above: a Hugging Face folder needs no trainer.
    from lighthouse.titan.config.stages import Stages
    from lighthouse.titan.data.tokenizer import ByteTokenizer
    from lighthouse.titan.llama3.layers import wrapped_modules
    from lighthouse.titan.trained import load_run

    # What is served has no borders between documents, and so no padding before them.
    run = load_run(folder, step, device, "--training.no-document_mask", *overrides, text=text)
    for module in wrapped_modules([run.body]):
        module.dense = True
    tokenizer = run.tokenizer()

    def encode(text: str) -> tuple[list[int], Spans]:
        if isinstance(tokenizer, ByteTokenizer):
            ids = tokenizer.encode(text, add_bos=True, add_eos=False)
            return ids, [(0, 0), *((i, i + 1) for i in range(len(text)))]
        encoded = tokenizer.tokenizer.encode(text)
        return _begun(encoded.ids, encoded.offsets, tokenizer.bos_id)

    def losses(tokens_N: Tensor, labels_N: Tensor) -> Tensor:
        return run.losses(tokens_N[None], labels_N[None])[0]

    longest = Stages.of(run.job_config).longest
    name = f"{folder.resolve().name}, step {run.step}"
    subject = Subject(name, run.step, longest, device, encode, run.logits, losses)
    return subject, run.held_out
