"""Seconds of a step on one GPU: work over rates, part by part."""

import math

from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.cost.memory import host_memory
from lighthouse.cost.rates import Rates
from lighthouse.cost.sizes import Layout, Model, Work, rows

BACKWARD_MATMULS = 2.5  # of the attention kernel against its forward: 5 matrix products to 2
ELEMENTWISE_BACKWARD = 2.0  # gradients read and write about twice what forward does
OPTIMIZER_BYTES = 36  # norm of the gradient, then AdamW on fp32 state, per parameter
LOSS_BYTES = 20  # passes over fp32 logits and their gradient, per logit
MERGE_BYTES = 12  # a ring step merges its output into an fp32 one, per element
SUM_BYTES = 10  # a chunk's gradient of a weight is added to the fp32 sum of chunks, per weight


def seconds(model: Model, layout: Layout, work: Work, rates: Rates) -> dict[str, float]:
    tokens = work.local_batch * work.seq_len / layout.cp / layout.tp  # a GPU's share
    again = work.checkpointed
    selective = work.checkpointing == "op"

    output = 6 * model.dim * model.vocab_size
    matmul = (6 + 2 * again) * model.layers * model.layer_matrices
    if selective:  # of wq, wk, wv, wo, w1, w3, w2 every second is not kept: wk, wo, w3
        unkept = model.dim * (model.kv_dim + model.dim + model.ffn_dim)
        matmul += 2 * model.layers * unkept
    if work.ffn_chunk_tokens:  # w1 and w3 run again in any case; w3 of "op", both of "full" did
        more = (1 if selective else 2 * (1 - again)) * model.ffn_matrices / 3
        matmul += 2 * model.layers * more

    products = rates.matmul * (rates.float8 if work.float8 else 1.0)
    casts = model.layers * cast_bytes(model, work) if work.float8 else 0.0

    passes = 1 + ELEMENTWISE_BACKWARD + (1.0 if selective else again)
    elementwise = passes * model.layers * _elementwise_bytes(model, work)
    loss = LOSS_BYTES * model.vocab_size

    parts = {
        "matmuls": tokens * (matmul / products + output / rates.matmul),
        "float8 casts": tokens * casts / (rates.elementwise * rates.casts),
        "elementwise": tokens * elementwise / rates.elementwise,
        "dense attention": 0.0,
        "window attention": 0.0,
        "lighthouse attention": 0.0,
        "around lighthouse": 0.0,
        "scorer": 0.0,
        "loss": tokens * loss / rates.elementwise,
        "ring": 0.0,
    }
    for config in work.attention:
        if isinstance(config, WindowConfig):
            inner, ring = _window_seconds(model, layout, work, rates, config)
            parts["window attention"] += inner
            parts["ring"] += ring
            continue
        inner, ring = _attention_seconds(model, layout, work, rates, config)
        parts["ring"] += ring
        if config is None:
            parts["dense attention"] += inner
            continue
        parts["lighthouse attention"] += inner
        passes_again = 1.0 if selective else again
        moved = work.local_batch / layout.cp / layout.tp * work.element_bytes
        forward, backward = elements_around(model, config, work.seq_len)
        passed = moved * ((1 + passes_again) * forward + backward)
        selected = (1 + again) * work.local_batch * rates.select
        parts["around lighthouse"] += passed / rates.around + selected
        scorer = _scorer_seconds(model, config, work.seq_len, rates) / layout.cp / layout.tp
        # Selective checkpointing keeps the selection, so nothing asks for scores again.
        parts["scorer"] += (1 + again) * work.local_batch * scorer

    parts["tensor parallel"] = _tensor_parallel_seconds(model, layout, work, rates)
    # Gathering and reducing run beside the computation; only what is longer shows.
    busy = sum(parts.values())
    parts["fsdp"] = max(0.0, _fsdp_seconds(model, layout, work, rates) - busy)

    parts["ffn chunks"] = _chunk_sum_seconds(model, layout, work, rates)
    parts["offload"] = _offload_seconds(model, layout, work, rates, busy)

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


def cast_bytes(model: Model, work: Work) -> float:
    """Per token and layer: what products read is cast in forward, its gradients in backward.

    For its largest number and its cast each is read twice and written once in a byte; in backward
    it is read again, and written transposed, for the gradients of weights.
    """
    element = work.element_bytes
    cast, transposed = 2 * element + 1, element + 1
    read = 3 * model.dim + model.ffn_dim  # by q, k and v; by wo; by w1 and w3; by w2
    given = 3 * model.dim + 2 * model.kv_dim + 2 * model.ffn_dim
    return (cast + transposed) * (read + given) + work.checkpointed * cast * read


def _attention_seconds(
    model: Model, layout: Layout, work: Work, rates: Rates, config: LighthouseConfig | None
) -> tuple[float, float]:
    """The kernel, and what the ring adds to it."""
    again, attended = work.checkpointed, rows(config, work.seq_len)
    square = work.square(config) * work.local_batch / layout.cp / layout.tp
    forward, backward = attention_kernel(
        model, square, rates, documents=work.pairs_left is not None
    )
    latency = layout.cp * rates.attention_latency
    kernel = (1 + again) * (forward + latency) + backward + latency
    if layout.cp == 1:
        return kernel, 0.0
    # Forward gathers all keys and values, and keeps them for backward unless it runs again. In
    # backward the fp32 gradients of each rank's go round the whole ring.
    keys_values = 2 * attended * model.kv_dim * work.local_batch / layout.tp
    others = (layout.cp - 1) / layout.cp
    travels = keys_values * ((1 + again) * others * work.element_bytes + 4)
    # They travel beside attention, and take from it what they would take alone: on H200s the two
    # together last as long as one after the other (benchmarks/ring.py).
    exposed = travels / _link(rates, layout.cp * layout.tp)
    merged = MERGE_BYTES * attended * model.dim * work.local_batch / layout.tp / rates.copy
    return kernel, exposed + (2 + again) * merged


