"""Model sizes that torchtitan's llama3 gains. Sizes only: experiments are values in a TOML.

torchtitan's feed-forward takes 2/3 of 4 * dim, times ``ffn_dim_multiplier``, rounded up to
``multiple_of``: for dim 1024 the multiplier 0.5625 (1535, rounded up by 256) gives 1536 exactly.
"""

from typing import Any, TypeVar

BYTE_VOCAB_SIZE = 264
"""256 bytes and 8 special tokens."""

Args = TypeVar("Args")

_BODY_530M = {
    "dim": 1024,
    "n_layers": 30,
    "n_heads": 8,
    "ffn_dim_multiplier": 0.5625,
    "multiple_of": 256,
    "rope_theta": 500000,
}
_SIZES: dict[str, dict[str, Any]] = {
    "530M": {**_BODY_530M, "vocab_size": 128256},
    "530M_byte": {**_BODY_530M, "vocab_size": BYTE_VOCAB_SIZE},
    # Small enough to train on a CPU in minutes.
    "tiny_byte": {
        "dim": 128,
        "n_layers": 4,
        "n_heads": 4,
        "multiple_of": 64,
        "rope_theta": 500000,
        "vocab_size": BYTE_VOCAB_SIZE,
    },
}


def flavors(args_cls: type[Args]) -> dict[str, Args]:
    """The flavors as instances of torchtitan's ``TransformerModelArgs``."""
    return {name: args_cls(**size) for name, size in _SIZES.items()}
