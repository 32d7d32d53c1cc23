"""Lighthouse Attention in a model of transformers, for training.

    from lighthouse import LighthouseConfig
    from lighthouse.transformers import use_dense, use_lighthouse

    use_lighthouse(model, LighthouseConfig(topk=2048), dense_layers=[0, 1, 30, 31])
    ...                 # most of training
    use_dense(model)    # the tail, and whatever comes after: scaled_dot_product_attention

Weights stay those of the model, so that they save and load as before, whichever attention is on.
Any decoder whose attention goes through transformers' ``AttentionInterface`` will do: a Llama, a
Mistral without a window, a Qwen3.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from lighthouse.attention import LighthouseAttention, dense_attention
from lighthouse.config import LighthouseConfig, WindowConfig

NAME = "lighthouse"
"""What ``model.config._attn_implementation`` is while Lighthouse Attention is on."""

_MODULE = "_lighthouse"


class _Dense(nn.Module):
    """The attention of the sub-sequence, and of dense layers."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, enable_gqa: bool = False) -> Tensor:
        return dense_attention(q, k, v, enable_gqa=enable_gqa)


def use_lighthouse(
    model: Any,
    config: LighthouseConfig | WindowConfig,
    *,
    dense_layers: Collection[int] = (),
    impl: str = "auto",
) -> None:
    """Let the layers of a model run Lighthouse Attention, or attend in a window.

    Sequences must be plain: none padded, none packed with a mask between documents, no cache.
    ``config.validate`` says which lengths fit, ``config.next_len`` the next that does.

    Args:
        model: of transformers, such as a ``LlamaForCausalLM``.
        config: of each layer that is not dense.
        dense_layers: layers that stay dense.
        impl: as in :func:`lighthouse.lighthouse_attention`.

    Raises:
        ValueError: a layer that is not there, or a model whose attention can't be replaced.
    """
    # Not imported above: the library does without.
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    layers = {m.layer_idx: m for m in model.modules() if _is_attention(m)}
    if not layers:
        raise ValueError(
            f"model = {type(model).__name__}: has no layers of self-attention that go through "
            "transformers' AttentionInterface; use a decoder such as a Llama"
        )
    strangers = sorted({*dense_layers} - layers.keys())
    if strangers:
        raise ValueError(
            f"dense_layers = {sorted(dense_layers)}: layer {strangers[0]} does not exist; the "
            f"model has layers 0..{max(layers)}"
        )
    AttentionInterface.register(NAME, _attention)
    # With the masks of sdpa, which are None where attention is plainly causal.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    for layer, module in layers.items():
        attention = LighthouseAttention(config, _Dense(), impl)
        attention.dense = layer in dense_layers
        # Beside the submodules: it has no weights, and must not show in the model's names.
        object.__setattr__(module, _MODULE, attention)


def use_dense(model: Any) -> None:
    """Go back to ``scaled_dot_product_attention``; :func:`use_lighthouse` may be called again."""
    model.set_attn_implementation("sdpa")


def _is_attention(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("layer_idx", "q_proj", "k_proj", "scaling"))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer.

    Args:
        query: (B, Hq, N, D), rotated.
        key, value: (B, Hkv, N, D).

    Returns:
        (B, N, Hq, D), and no attention weights.

    Raises:
        ValueError: for what is not plain causal attention of a whole sequence.
    """
    attention: LighthouseAttention | None = getattr(module, _MODULE, None)
    if attention is None:
        raise ValueError(
            f"attn_implementation = {NAME!r}: the layer has no parameters for it; call "
            "lighthouse.transformers.use_lighthouse(model, config)"
        )
    if attention_mask is not None:
        raise ValueError(
            "attention_mask: some tokens are hidden from others, and Lighthouse Attention is "
            "plainly causal; train on sequences without padding and without boundaries between "
            "documents"
        )
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            f"{query.shape[2]} queries and {key.shape[2]} keys: Lighthouse Attention is for "
            "training on whole sequences; call lighthouse.transformers.use_dense(model) to generate"
        )
    usual = query.shape[3] ** -0.5
    asked = {
        "dropout": (dropout, 0.0),
        "scaling": (usual if scaling is None else scaling, usual),
        "sliding_window": (kwargs.get("sliding_window"), None),
        "softcap": (kwargs.get("softcap"), None),
    }
    for name, (value_asked, only) in asked.items():
        if value_asked != only:
            raise ValueError(f"{name} = {value_asked}: must be {only} with Lighthouse Attention")
    out = attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1])
    return out.transpose(1, 2).contiguous(), None
