"""Statistics of the Lighthouse layers' selections, in the metrics of every so many steps."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lighthouse.config import LighthouseConfig
from lighthouse.scorers import level0_scores
from lighthouse.selection import select
from lighthouse.selection_statistics import refined_entries, statistics
from lighthouse.titan.llama3.layers import selecting_modules

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


class SelectionObserver:
    """Observes the first microbatch of a step, on step 1 and each ``selection_log_freq``-th one.

    A hook in front of each Lighthouse layer's block calls the block's attention once more, eagerly
    and without gradient, and takes queries, keys and values from it. The hook lies outside what is
    compiled and what activation checkpointing runs again, and is gone after one call. So steps that
    are not observed do nothing more, and training is the same to the bit, observed or not.

    An observed step costs one eager attention call per layer. Statistics stay on the device until
    :meth:`metrics` reads all layers' at once.
    """

    def __init__(
        self, model_parts: Iterable[Any], job_config: "JobConfig", parallel_dims: Any
    ) -> None:
        """
        Args:
            model_parts: the model after all wrapping, as it is called in training.
            job_config: torchtitan's ``JobConfig``.
            parallel_dims: torchtitan's ``ParallelDims``.
        """
        self._model_parts = list(model_parts)
        self._every = job_config.lighthouse.selection_log_freq
        self._data_mesh = parallel_dims.get_optional_mesh("loss")
        self._tensor_mesh = parallel_dims.get_optional_mesh("tp")
        self._hooks: dict[str, RemovableHandle] = {}
        self._statistics: dict[str, dict[str, Tensor]] = {}
        # Not kept in checkpoints: after a restart there is nothing to compare with at first.
        self._refined: dict[str, tuple[LighthouseConfig, Tensor]] = {}

    def begin_step(self, step: int) -> None:
        """To be called before the forward pass of each step, once the stage is set."""
        if not self._every or (step != 1 and step % self._every):
            return
        for part in self._model_parts:
            selecting = dict(selecting_modules([part]))
            for layer, block in part.layers.items():
                config = selecting.get(block.attention.inner_attention)
                if config is not None:
                    self._hooks[layer] = block.register_forward_pre_hook(
                        partial(self._observe, layer, config), with_kwargs=True
                    )

    @torch.no_grad()
    def _observe(
        self,
        layer: str,
        config: LighthouseConfig,
        block: Any,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._hooks.pop(layer).remove()
        x, *rotary = args
        module = block.attention.inner_attention
        qkv: list[Tensor] = []
        capture = module.register_forward_pre_hook(lambda _, inputs: qkv.extend(inputs))
        block.attention(
            block.attention_norm(x), *rotary, kwargs["attention_masks"], kwargs["positions"]
        )
        capture.remove()

        q, k, v = qkv
        query_scores, key_scores = map(self._of_all_heads, level0_scores(q, k, v, config))
        starts = kwargs["attention_masks"]
        if starts is not None:
            starts = module.documents.here(starts, query_scores.shape[-1])
        selection = select(
            *(query_scores, key_scores), config=config, impl=module.impl, document_starts=starts
        )
        refined = refined_entries(selection, config, query_scores.shape[-1])
        before, previous = self._refined.get(layer, (None, None))
        # That of a stage with other parameters, lengths or rows is nothing to compare with.
        if previous is not None and (before != config or previous.shape != refined.shape):
            previous = None
        self._statistics[layer] = statistics(query_scores, key_scores, refined, previous)
        self._refined[layer] = config, refined

    def _of_all_heads(self, scores_BKN: Tensor) -> Tensor:
        """Tensor parallelism shares the heads out."""
        if self._tensor_mesh is None:
            return scores_BKN
        shares = [torch.empty_like(scores_BKN) for _ in range(self._tensor_mesh.size())]
        dist.all_gather(shares, scores_BKN.contiguous(), group=self._tensor_mesh.get_group())
        return torch.cat(shares, dim=1)

    def metrics(self) -> dict[str, float]:
        """The observed step's statistics as metrics; after any other step nothing.

        They are means over the ranks with different tokens, each of which has its own quantiles. To
        be called by all ranks. This is the one place that waits for the device.
        """
        if not self._statistics:
            return {}
        names = [
            f"lighthouse/layer_{layer:0>2}/{name}"
            for layer, values in self._statistics.items()
            for name in values
        ]
        values = torch.stack([v for layer in self._statistics.values() for v in layer.values()])
        if self._data_mesh is not None:
            dist.all_reduce(values, group=self._data_mesh.get_group())
            values /= self._data_mesh.size()
        self._statistics.clear()
        return dict(zip(names, values.tolist(), strict=True))
