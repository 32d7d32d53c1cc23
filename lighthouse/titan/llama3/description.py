"""What a Llama is, in torchtitan's arguments: its sizes, the shapes of its weights, its positions.

The names are those of ``[model.args]``, which are torchtitan's but for the stretch of positions.
"""

import math
from collections.abc import Mapping
from typing import Any

MOST: dict[str, int] = {"n_layers": 10_000} | dict.fromkeys(
    ("dim", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size"), (1 << 31) - 1
)
"""The largest of each size: layers are gone through one by one, and two of the others make a
weight, whose elements are counted in 63 bits."""

_BOUNDS = {
    # Norms of activations around 1 leave nothing above the second.
    **dict.fromkeys(("norm_eps", "rms_norm_eps"), (0.0, 1.0)),
    "rope_theta": (1e-30, 1e30),
}
_USUAL_BOUNDS = (1e-9, 1e9)


SCALING = {
    "none": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
    ),
}
"""Ways to stretch rotary positions, and the keys that mean something for each."""


def bounds(key: str) -> tuple[float, float]:
    """Between which a number that is no size must be: beyond, float32 has no such positions.

    Args:
        key: dotted, in ``[model.args]`` or in ``config.json``.
    """
    return _BOUNDS.get(key.rpartition(".")[2], _USUAL_BOUNDS)


def titans(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of ``rope_scaling`` as torchtitan's ``RoPEScalingArgs`` has them."""
    return {"scaling_factor" if k == "factor" else k: v for k, v in scaling.items()}


def describe(args: Any) -> dict[str, Any]:
    """What a model is, by the names of ``[model.args]``; equal for equal models.

    Args:
        args: torchtitan's ``TransformerModelArgs``.
    """
    scaling = args.rope_scaling_args
    kind = scaling.rope_type
    if kind in ("linear", "llama3") and scaling.scaling_factor == 1:
        kind = "none"
    return {
        "dim": args.dim,
        "n_layers": args.n_layers,
        "n_heads": args.n_heads,
        "n_kv_heads": args.n_kv_heads or args.n_heads,
        "ffn_dim": ffn_dim(args),
        "vocab_size": args.vocab_size,
        "tied": args.tied,
        "norm_eps": args.norm_eps,
        "rope_theta": args.rope_theta,
        "rope_scaling.rope_type": kind,
        **{f"rope_scaling.{key}": getattr(scaling, *titans({key: None})) for key in SCALING[kind]},
    }


def ffn_dim(args: Any) -> int:
    """Width inside the feed-forward, as torchtitan rounds it."""
    if args.ffn_dim is not None:
        width: int = args.ffn_dim
        return width
    width = int(2 * 4 * args.dim / 3)
    if args.ffn_dim_multiplier is not None:
        width = int(args.ffn_dim_multiplier * width)
    return -(-width // args.multiple_of) * args.multiple_of


def weight_shapes(args: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's weights, by Hugging Face's names and in their order."""
    dim, width = args.dim, ffn_dim(args)
    kv_dim = dim // args.n_heads * (args.n_kv_heads or args.n_heads)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (args.vocab_size, dim)}
    for layer in range(args.n_layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": (dim, dim),
                "self_attn.k_proj": (kv_dim, dim),
                "self_attn.v_proj": (kv_dim, dim),
                "self_attn.o_proj": (dim, dim),
                "mlp.gate_proj": (width, dim),
                "mlp.up_proj": (width, dim),
                "mlp.down_proj": (dim, width),
                "input_layernorm": (dim,),
                "post_attention_layernorm": (dim,),
            }.items()
        }
    shapes["model.norm.weight"] = (dim,)
    if not args.tied:
        shapes["lm_head.weight"] = (args.vocab_size, dim)
    return shapes


def attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """What YaRN multiplies queries and keys by, each, unless it is told."""

    def of(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1)
