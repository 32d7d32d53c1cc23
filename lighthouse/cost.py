"""What a training step costs: seconds and bytes on one GPU, from sizes and measured rates.

Every part is work over a rate. The work is counted here; the rates of each device are data, fitted
to measurements by ``benchmarks/fit_cost.py`` and kept in ``cost_rates.json``. Blocks are taken to
be compiled, activations and parameters in use to be bfloat16 unless :class:`Work` says otherwise.

Under context parallelism of degree W a rank has N / W tokens and S / W rows of each Lighthouse
layer's sub-sequence: all but attention is local, attention is a ring over W ranks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lighthouse.config import LighthouseConfig
from lighthouse.scorers import scoring_flops_per_token

RATES_FILE = Path(__file__).with_name("cost_rates.json")
GIB = 2**30

BACKWARD_MATMULS = 2.5  # of the attention kernel against its forward: 5 matrix products to 2
ELEMENTWISE_BACKWARD = 2.0  # gradients read and write about twice what forward does
OPTIMIZER_BYTES = 36  # norm of the gradient, then AdamW on fp32 state, per parameter
STATE_BYTES = 16  # fp32 parameter, gradient and two moments
LOSS_BYTES = 20  # passes over fp32 logits and their gradient, per logit
LOGIT_BYTES = 10  # logits, their fp32 copy and its gradient, per logit
MERGE_BYTES = 12  # a ring step merges its output into an fp32 one, per element


@dataclass(frozen=True)
class Model:
    """Sizes of a Llama."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int
    vocab_size: int

    @property
    def kv_dim(self) -> int:
        return self.dim // self.heads * self.kv_heads

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer that multiply each token."""
        return 2 * self.dim * (self.dim + self.kv_dim) + 3 * self.dim * self.ffn_dim

    @property
    def matrices(self) -> int:
        """Weights that multiply each token: all but the embedding and the norms."""
        return self.layers * self.layer_matrices + self.dim * self.vocab_size

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.dim
        return self.matrices + self.dim * self.vocab_size + norms


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
        attention: each layer's Lighthouse parameters, ``None`` for a dense layer.
        local_batch: sequences of a micro-batch.
        accumulation: micro-batches of a step.
        checkpointing: ``"none"``, ``"op"`` (selective), ``"full"``, or every how many layers one is
            checkpointed fully, as a numeral.
        loss_chunk_tokens: tokens whose logits exist at a time; 0 for all.
        element_bytes: of activations and of parameters in use.
        residual_bytes: of the residual stream.
        reshard: parameters are gathered again for backward.
    """

    seq_len: int
    attention: Sequence[LighthouseConfig | None]
    local_batch: int = 1
    accumulation: int = 1
    checkpointing: str = "none"
    loss_chunk_tokens: int = 0
    element_bytes: int = 2
    residual_bytes: int = 2
    reshard: bool = True


@dataclass(frozen=True)
class Rates:
    """What a device does: per second in FLOPs and bytes, times in seconds, memory in bytes.

    Attributes:
        memory: bytes of the device that torch can have.
        matmul: FLOP/s of the linear layers.
        elementwise: bytes/s of norms, rotary embedding, activation and loss in compiled blocks.
        copy: bytes/s of the optimizer and of merging in the ring.
        attention_forward, attention_backward: FLOP/s of the causal kernel, the half under the mask
            not counted.
        attention_latency: seconds of a call of it beside that.
        around: bytes/s of summarize, gather and scatter, each byte counted once.
        select: seconds of a selection.
        dilated: FLOP/s of the ``dilated`` scorer's attention.
        gla: seconds per token and channel of the ``gla`` scorer.
        nvlink, network: bytes/s a GPU sends within a node and between nodes.
        node: GPUs of a node.
        activations: bytes held in fact over bytes counted, by checkpointing mode.
    """

    memory: float
    matmul: float
    elementwise: float
    copy: float
    attention_forward: float
    attention_backward: float
    attention_latency: float
    around: float
    select: float
    dilated: float
    gla: float
    nvlink: float
    network: float
    node: int
    activations: dict[str, float]


