"""The rivals: how each is called at its authors' settings, and what it is checked against.

All take q (B, Hq, N, D), k and v (B, Hkv, N, D), in memory (B, N, H, D), and gates of their own.
A name that ends in ``_BNH..`` has tokens before heads, as flash-linear-attention has them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import attention, rivals_blocks
from benchmarks.attention import Inputs, cudnn_first
from benchmarks.rivals_check import Call, Layer, causal, check, drawn, masked, near
from lighthouse import LighthouseConfig, lighthouse_attention, window_attention

HEADS, GROUPED = "8 heads", "16 heads on one key head"
LAYOUTS = {HEADS: (8, 8), GROUPED: (16, 1)}
HEAD_DIM = 128


Build = Callable[[Tensor, Tensor, Tensor], Layer]


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        settings: the authors', in words.
        build: at these settings.
        small: at settings that show at ``checked_at`` tokens; None if ``build`` does.
        checked_at: tokens, for the naive form.
        layouts: those that it knows.
        tuned: whether Triton has to choose among variants first.
        by_length: whether its kernels are compiled for one length alone.
        graph: whether a CUDA graph can hold it.
    """

    name: str
    settings: str
    build: Build
    small: Build | None = None
    checked_at: int = 2048
    layouts: tuple[str, ...] = (HEADS, GROUPED)
    tuned: bool = False
    by_length: bool = False
    graph: bool = True

    def check(self, inputs: Inputs) -> float:
        """Of ``checked_at`` tokens. The largest error over what is allowed."""
        return check((self.small or self.build)(*inputs), inputs)


class Lighthouse(Method):
    """Of float32 inputs it would select otherwise, so it has a check of its own.

    That says no more than that what is allowed is kept.
    """

    def check(self, inputs: Inputs) -> float:
        attention.check(lighthouse_config(inputs[0].shape[2]), inputs)
        return 1.0


def dense(q: Tensor, k: Tensor, v: Tensor, *, call: Call) -> Layer:
    return Layer(call, lambda: masked(causal(q.shape[2], q.device)))


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return cudnn_first(q, k, v, enable_gqa=q.shape[1] != k.shape[1])


def flash2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )


def flash4(q: Tensor, k: Tensor, v: Tensor) -> Layer:
    from flash_attn.cute.interface import flash_attn_func

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return dense(q, k, v, call=call)


def window(q: Tensor, k: Tensor, v: Tensor, *, width: int) -> Layer:
    return Layer(
        partial(window_attention, window=width), lambda: masked(near(q.shape[2], width, q.device))
    )


def short_blocks(q: Tensor, k: Tensor, v: Tensor, *, length: int) -> Layer:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        blocks = (x[0].unflatten(1, (-1, length)).transpose(0, 1) for x in (q, k, v))
        return cudnn(*blocks).transpose(0, 1).flatten(1, 2)[None]

    def naive() -> Call:
        block = torch.arange(q.shape[2], device=q.device) // length
        return masked(causal(q.shape[2], q.device) & (block[:, None] == block))

    return Layer(call, naive)


