"""Bytes of a step on one GPU at its peak, part by part."""

from lighthouse.config import LighthouseConfig, WindowConfig
from lighthouse.cost.rates import Rates
from lighthouse.cost.sizes import Layout, Model, Work, rows, window_share

GIB = 2**30

STATE_BYTES = 16  # fp32 parameter, gradient and two moments
LOGIT_BYTES = 10  # logits, their fp32 copy and its gradient, per logit


def memory(model: Model, layout: Layout, work: Work, rates: Rates) -> dict[str, float]:
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
        share = work.checkpointed
        activations = working + share * model.layers * outside + (1 - share) * sum(kept)
    mode = work.checkpointing if work.checkpointing in rates.activations else "full"

    all_tokens = work.local_batch * work.seq_len / layout.cp
    at_a_time = min(work.loss_chunk_tokens or all_tokens, all_tokens)
    # Two layers gathered and one's gradient, beside the output layer with its own. The embedding is
    # gathered at other times.
    layer = model.layer_matrices * (2 * work.element_bytes + 4)
    output = model.dim * model.vocab_size * (work.element_bytes + 4)
    return {
        "parameters and optimizer": STATE_BYTES * model.parameters / layout.fsdp / layout.tp,
        "gathered parameters": (layer + output) / layout.tp,
        "activations": rates.activations[mode] * tokens * (activations + 3 * outside),
        "logits": LOGIT_BYTES * at_a_time * model.vocab_size / layout.tp,
    }


def _kept_bytes(model: Model, work: Work, config: LighthouseConfig | WindowConfig | None) -> float:
    """Kept for backward, per token: block input and sum, norms, SwiGLU, attention in and out.

    A Lighthouse layer keeps the rows of its sub-sequence instead of q, k and v of each token, and
    takes those of its window heads apart.
    """
    element = work.element_bytes
    body = 2 * model.dim * (work.residual_bytes + element)
    body += element * (model.dim + 3 * model.ffn_dim)
    qkv = model.dim + 2 * model.kv_dim
    if not isinstance(config, LighthouseConfig):
        return body + element * qkv
    near = window_share(config, model.kv_heads)
    rows_per_token = near + (1 - near) * config.gathered_len(work.seq_len) / work.seq_len
    return body + element * rows_per_token * (qkv + model.dim)


def _kept_by_ring(
    model: Model, layout: Layout, work: Work, config: LighthouseConfig | WindowConfig | None
) -> float:
    """The gathered keys and values of all ranks, per token of one; of a window those in front of
    two chunks, and the chunks'."""
    if layout.cp == 1:
        return 0.0
    near = window_share(config, model.kv_heads)
    rows_per_token = (1 - near) * layout.cp * rows(config, work.seq_len) / work.seq_len
    if config is not None and config.window is not None:
        in_front = 2 * layout.cp * (config.window - 1) / work.seq_len
        rows_per_token += near * (1 + min(in_front, layout.cp))
    return work.element_bytes * rows_per_token * 2 * model.kv_dim


def _kept_by_op(
    model: Model, layout: Layout, work: Work, config: LighthouseConfig | WindowConfig | None
) -> float:
    """The block's input, wq, wv, w1 and the attention kernel's outputs, one a piece, per token."""
    near = window_share(config, model.kv_heads)
    share = near + (1 - near) * layout.cp * rows(config, work.seq_len) / work.seq_len
    columns = model.dim + model.kv_dim + model.ffn_dim + share * model.dim
    return work.residual_bytes * model.dim + work.element_bytes * columns
