"""Bytes of a step on one GPU at its peak, part by part."""

from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.cost.rates import Rates
from lighthouse.cost.sizes import Layout, Model, Work, rows

GIB = 2**30

STATE_BYTES = 16  # fp32 parameter, gradient and two moments
LOGIT_BYTES = 10  # logits, their fp32 copy and its gradient, per logit
AT_HAND = 2  # inputs of blocks on the device, where others are offloaded
AROUND = 5  # sums, gradients and copies as large as a block's input, by the peaks with offload
HIDDEN = 3  # w1's output, w3's and their product
IN_A_CHUNK = 2 * HIDDEN  # and the gradients of all three


def memory(model: Model, layout: Layout, work: Work, rates: Rates) -> dict[str, float]:
    tokens = work.local_batch * work.seq_len / layout.cp / layout.tp
    kept = [
        _kept_bytes(model, work, config) + _kept_by_ring(model, layout, work, config)
        for config in work.attention
    ]
    beside = [_beside(model, layout, work, config, tokens) for config in work.attention]
    all_tokens = work.local_batch * work.seq_len / layout.cp
    working = max(map(sum, zip(kept, beside, strict=True)))  # a layer that runs again in backward
    outside = work.residual_bytes * model.dim
    share = work.checkpointed
    inputs = AT_HAND if work.offload else share * model.layers
    if work.checkpointing == "none":
        activations = sum(kept) + max(beside)
    elif work.checkpointing == "op":
        activations = working + sum(
            _kept_by_op(model, layout, work, config) + _kept_by_ring(model, layout, work, config)
            for config in work.attention
        )
    else:
        activations = working + (1 - share) * sum(kept)
    mode = work.checkpointing if work.checkpointing in rates.activations else "full"
    factor = rates.activations[mode] * tokens

    at_a_time = min(work.loss_chunk_tokens or all_tokens, all_tokens)
    # Two layers gathered and one's gradient, beside the output layer with its own. The embedding is
    # gathered at other times.
    layer = model.layer_matrices * (2 * work.element_bytes + 4)
    if work.ffn_chunk_tokens:
        layer += 4 * model.ffn_matrices  # fp32 sums over chunks
    output = model.dim * model.vocab_size * (work.element_bytes + 4)
    return {
        "parameters and optimizer": STATE_BYTES * model.parameters / layout.fsdp / layout.tp,
        "gathered parameters": (layer + output) / layout.tp,
        "block inputs": factor * inputs * outside,
        "activations": factor * (activations + AROUND * outside),
        "logits": LOGIT_BYTES * at_a_time * model.vocab_size / layout.tp,
    }


def host_memory(model: Model, layout: Layout, work: Work) -> float:
    """Bytes of a host that a GPU's offloaded block inputs take: of all blocks but the last."""
    if not work.offload:
        return 0.0
    tokens = work.local_batch * work.seq_len / layout.cp / layout.tp
    return (model.layers - 1) * tokens * work.residual_bytes * model.dim


def _beside(
    model: Model,
    layout: Layout,
    work: Work,
    config: LighthouseConfig | WindowConfig | None,
    tokens: float,
) -> float:
    """What a layer's backward has beside what is kept, per token.

    Either of the feed-forward: the gradient of its hidden layer, or a chunk's hidden layer with all
    gradients. Or, when that is done, the gradients of q, k, v, the attention output, and in fp32 of
    the ring's keys and values, in place of the feed-forward's input, norm and hidden layer.
    """
    freed: float = model.dim * (work.residual_bytes + work.element_bytes)
    of_ffn: float = work.element_bytes * model.ffn_dim
    if work.ffn_chunk_tokens:
        of_ffn *= IN_A_CHUNK * min(work.ffn_chunk_tokens, tokens) / tokens
    else:
        freed += HIDDEN * work.element_bytes * model.ffn_dim
    of_attention: float = 2 * (model.dim + model.kv_dim) * work.element_bytes
    if not isinstance(config, WindowConfig):
        of_attention += 4 / work.element_bytes * _kept_by_ring(model, layout, work, config)
    return max(of_ffn, of_attention - freed)


def _kept_bytes(model: Model, work: Work, config: LighthouseConfig | WindowConfig | None) -> float:
    """Kept for backward, per token: block input and sum, norms, SwiGLU unless it is in chunks,
    attention in and out.

    A Lighthouse layer keeps the rows of its sub-sequence instead of q, k and v of each token.
    """
    element = work.element_bytes
    body = 2 * model.dim * (work.residual_bytes + element)
    body += element * (model.dim + (0 if work.ffn_chunk_tokens else HIDDEN * model.ffn_dim))
    qkv = model.dim + 2 * model.kv_dim
    if not isinstance(config, LighthouseConfig):
        return body + element * qkv
    rows_per_token = config.gathered_len(work.seq_len) / work.seq_len
    return body + element * rows_per_token * (qkv + model.dim)


def _kept_by_ring(
    model: Model, layout: Layout, work: Work, config: LighthouseConfig | WindowConfig | None
) -> float:
    """The gathered keys and values of all ranks, per token of one; of a window those in front of
    two chunks, and the chunks'."""
    if layout.cp == 1:
        return 0.0
    rows_per_token = layout.cp * rows(config, work.seq_len) / work.seq_len
    if isinstance(config, WindowConfig):
        in_front = 2 * layout.cp * (config.window - 1) / work.seq_len
        rows_per_token = 1 + min(in_front, layout.cp)
    return work.element_bytes * rows_per_token * 2 * model.kv_dim


def _kept_by_op(
    model: Model, layout: Layout, work: Work, config: LighthouseConfig | WindowConfig | None
) -> float:
    """The block's input, wq, wv, w1 and the attention kernel's outputs, one a piece, per token.

    Without w1 where the feed-forward is in chunks.
    """
    outputs = 1.0
    if not isinstance(config, WindowConfig):
        outputs = layout.cp * rows(config, work.seq_len) / work.seq_len
    columns = model.dim + model.kv_dim + outputs * model.dim
    columns += 0 if work.ffn_chunk_tokens else model.ffn_dim
    return work.residual_bytes * model.dim + work.element_bytes * columns