def lighthouse_config(seq_len: int) -> LighthouseConfig:
    return LighthouseConfig(3, 4, seq_len // 64)


def lighthouse(q: Tensor, k: Tensor, v: Tensor) -> Layer:
    config = lighthouse_config(q.shape[2])
    reference = partial(lighthouse_attention, config=config, impl="reference")
    return Layer(
        partial(lighthouse_attention, config=config, attention=cudnn_first), lambda: reference
    )


# Linear attention ---------------------------------------------------------------------------------


def decay(x: Tensor) -> Tensor:
    """Log decays as in gated linear attention: a step forgets little."""
    return (F.logsigmoid(x) / 16).requires_grad_()


def tokens_first(call: Callable[..., tuple[Tensor, ...]], **settings: object) -> Call:
    """A function of flash-linear-attention, called with heads first."""

    def of_heads_first(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
        out = call(*(x.transpose(1, 2) for x in (q, k, v)), *gates, **settings)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return of_heads_first


def log_linear(q: Tensor, k: Tensor, v: Tensor) -> Layer:
    from fla.ops.log_linear_attn import chunk_log_linear_attn
    from fla.ops.log_linear_attn.naive import naive_log_linear_attn

    heads, levels = q.shape[1], math.ceil(math.log2(q.shape[2])) + 1
    gates = (
        decay(drawn(q, heads)),
        F.softplus(drawn(q, heads, levels)).to(q.dtype).requires_grad_(),
    )
    return Layer(
        tokens_first(chunk_log_linear_attn, scale=None),
        lambda: tokens_first(naive_log_linear_attn, scale=None),
        gates,
    )


def simple_gla(q: Tensor, k: Tensor, v: Tensor) -> Layer:
    from fla.ops.simple_gla import fused_chunk_simple_gla
    from fla.ops.simple_gla.naive import naive_parallel_simple_gla

    return Layer(
        tokens_first(fused_chunk_simple_gla),
        lambda: tokens_first(naive_parallel_simple_gla),
        (decay(drawn(q, q.shape[1])),),
    )


def normalized(call: Call) -> Call:
    """With q and k of length 1, as the delta rules have them."""
    return lambda q, k, v, *gates: call(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, *gates)


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor) -> Layer:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule

    gates = (decay(drawn(q, q.shape[1])), write_strength(q))
    return Layer(
        tokens_first(chunk_gated_delta_rule, use_qk_l2norm_in_kernel=True),
        lambda: normalized(tokens_first(naive_chunk_gated_delta_rule)),
        gates,
    )


def kda(q: Tensor, k: Tensor, v: Tensor) -> Layer:
    from fla.ops.kda import chunk_kda
    from fla.ops.kda.naive import naive_chunk_kda

    gates = (decay(drawn(q, q.shape[1], q.shape[3])), write_strength(q))
    return Layer(
        tokens_first(chunk_kda, use_qk_l2norm_in_kernel=True),
        lambda: normalized(tokens_first(naive_chunk_kda)),
        gates,
    )


def write_strength(q: Tensor) -> Tensor:
    return drawn(q, q.shape[1]).sigmoid().to(q.dtype).requires_grad_()


# The rows -----------------------------------------------------------------------------------------

METHODS = {
    "cudnn": Method("dense, cuDNN", "torch's SDPA", partial(dense, call=cudnn)),
    "flash2": Method("dense, FlashAttention 2", "torch's SDPA", partial(dense, call=flash2)),
    "flash4": Method("dense, FlashAttention 4", "flash-attn-4, CuTe DSL", flash4),
    "window": Method(
        "window of 8,192",
        "`lighthouse.window_attention`: two causal calls of cuDNN",
        partial(window, width=8192),
        partial(window, width=300),
    ),
    **{
        f"blocks-{length // 1024}k": Method(
            f"blocks of {length:,}",
            "sequences as short as that, cuDNN",
            partial(short_blocks, length=length),
            partial(short_blocks, length=256),
        )
        for length in (2048, 4096, 8192)
    },
    "lighthouse": Lighthouse(
        "Lighthouse, ours",
        "L = 3, p = 4, k = N / 64, norm, causal",
        lighthouse,
        checked_at=8192,  # the least with which k is a whole stratum
    ),
    "nsa": Method(
        "NSA",
        "blocks of 64 by their means, 16 of them read, a window of 512",
        rivals_blocks.nsa,
        layouts=(GROUPED,),
        tuned=True,
    ),
    "moba-512": Method(
        "MoBA, 3 of 512",
        "the paper's scaling study: 3 blocks of 512, a token's own among them",
        partial(rivals_blocks.moba, block=512, count=3),
        partial(rivals_blocks.moba, block=128, count=3),
        layouts=(HEADS,),
        graph=False,  # shapes depend on what is selected
    ),
    "moba-4096": Method(
        "MoBA, 12 of 4,096",
        "the paper's model for a million tokens: 12 blocks of 4,096",
        partial(rivals_blocks.moba, block=4096, count=12),
        partial(rivals_blocks.moba, block=128, count=3),
        layouts=(HEADS,),
        graph=False,
    ),
    "infllm": Method(
        "block selection as in InfLLM-v2",
        "4,096 tokens selected, the last 2,048, the first block; in blocks of 128 for 128 queries "
        "each, by FlexAttention",
        rivals_blocks.infllm,
        partial(rivals_blocks.infllm, selected=4, local=2),
    ),
    "gla": Method(
        "simple GLA (Mamba-2)",
        "a state of 128 x 128, `fused_chunk`",
        simple_gla,
        layouts=(HEADS,),
        tuned=True,
    ),
    "delta": Method(
        "gated delta rule", "q and k normalized", gated_delta_rule, layouts=(HEADS,), tuned=True
    ),
    "kda": Method(
        "KDA", "a gate for each channel", kda, layouts=(HEADS,), tuned=True, by_length=True
    ),
    "log-linear": Method(
        "log-linear attention",
        "Mamba-2's gate",
        log_linear,
        layouts=(HEADS,),
        tuned=True,
        by_length=True,
        graph=False,  # every call copies a table to the GPU
    ),
    "dsa": Method(
        "DSA",
        "2,048 keys of each query, by an indexer of 64 heads; the only form in the library that "
        "trains is this naive one",
        partial(rivals_blocks.dsa, topk=2048),
        partial(rivals_blocks.dsa, topk=256),
    ),
}
