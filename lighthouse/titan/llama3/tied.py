"""An output layer that has the embedding's weights.

There is one parameter, which the embedding owns, and the output layer asks the embedding to apply
it. So whatever gathers and shards the parameters of a module when the module is called, as FSDP
does, need not know of it, and a checkpoint has the weights once.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class TiedEmbedding(nn.Embedding):
    """An embedding that may be asked for the output as well."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight = embedding.weight

    def forward(self, x: Tensor, apply: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Vectors (..., D) of tokens int64 (...); or ``apply(x, weight)``, with weight (V, D)."""
        return super().forward(x) if apply is None else apply(x, self.weight)


class TiedOutput(nn.Module):
    """Without parameters of its own.

    Attributes:
        loss: of hidden states (B, N, D), the weight (V, D) and labels int64 (B, N), a scalar; None
            where the output layer gives logits alone.
    """

    def __init__(self, embedding: TiedEmbedding) -> None:
        super().__init__()
        self._embedding = [embedding]  # in a list, so that it is no submodule
        self.loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """The embedding's, (V, D)."""
        return self._embedding[0].weight

    def forward(self, hidden_BND: Tensor, labels_BN: Tensor | None = None) -> Tensor:
        """Logits (B, N, V), or with labels int64 (B, N) their loss, a scalar."""

        def apply(hidden_BND: Tensor, weight_VD: Tensor) -> Tensor:
            if labels_BN is None:
                return F.linear(hidden_BND, weight_VD)
            assert self.loss is not None
            return self.loss(hidden_BND, weight_VD, labels_BN)

        applied: Tensor = self._embedding[0](hidden_BND, apply)
        return applied


def apply_tied(model: Any, model_args: Any) -> None:
    """Let a just built (meta device) Transformer share the weights, if its arguments say so."""
    if model_args.tied:
        model.tok_embeddings = TiedEmbedding(model.tok_embeddings)
        model.output = TiedOutput(model.tok_embeddings)
