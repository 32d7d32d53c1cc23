"""Scores of the tokens, and of entries from them (docs/method.md, section 2).

No scorer has parameters or gradients, and none sees later tokens.

``dilated`` and ``gla`` attend inside each of ``dilation`` interleaved subsequences of each chunk,
once from queries to keys and once with the two exchanged; a token's scores are the l2 norms of its
two outputs. With grouped-query heads every query head attends against its group's key/value head in
both passes, and a token's score for a key/value head is the largest of its group.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lighthouse.config import INTERLEAVED_SCORERS, LighthouseConfig

GLA_LOG_DECAY = -math.log(2) / 16
_GLA_BLOCK = 128
_FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@torch.no_grad()
def level0_scores(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    config: LighthouseConfig,
) -> tuple[Tensor, Tensor]:
    """Query and key scores of every token per key/value head.

    Args:
        q_BHND: (B, Hq, N, D), rotary embedding applied.
        k_BHND: (B, Hkv, N, D), likewise; Hq must be a multiple of Hkv.
        v_BHND: (B, Hkv, N, D).
        config: ``scorer`` chooses; ``dilation`` and ``num_chunks`` apply to dilated and gla.

    Returns:
        Query scores and key scores, both fp32 (B, Hkv, N). Deterministic.

    Raises:
        ModuleNotFoundError: ``gla`` on a GPU without fla-core, naming the extra to install.
    """
    num_kv_heads = k_BHND.shape[1]
    if config.scorer not in INTERLEAVED_SCORERS:
        norms = _norm_scores(q_BHND, num_kv_heads), _norm_scores(k_BHND, num_kv_heads)
        return norms if config.scorer == "norm" else (_hashed(norms[0]), _hashed(norms[1]))
    attend = _softmax_attention if config.scorer == "dilated" else _gated_linear_attention
    group = q_BHND.shape[1] // num_kv_heads
    k_expanded = k_BHND.repeat_interleave(group, dim=1) if group > 1 else k_BHND
    v_expanded = v_BHND.repeat_interleave(group, dim=1) if group > 1 else v_BHND

    # Batch entries are now the interleaved subsequences of every chunk.
    q, k, v = (_interleaved(x, config) for x in (q_BHND, k_expanded, v_expanded))
    if config.scorer == "gla":
        # The order in memory that fla-core needs, which would otherwise copy in either pass.
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))

    def scores(queries: Tensor, keys: Tensor) -> Tensor:
        norms = _norm_scores(attend(queries, keys, v), num_kv_heads)
        return _deinterleaved(norms, config, q_BHND.shape[0])

    return scores(q, k), scores(k, q)


def scoring_flops_per_token(
    config: LighthouseConfig, seq_len: int, num_heads: int, head_dim: int
) -> float:
    """Matrix FLOPs per token of scoring once, without discount for the causal mask.

    ``dilated``: two attention passes over subsequences. ``gla``: two passes of its recurrence,
    which adds a head_dim x head_dim product to a state and multiplies by it. The others: none.
    """
    if config.scorer not in INTERLEAVED_SCORERS:
        return 0.0
    if config.scorer == "dilated":
        subsequence = seq_len / config.num_chunks / config.dilation
        return 2 * 4 * num_heads * head_dim * subsequence
    return 2 * 4 * num_heads * head_dim**2


def level1_maxima(scores_BHN: Tensor, config: LighthouseConfig) -> Tensor:
    """Score of each level-1 entry, (B, H, N / p): all that a selection needs of level-0 scores."""
    return window_maxima(scores_BHN, config.pooling_factor, config)


def window_maxima(scores_BHE: Tensor, width: int, config: LighthouseConfig) -> Tensor:
    """Scores of entries that are ``width`` times as wide as those of the given scores.

    Under the published selection the largest score under an entry. Under the causal one the largest
    of as many that end with the first one under it, as far as the chunk has them. Scores of level l
    can be taken from those of any finer level, since windows of windows are windows.

    Args:
        scores_BHE: (B, H, entries of any level over all chunks).

    Returns:
        (B, H, entries / width).
    """
    if config.selection == "causal":
        of_chunks = scores_BHE.unflatten(-1, (config.num_chunks, -1))
        length = of_chunks.shape[-1]
        of_chunks = F.pad(of_chunks, (width - 1, 0), value=-math.inf)[..., :length]
        scores_BHE = of_chunks.flatten(-2)
    return scores_BHE.unflatten(-1, (-1, width)).amax(dim=-1)


def _norm_scores(x_BHND: Tensor, num_kv_heads: int) -> Tensor:
    """Largest l2 norm among the heads of each key/value head's group, fp32 (B, Hkv, N)."""
    dtype = torch.promote_types(x_BHND.dtype, torch.float32)
    norm_BHN = torch.linalg.vector_norm(x_BHND, dim=-1, dtype=dtype)
    return norm_BHN.unflatten(1, (num_kv_heads, -1)).amax(dim=2).float()


