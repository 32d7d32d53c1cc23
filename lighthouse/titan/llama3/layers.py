"""The kinds of attention in the layers of torchtitan's Llama-3, and the stage they are in."""

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lighthouse.attention import LighthouseAttention
from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.documents import Documents
from lighthouse.titan.config.section import LayerConfig, layer_configs, num_chunks
from lighthouse.titan.config.stages import Stage, Stages

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


class StagedAttention(LighthouseAttention):
    """A layer's attention, which may be another one in each stage.

    Attributes:
        by_stage: what it is in each, on this rank; None is dense.
    """

    def __init__(
        self,
        by_stage: Sequence[LayerConfig],
        otherwise: LighthouseConfig | WindowConfig,
        inner: nn.Module,
        impl: str,
    ) -> None:
        """``otherwise``: the parameters to show before a stage sets its own."""
        super().__init__(next((c for c in by_stage if c is not None), otherwise), inner, impl)
        self.by_stage = tuple(by_stage)

    def begin_stage(self, number: int) -> None:
        """Become what the stage of this number, from 1, says."""
        config = self.by_stage[number - 1]
        self.dense = config is None
        if config is not None:
            self.config = config


class DenseInDocuments(nn.Module):
    """Around the attention of a layer that is always dense, to end it where a document ends.

    Attributes:
        documents: as of :class:`LighthouseAttention`.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.documents = Documents()

    def forward(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        *,
        enable_gqa: bool = False,
        document_starts: Tensor | None = None,
    ) -> Tensor:
        """As :class:`LighthouseAttention`; without documents ``inner``."""
        if document_starts is None:
            return self.inner(q_BHND, k_BHND, v_BHND, enable_gqa=enable_gqa)
        return self.documents.attend(q_BHND, k_BHND, v_BHND, document_starts)


def _of_a_rank(config: LayerConfig, ranks: int) -> LayerConfig:
    return config.local(ranks) if isinstance(config, LighthouseConfig) else config


def apply_lighthouse(model: Any, job_config: "JobConfig") -> None:
    """Wrap the attention of every layer that is not always dense, in a just built Transformer.

    The wrapped dense module stays inside, so context parallelism and the switch to dense find it,
    and parameter names stay those of the dense model. Under context parallelism a rank's tokens are
    whole chunks: it pools, selects and scatters by itself, and the ring runs over the sub-sequence
    as it does over the tokens of a dense layer. What windows and documents need there
    :func:`lighthouse.titan.distributed.exchange.share_sequences` adds.
    """
    section, parallelism = job_config.lighthouse, job_config.parallelism
    ranks = parallelism.context_parallel_degree
    stages, count = Stages.of(job_config), len(model.layers)
    by_layer = zip(*(stage.layers(job_config, count) for stage in stages), strict=True)
    # A run whose only stage is dense still knows what its layers would be.
    unused: Sequence[LayerConfig] = [None] * count
    if section.enable and not stages.listed:
        chunks = num_chunks(section, parallelism)
        unused = layer_configs(section, count, job_config.training.seq_len, chunks)
    for block, by_stage, otherwise in zip(model.layers.values(), by_layer, unused, strict=True):
        local = [_of_a_rank(config, ranks) for config in (*by_stage, otherwise)]
        shown = next((config for config in local if config is not None), None)
        inner = block.attention.inner_attention
        if shown is not None:
            attention = StagedAttention(local[:-1], shown, inner, section.impl)
            block.attention.inner_attention = attention
        elif job_config.training.document_mask:
            block.attention.inner_attention = DenseInDocuments(inner)


def dense_module(inner_attention: nn.Module) -> nn.Module:
    """The dense attention module of a layer, wrapped or not."""
    if isinstance(inner_attention, LighthouseAttention | DenseInDocuments):
        return inner_attention.inner
    return inner_attention


def wrapped_modules(model_parts: Iterable[nn.Module]) -> list[LighthouseAttention]:
    """Attention modules of the layers that are not always dense, in any stage."""
    return [m for part in model_parts for m in part.modules() if isinstance(m, LighthouseAttention)]


def selecting_modules(
    model_parts: Iterable[nn.Module],
) -> list[tuple[LighthouseAttention, LighthouseConfig]]:
    """Those that run Lighthouse Attention now, in some heads at least, and their parameters."""
    return [
        (module, module.config)
        for module in wrapped_modules(model_parts)
        if not module.dense and isinstance(module.config, LighthouseConfig)
    ]


def set_stage(model_parts: Iterable[nn.Module], stage: Stage) -> None:
    """Put all layers into a stage. Nothing but the attention call changes."""
    for module in wrapped_modules(model_parts):
        if isinstance(module, StagedAttention):
            module.begin_stage(stage.number)


@contextlib.contextmanager
def dense_stage(model_parts: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the context all layers are dense; afterwards they are as they were."""
    before = [(module, module.dense) for module in wrapped_modules(model_parts)]
    try:
        for module, _ in before:
            module.dense = True
        yield
    finally:
        for module, dense in before:
            module.dense = dense


def stage_metrics(model_parts: Iterable[nn.Module]) -> dict[str, int]:
    """How many layers run Lighthouse Attention now; nothing for a model that never does."""
    parts = list(model_parts)
    if not any(isinstance(m.config, LighthouseConfig) for m in wrapped_modules(parts)):
        return {}
    return {"lighthouse/active_layers": len(selecting_modules(parts))}


def operators_to_save() -> set[Any]:
    """Operators whose results selective activation checkpointing keeps: selections and attention.

    A selection is small, and the only step of Lighthouse Attention whose time is not in moving
    tensors. Attention in a window or in documents is kept as dense attention is. Where there is no
    Triton there is no operator that selects.
    """
    operators = {torch.ops.lighthouse.window.default, torch.ops.lighthouse.documents.default}
    if importlib.util.find_spec("triton") is not None:
        import lighthouse.ops.triton  # noqa: F401  (registers the operators)

        operators.add(torch.ops.lighthouse.select.default)
    return operators
