"""Sizes of a model, of its layout over GPUs, and of a step's work."""

from collections.abc import Sequence
from dataclasses import dataclass

from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.scorers import scoring_flops_per_token


@dataclass(frozen=True)
class Model:
    """Sizes of a Llama; ``tied``: its output layer has the embedding's weights."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    vocab_size: int
    tied: bool = False

    @property
    def kv_dim(self) -> int:
        return self.dim // self.heads * self.kv_heads

    @property
    def ffn_matrices(self) -> int:
        """Weights of a layer's feed-forward, a third each of w1, w2 and w3."""
        return 3 * self.dim * self.ffn_dim

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer that multiply each token."""
        return 2 * self.dim * (self.dim + self.kv_dim) + self.ffn_matrices

    @property
    def matrices(self) -> int:
        """Weights that multiply each token: all but the embedding and the norms."""
        return self.layers * self.layer_matrices + self.dim * self.vocab_size

    @property
    def norms(self) -> int:
        return (2 * self.layers + 1) * self.dim

    @property
    def parameters(self) -> int:
        embedding = 0 if self.tied else self.dim * self.vocab_size
        return self.matrices + embedding + self.norms


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism; their product is the number of GPUs."""

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1

    @property
    def batch(self) -> int:
        """Processes, or groups of them, that read different data."""
        return self.dp_replicate * self.dp_shard

    @property
    def fsdp(self) -> int:
        """Shards of each parameter: torchtitan shards over context parallel ranks too."""
        return self.dp_shard * self.cp

    @property
    def gpus(self) -> int:
        return self.batch * self.cp * self.tp * self.pp


@dataclass(frozen=True)
class Work:
    """One optimizer step.

    Attributes:
        seq_len: N, tokens of a sequence, over all context parallel ranks.
        attention: each layer's parameters, ``None`` for a dense layer.
        local_batch: sequences of a micro-batch.
        accumulation: micro-batches of a step.
        checkpointing: ``"none"``, ``"op"`` (selective), ``"full"``, or every how many layers one is
            checkpointed fully, as a numeral.
        loss_chunk_tokens: tokens whose logits exist at a time; 0 for all.
        ffn_chunk_tokens: tokens whose SwiGLU exists at a time; 0 for all.
        offload: inputs of fully checkpointed blocks are in host memory until backward.
        element_bytes: of activations and of parameters in use.
        residual_bytes: of the residual stream.
        reshard: parameters are gathered again for backward.
        float8: products of layers are in float8.
        pairs_left: share of a causal sequence's pairs that its documents leave; None where
            documents are not told apart.
    """

    seq_len: int
    attention: Sequence[LighthouseConfig | WindowConfig | None]
    local_batch: int = 1
    accumulation: int = 1
    checkpointing: str = "none"
    loss_chunk_tokens: int = 0
    ffn_chunk_tokens: int = 0
    offload: bool = False
    element_bytes: int = 2
    residual_bytes: int = 2
    reshard: bool = True
    float8: bool = False
    pairs_left: float | None = None

    def square(self, config: LighthouseConfig | WindowConfig | None) -> float:
        """What a layer's attention has in the place of N².

        Of its rows squared documents leave a share; a window has its own, if they leave as much.
        """
        attended = rows(config, self.seq_len)
        left = attended**2 * (1.0 if self.pairs_left is None else self.pairs_left)
        if isinstance(config, WindowConfig):
            return min(window_square(config.window, self.seq_len), left)
        return left

    @property
    def checkpointed(self) -> float:
        """Share of layers whose forward runs again in backward."""
        if self.checkpointing in ("none", "op"):
            return 0.0
        return 1.0 if self.checkpointing == "full" else 1 / int(self.checkpointing)


def rows(config: LighthouseConfig | WindowConfig | None, seq_len: int) -> int:
    """Rows that a layer's attention has: of its sub-sequence, or all tokens without one."""
    return config.gathered_len(seq_len) if isinstance(config, LighthouseConfig) else seq_len


def window_square(window: int, seq_len: int) -> int:
    """What N² is of dense attention, whose causal mask is not discounted: twice a window's pairs,
    less ``window``."""
    return seq_len**2 - max(0, seq_len - window) ** 2


def flops_per_token(model: Model, work: Work) -> int:
    """FLOPs per token and step by torchtitan's conventions.

    6 per weight, 12 * dim * rows per token of attention: forward and backward, no discount for the
    causal mask, no recomputation; scoring once. Windows and documents count as the pairs that they
    are of N². The embedding is no product, norms count as upstream counts them. The trainer logs
    the same (``lighthouse/titan/llama3/flops.py``).
    """
    weights = model.matrices + model.norms
    head_dim = model.dim // model.heads
    squares = sum(work.square(config) for config in work.attention)
    scoring = sum(
        scoring_flops_per_token(config, work.seq_len, model.heads, head_dim)
        for config in work.attention
        if isinstance(config, LighthouseConfig)
    )
    return round(6 * weights + 12 * model.dim * squares / work.seq_len + scoring)