def _hashed(norm_BHN: Tensor) -> Tensor:
    """Numbers in [0, 1) that look random: the multiplicative hash of each norm's bits.

    No generator has a state to be kept in checkpoints, given again to a recomputed layer, or shared
    out among ranks; and another text, or the next step's weights, give other numbers.
    """
    bits = norm_BHN.view(torch.int32).long()
    for factor in (0x9E3779B1, 0x85EBCA6B):
        bits = bits * factor & 0xFFFFFFFF
        bits = bits ^ bits >> 15
    return (bits >> 8).float() * 2**-24


def _interleaved(x_BHND: Tensor, config: LighthouseConfig) -> Tensor:
    """(B, H, N, D) -> (B * chunks * dilation, H, N / chunks / dilation, D), token t mod dilation.

    A view where the batch is 1 and there is one chunk.
    """
    x = x_BHND.unflatten(2, (config.num_chunks, -1, config.dilation))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _deinterleaved(scores: Tensor, config: LighthouseConfig, batch: int) -> Tensor:
    """(B * chunks * dilation, Hkv, N / chunks / dilation) -> (B, Hkv, N)."""
    scores = scores.unflatten(0, (batch, config.num_chunks, config.dilation))
    return scores.permute(0, 3, 1, 4, 2).flatten(2, 4)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # The order that torchtitan's own attention uses; nearly all of a dilated layer's time is here.
    with sdpa_kernel(_FASTEST_FIRST, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _gated_linear_attention(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """Simple gated linear attention with the constant decay ``exp(GLA_LOG_DECAY)`` per step."""
    if q_BHND.is_cuda:
        return _fla_simple_gla()(q_BHND, k_BHND, v_BHND)
    dtype = torch.promote_types(q_BHND.dtype, torch.float32)
    q, k, v = (x.to(dtype) for x in (q_BHND, k_BHND, v_BHND))
    with torch.autocast(q.device.type, enabled=False):
        outputs = _blockwise_attention(q * q.shape[-1] ** -0.5, k, v)
    return outputs.to(q_BHND.dtype)


def _blockwise_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Inside a block as masked attention, before it through the running state."""
    step = torch.arange(_GLA_BLOCK + 1, device=q.device)
    decay = torch.exp(step.to(q.dtype) * GLA_LOG_DECAY)
    weight = decay[(step[:-1, None] - step[:-1]).clamp(min=0)].tril()
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    blocks = []
    for q_b, k_b, v_b in zip(*(x.split(_GLA_BLOCK, dim=2) for x in (q, k, v)), strict=True):
        length = q_b.shape[2]
        within = (q_b @ k_b.mT * weight[:length, :length]) @ v_b
        blocks.append(within + (q_b @ state) * decay[1 : length + 1, None])
        to_end = decay[:length].flip(0)[:, None]
        state = state * decay[length] + (k_b * to_end).mT @ v_b
    return torch.cat(blocks, dim=2)


def _fla_simple_gla() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    try:
        from fla.ops.simple_gla import chunk_simple_gla
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "scorer = 'gla' needs fla-core on a GPU: pip install 'lighthouse-attention[gla]'"
        ) from error

    def attend(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q_BHND, k_BHND, v_BHND))
        decay = q.new_full(q.shape[:3], GLA_LOG_DECAY, dtype=torch.float32)
        return chunk_simple_gla(q, k, v, g=decay)[0].transpose(1, 2)

    return attend