def attention_kernel(
    model: Model, square: float, rates: Rates, *, documents: bool
) -> tuple[float, float]:
    """Forward and backward of one call, but for its latency; ``square`` stands for N².

    In documents another kernel attends, which also starts programs for places without a document.
    """
    flops = 2 * square * model.dim
    forward = flops / rates.attention_forward
    backward = flops / rates.attention_backward
    if documents:
        forward, backward = (
            of_dense / rates.documents + rates.documents_latency for of_dense in (forward, backward)
        )
    return forward, BACKWARD_MATMULS * backward


def _window_seconds(
    model: Model, layout: Layout, work: Work, rates: Rates, config: WindowConfig
) -> tuple[float, float]:
    """Attention, and what context parallelism adds to it: tails of chunks.

    Selective checkpointing keeps the output.
    """
    again = work.checkpointed
    of_a_gpu = work.local_batch / layout.cp / layout.tp
    documents = work.pairs_left is not None
    square = work.square(config) * of_a_gpu
    forward, backward = attention_kernel(model, square, rates, documents=documents)
    # In documents one call of a kernel that knows of windows.
    calls, forward_moved, backward_moved = (
        (1, 0, 0) if documents else (2, *elements_in_windows(model))
    )
    moved = work.seq_len * of_a_gpu * work.element_bytes / rates.window
    latency = calls * rates.attention_latency
    kernel = (1 + again) * (forward + forward_moved * moved + latency)
    kernel += backward + backward_moved * moved + latency
    if layout.cp == 1:
        return kernel, 0.0
    tails = 2 * min(config.window - 1, work.seq_len)  # of two chunks
    sent = tails * 2 * model.kv_dim * work.element_bytes * work.local_batch / layout.tp
    passes = 2 + (1.0 if work.checkpointing == "op" else again)
    return kernel, passes * sent / _link(rates, layout.cp * layout.tp)


def elements_in_windows(model: Model) -> tuple[int, int]:
    """Elements moved around the two stock calls of a window, per token, forward and backward.

    Forward: q, k, v reversed; two outputs read and one written. Backward: the same, the output and
    its gradient reversed; gradients of q, k, v read twice and written.
    """
    row, out = model.dim + 2 * model.kv_dim, model.dim
    return 2 * row + 3 * out, 2 * (row + 2 * out) + 3 * row


def elements_around(model: Model, config: LighthouseConfig, seq_len: int) -> tuple[int, int]:
    """Elements moved around the inner attention, forward and backward, each once.

    Forward: q, k, v read, the refined windows read again, the sub-sequence written, its output
    read, the output written. Backward: the output's gradient read, its rows written, the gradients
    of the sub-sequence read, those of q, k, v written.
    """
    gathered = config.gathered_len(seq_len)
    window = sum(config.pooling_factor**level for level in range(1, config.num_levels))
    row, out = model.dim + 2 * model.kv_dim, model.dim
    forward = (seq_len + config.topk * window + gathered) * row + (seq_len + gathered) * out
    return forward, (seq_len + gathered) * (out + row)


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
    again = 1.0 if work.checkpointing == "op" else work.checkpointed
    return (2 + again) * 4 * model.layers * sent / _link(rates, layout.tp)


def _fsdp_seconds(model: Model, layout: Layout, work: Work, rates: Rates) -> float:
    """Gathers of the parameters, the reduction of fp32 gradients, and that of replicas."""
    weights = model.parameters / layout.tp
    link = _link(rates, layout.fsdp * layout.tp)
    gathers = (2 if work.reshard else 1) * work.element_bytes
    sharded = (layout.fsdp - 1) / layout.fsdp * weights * (gathers + 4) / link
    copies = 2 * (layout.dp_replicate - 1) / layout.dp_replicate
    return sharded + copies * weights / layout.fsdp * 4 / _link(rates, layout.gpus)


def _chunk_sum_seconds(model: Model, layout: Layout, work: Work, rates: Rates) -> float:
    """Summing the feed-forward's gradients of weights over chunks."""
    if not work.ffn_chunk_tokens:
        return 0.0
    chunks = math.ceil(work.local_batch * work.seq_len / layout.cp / work.ffn_chunk_tokens)
    return chunks * model.layers * SUM_BYTES * model.ffn_matrices / rates.copy


def _offload_seconds(model: Model, layout: Layout, work: Work, rates: Rates, busy: float) -> float:
    """Copies of block inputs to the host and back, as far as they take longer than computing.

    Of that, forward is one part, and backward, which runs forward again, three.
    """
    copy = host_memory(model, layout, work) / rates.host
    return max(0.0, copy - busy / 4) + max(0.0, copy - 3 * busy / 4)


def _link(rates: Rates, ranks: int) -> float:
    return rates.nvlink if ranks <= rates.node else rates.network
