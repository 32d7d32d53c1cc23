"""Lighthouse Attention in the layers of torchtitan's Llama-3, and the stage they are in."""

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lighthouse.attention import LighthouseAttention
from lighthouse.titan.config.section import layer_configs, num_chunks
from lighthouse.titan.config.stages import Stage

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


def apply_lighthouse(model: Any, job_config: "JobConfig") -> None:
    """Wrap the attention of every Lighthouse layer of a just built (meta device) Transformer.

    The wrapped dense module stays inside, so context parallelism and the switch to dense find it,
    and parameter names stay those of the dense model. Under context parallelism a rank's tokens are
    whole chunks: it pools, selects and scatters by itself, and the ring runs over the sub-sequence
    as it does over the tokens of a dense layer.
    """
    section = job_config.lighthouse
    if not section.enable:
        return
    parallelism = job_config.parallelism
    configs = layer_configs(
        section,
        len(model.layers),
        job_config.training.seq_len,
        num_chunks(section, parallelism),
    )
    for block, config in zip(model.layers.values(), configs, strict=True):
        if config is not None:
            local = config.local(parallelism.context_parallel_degree)
            inner = block.attention.inner_attention
            block.attention.inner_attention = LighthouseAttention(local, inner, section.impl)


def dense_module(inner_attention: nn.Module) -> nn.Module:
    """The dense attention module of a layer, wrapped or not."""
    if isinstance(inner_attention, LighthouseAttention):
        return inner_attention.inner
    return inner_attention


def lighthouse_modules(model_parts: Iterable[nn.Module]) -> list[LighthouseAttention]:
    """The Lighthouse layers' attention modules, in either stage."""
    return [m for part in model_parts for m in part.modules() if isinstance(m, LighthouseAttention)]


def set_stage(model_parts: Iterable[nn.Module], stage: Stage) -> None:
    """Put all layers into a stage. Nothing but the attention call changes."""
    for module in lighthouse_modules(model_parts):
        module.dense = stage.dense


@contextlib.contextmanager
def dense_stage(modules: Iterable[LighthouseAttention]) -> Iterator[None]:
    """Inside the context these layers are dense; afterwards they are as they were."""
    before = [(module, module.dense) for module in modules]
    try:
        for module, _ in before:
            module.dense = True
        yield
    finally:
        for module, dense in before:
            module.dense = dense


def stage_metrics(model_parts: Iterable[nn.Module]) -> dict[str, int]:
    """How many layers run Lighthouse Attention now; nothing for a model that never does."""
    modules = lighthouse_modules(model_parts)
    if not modules:
        return {}
    return {"lighthouse/active_layers": sum(not module.dense for module in modules)}


def operators_to_save() -> set[Any]:
    """Operators whose results selective activation checkpointing keeps: the selection.

    It is small, and the only step whose time is not in moving tensors. Empty where there is no
    Triton, and so no such operator.
    """
    if importlib.util.find_spec("triton") is None:
        return set()
    import lighthouse.ops.triton  # noqa: F401  (registers the operators)

    return {torch.ops.lighthouse.select.default}