@dataclass(frozen=True)
class Cost:
    """Of one step on one GPU: seconds and bytes by part."""

    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def peak_bytes(self) -> float:
        return sum(self.memory.values())


@cache
def _rates_file() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RATES_FILE.read_text(encoding="utf-8"))
    return content["devices"]


def devices() -> list[str]:
    """Devices whose rates are known."""
    return list(_rates_file())


def load_rates(device: str) -> Rates:
    """The rates of a device, by its short name.

    Raises:
        ValueError: for a device without rates.
    """
    if device not in _rates_file():
        raise ValueError(f"device = {device!r}: must be one of {', '.join(devices())}")
    return Rates(**_rates_file()[device])


def flops_per_token(model: Model, work: Work) -> int:
    """FLOPs per token and step by torchtitan's conventions.

    6 per weight, 12 * dim * rows per token of attention: forward and backward, no discount for the
    causal mask, no recomputation; scoring once. The embedding is no product, norms count as
    upstream counts them. What the trainer logs (``lighthouse/titan/flops.py``) is the same number.
    """
    weights = model.parameters - model.dim * model.vocab_size
    rows = sum(_rows(config, work.seq_len) ** 2 / work.seq_len for config in work.attention)
    head_dim = model.dim // model.heads
    scoring = sum(
        scoring_flops_per_token(config, work.seq_len, model.heads, head_dim)
        for config in work.attention
        if config is not None
    )
    return round(6 * weights + 12 * model.dim * rows + scoring)


def cost(model: Model, layout: Layout, work: Work, rates: Rates) -> Cost:
    """Seconds and bytes of a step on each GPU, by part."""
    return Cost(_seconds(model, layout, work, rates), _memory(model, layout, work, rates))


def _rows(config: LighthouseConfig | None, seq_len: int) -> int:
    return seq_len if config is None else config.gathered_len(seq_len)


def _checkpointed(work: Work) -> float:
    """Share of layers whose forward runs again in backward."""
    if work.checkpointing in ("none", "op"):
        return 0.0
    return 1.0 if work.checkpointing == "full" else 1 / int(work.checkpointing)


def _seconds(model: Model, layout: Layout, work: Work, rates: Rates) -> dict[str, float]:
    tokens = work.local_batch * work.seq_len / layout.cp / layout.tp  # a GPU's share
    again = _checkpointed(work)
    selective = work.checkpointing == "op"

    matmul = 6 * model.matrices + 2 * again * model.layers * model.layer_matrices
    if selective:  # of wq, wk, wv, wo, w1, w3, w2 every second is not kept: wk, wo, w3
        unkept = model.dim * (model.kv_dim + model.dim + model.ffn_dim)
        matmul += 2 * model.layers * unkept

    passes = 1 + ELEMENTWISE_BACKWARD + (1.0 if selective else again)
    elementwise = passes * model.layers * _elementwise_bytes(model, work)
    loss = LOSS_BYTES * model.vocab_size

    parts = {
        "matmuls": tokens * matmul / rates.matmul,
        "elementwise": tokens * elementwise / rates.elementwise,
        "dense attention": 0.0,
        "lighthouse attention": 0.0,
        "around lighthouse": 0.0,
        "scorer": 0.0,
        "loss": tokens * loss / rates.elementwise,
        "ring": 0.0,
    }
    for config in work.attention:
        rows = _rows(config, work.seq_len)
        inner, ring = _attention_seconds(model, layout, work, rates, rows, again)
        parts["ring"] += ring
        if config is None:
            parts["dense attention"] += inner
            continue
        parts["lighthouse attention"] += inner
        passes_again = 1.0 if selective else again
        moved = work.local_batch / layout.cp / layout.tp * work.element_bytes
        forward, backward = elements_around(model, config, work.seq_len)
        parts["around lighthouse"] += (
            moved * ((1 + passes_again) * forward + backward) / rates.around
            + (1 + again) * work.local_batch * rates.select
        )
        scorer = _scorer_seconds(model, config, work.seq_len, rates) / layout.cp / layout.tp
        # Selective checkpointing keeps the selection, so nothing asks for scores again.
        parts["scorer"] += (1 + again) * work.local_batch * scorer

    parts["tensor parallel"] = _tensor_parallel_seconds(model, layout, work, rates)
    # Gathering and reducing run beside the computation; only what is longer shows.
    busy = sum(parts.values())
    parts["fsdp"] = max(0.0, _fsdp_seconds(model, layout, work, rates) - busy)

    step = {name: work.accumulation * seconds for name, seconds in parts.items()}
    shard = model.parameters / layout.fsdp / layout.tp
    step["optimizer"] = OPTIMIZER_BYTES * shard / rates.copy
    return step


def _elementwise_bytes(model: Model, work: Work) -> int:
    """Forward, per token and layer: two norms, rotary embedding, SwiGLU, two residual sums."""
    element, residual = work.element_bytes, work.residual_bytes
    norms = 2 * model.dim * (residual + element)
    rotary = 2 * element * (model.dim + model.kv_dim)
    swiglu = 3 * element * model.ffn_dim
    sums = 2 * model.dim * (2 * residual + element)
    return norms + rotary + swiglu + sums


def _attention_seconds(
    model: Model, layout: Layout, work: Work, rates: Rates, rows: int, again: float
) -> tuple[float, float]:
    """The kernel, and what the ring adds to it."""
    flops = 2 * rows**2 * model.dim * work.local_batch / layout.cp / layout.tp
    latency = layout.cp * rates.attention_latency
    forward = flops / rates.attention_forward + latency
    backward = BACKWARD_MATMULS * flops / rates.attention_backward + latency
    kernel = (1 + again) * forward + backward
    if layout.cp == 1:
        return kernel, 0.0
    # Forward gathers all keys and values, and keeps them for backward unless it runs again. In
    # backward the fp32 gradients of each rank's go round the whole ring.
    keys_values = 2 * rows * model.kv_dim * work.local_batch / layout.tp
    others = (layout.cp - 1) / layout.cp
    travels = keys_values * ((1 + again) * others * work.element_bytes + 4)
    # They travel beside attention, and take from it what they would take alone: on H200s the two
    # together last as long as one after the other (benchmarks/ring.py).
    exposed = travels / _link(rates, layout.cp * layout.tp)
    merged = MERGE_BYTES * rows * model.dim * work.local_batch / layout.tp / rates.copy
    return kernel, exposed + (2 + again) * merged


def elements_around(model: Model, config: LighthouseConfig, seq_len: int) -> tuple[int, int]:
    """Elements moved around the inner attention, forward and backward, each once.

    Forward: q, k, v read, the refined windows read again, the sub-sequence written, its output
    read, the output written. Backward: the output's gradient read, its rows written, the gradients
    of the sub-sequence read, those of q, k, v written.
    """
    rows = config.gathered_len(seq_len)
    window = sum(config.pooling_factor**level for level in range(1, config.num_levels))
    row, out = model.dim + 2 * model.kv_dim, model.dim
    forward = (seq_len + config.topk * window + rows) * row + (seq_len + rows) * out
    return forward, (seq_len + rows) * (out + row)


def _scorer_seconds(model: Model, config: LighthouseConfig, seq_len: int, rates: Rates) -> float:
    """Of one layer's whole sequence; norms come with summarize and cost nothing."""
    if config.scorer == "dilated":
        # Two causal passes over ``dilation`` subsequences of each chunk.
        subsequence = seq_len / config.num_chunks / config.dilation
        pieces = config.num_chunks * config.dilation
        return 2 * pieces * 2 * subsequence**2 * model.dim / rates.dilated
    if config.scorer == "gla":
        return seq_len * model.dim * rates.gla
    return 0.0


def _tensor_parallel_seconds(model: Model, layout: Layout, work: Work, rates: Rates) -> float:
    """Four gathers or reductions of a layer's activations each way, not hidden by other work."""
    if layout.tp == 1:
        return 0.0
    tokens = work.local_batch * work.seq_len / layout.cp
    sent = (layout.tp - 1) / layout.tp * tokens * model.dim * work.element_bytes
    again = 1.0 if work.checkpointing == "op" else _checkpointed(work)
    return (2 + again) * 4 * model.layers * sent / _link(rates, layout.tp)


def _fsdp_seconds(model: Model, layout: Layout, work: Work, rates: Rates) -> float:
    """Gathers of the parameters, the reduction of fp32 gradients, and that of replicas."""
    weights = model.parameters / layout.tp
    link = _link(rates, layout.fsdp * layout.tp)
    gathers = (2 if work.reshard else 1) * work.element_bytes
    sharded = (layout.fsdp - 1) / layout.fsdp * weights * (gathers + 4) / link
    copies = 2 * (layout.dp_replicate - 1) / layout.dp_replicate
    return sharded + copies * weights / layout.fsdp * 4 / _link(rates, layout.gpus)


def _link(rates: Rates, ranks: int) -> float:
    return rates.nvlink if ranks <= rates.node else rates.network


def _memory(model: Model, layout: Layout, work: Work, rates: Rates) -> dict[str, float]:
    tokens = work.local_batch * work.seq_len / layout.cp / layout.tp
    kept = [
        _kept_bytes(model, work, config) + _kept_by_ring(model, layout, work, config)
        for config in work.attention
    ]
    working = max(kept)  # a layer that runs again in backward
    outside = work.residual_bytes * model.dim
    if work.checkpointing == "none":
        activations = sum(kept)
    elif work.checkpointing == "op":
        activations = working + sum(
            _kept_by_op(model, layout, work, config) + _kept_by_ring(model, layout, work, config)
            for config in work.attention
        )
    else:
        share = _checkpointed(work)
        activations = working + share * model.layers * outside + (1 - share) * sum(kept)
    mode = work.checkpointing if work.checkpointing in rates.activations else "full"

    all_tokens = work.local_batch * work.seq_len / layout.cp
    at_a_time = min(work.loss_chunk_tokens or all_tokens, all_tokens)
    # Two layers gathered and one's gradient, or the embedding and output with theirs.
    layer = model.layer_matrices * (2 * work.element_bytes + 4)
    ends = 2 * model.dim * model.vocab_size * (work.element_bytes + 4)
    return {
        "parameters and optimizer": STATE_BYTES * model.parameters / layout.fsdp / layout.tp,
        "gathered parameters": (layer + ends) / layout.tp,
        "activations": rates.activations[mode] * tokens * (activations + 3 * outside),
        "logits": LOGIT_BYTES * at_a_time * model.vocab_size / layout.tp,
    }


def _kept_bytes(model: Model, work: Work, config: LighthouseConfig | None) -> float:
    """Kept for backward, per token: block input and sum, norms, SwiGLU, attention in and out.

    A Lighthouse layer keeps the rows of its sub-sequence instead of q, k and v of each token.
    """
    element = work.element_bytes
    body = 2 * model.dim * (work.residual_bytes + element)
    body += element * (model.dim + 3 * model.ffn_dim)
    qkv = model.dim + 2 * model.kv_dim
    if config is None:
        return body + element * qkv
    rows = config.gathered_len(work.seq_len) / work.seq_len
    return body + element * rows * (qkv + model.dim)


def _kept_by_ring(
    model: Model, layout: Layout, work: Work, config: LighthouseConfig | None
) -> float:
    """The gathered keys and values of all ranks, per token of one."""
    if layout.cp == 1:
        return 0.0
    rows_per_token = layout.cp * _rows(config, work.seq_len) / work.seq_len
    return work.element_bytes * rows_per_token * 2 * model.kv_dim


def _kept_by_op(model: Model, layout: Layout, work: Work, config: LighthouseConfig | None) -> float:
    """The block's input, wq, wv, w1 and the attention kernel's outputs, one a piece, per token."""
    share = layout.cp * _rows(config, work.seq_len) / work.seq_len
    columns = model.dim + model.kv_dim + model.ffn_dim + share * model.dim
    return work.residual_bytes * model.dim + work.element_bytes * columns
