"""A Llama in Hugging Face's ``config.json``, and in torchtitan's arguments: where the two meet.

Reading needs json alone. A key of ``config.json`` that changes what the weights compute is either
represented or refused; the others (``use_cache``, ``initializer_range``) are left alone.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lighthouse.runs.files import read_file
from lighthouse.titan.llama3.description import (
    MOST,
    SCALING,
    attention_factor,
    bounds,
    describe,
    titans,
)

CONFIG_FILE = "config.json"

HUGGING_FACE = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "ffn_dim": "intermediate_size",
    "vocab_size": "vocab_size",
    "tied": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}
"""Names in ``[model.args]`` that are others in ``config.json``, and what they are there."""

SIZES = frozenset(HUGGING_FACE) - {"norm_eps"}
"""What the number and the shapes of the weights follow from."""

_MODELS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}
"""Models that are Llamas, and what transformers takes where their ``config.json`` lacks a key."""

_NAMED = {
    "qwen2": "its queries, keys and values have biases",
    "qwen3": "it normalizes queries and keys",
}
"""Models that are nearly Llamas, and what they have beyond."""

_ALONE: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "is the only activation"),
    "attention_bias": (False, "there are no biases"),
    "mlp_bias": (False, "there are no biases"),
    "attention_dropout": (0.0, "there is no dropout"),
    "partial_rotary_factor": (1.0, "all channels of a head are rotated"),
    "sliding_window": (None, "every layer attends to all tokens before"),
    "quantization_config": (None, "weights are trained as they are"),
}
"""The value that a key must have, or be without, and why."""

_SAID_OTHERWISE = ("rope_parameters", "original_max_position_embeddings", "dtype", "_name_or_path")
"""Keys of a ``config.json`` that others replace, or that are of another folder."""


def read_config(folder: Path, key: str) -> dict[str, Any]:
    """A folder's ``config.json``.

    Args:
        key: that names the folder, for messages.

    Raises:
        ValueError: there is none, or it is not JSON; names the key and the folder.
    """
    try:
        found: Any = json.loads(read_file(folder / CONFIG_FILE).decode())
    except OSError as error:
        raise ValueError(
            f"{key} = {str(folder)!r}: its {CONFIG_FILE} can't be read ({error.strerror}); name a "
            "folder of a model in Hugging Face's format"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{key} = {str(folder)!r}: its {CONFIG_FILE} is not JSON: {error}"
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{key} = {str(folder)!r}: its {CONFIG_FILE} is no JSON object")
    return found


def config_of(args: Any, dtype: str, begun: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of a model, which transformers 4 and 5 read.

    Args:
        args: torchtitan's ``TransformerModelArgs``; ``max_seq_len`` are its positions.
        dtype: of the weights.
        begun: the ``config.json`` that its training began with, or empty. What no key here says,
            such as ``initializer_range``, stays as it was there.
    """
    described = describe(args)
    kind = described["rope_scaling.rope_type"]
    scaling = {"rope_type": kind} | {k: described[f"rope_scaling.{k}"] for k in SCALING[kind]}
    if scaling.get("truncate") is True:  # as where it is left out, and transformers 4 warns of it
        del scaling["truncate"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: value for key, value in begun.items() if key not in _SAID_OTHERWISE},
        **{theirs: described[ours] for ours, theirs in HUGGING_FACE.items()},
        "head_dim": args.dim // args.n_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": args.max_seq_len,
        "rope_theta": float(args.rope_theta),
        "rope_scaling": None if kind == "none" else scaling,
        "torch_dtype": dtype,
    }


def args_of_config(folder: Path, key: str = "model.hf_assets_path") -> Any:
    """torchtitan's ``TransformerModelArgs`` of a folder's ``config.json``.

    Args:
        key: that names the folder, for messages.

    Raises:
        ValueError: there is none, or it describes what llama3 can't be; names the key of
            ``config.json``, its value and what would do.
    """
    # Not imported above: torchtitan's configuration imports this module.
    from torchtitan.models.llama3 import TransformerModelArgs
    from torchtitan.models.llama3.model.args import RoPEScalingArgs

    reader = _Reader(read_config(folder, key), f"{key} = {str(folder)!r}: {CONFIG_FILE} has ")
    reader.check()
    theta, scaling = reader.rope()
    return TransformerModelArgs(
        **{name: reader.size(HUGGING_FACE[name], most) for name, most in MOST.items()},
        tied=reader.flag("tie_word_embeddings"),
        norm_eps=reader.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling_args=RoPEScalingArgs(**titans(scaling)),
        max_seq_len=reader.size("max_position_embeddings"),
    )


class _Reader:
    """The values of a ``config.json``, or the refusal that names the key.

    Args:
        values: of the file.
        where: begins each refusal.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._where = where
        kind = values.get("model_type")
        if not isinstance(kind, str) or kind not in _MODELS:
            near = _NAMED.get(kind) if isinstance(kind, str) else None
            beyond = f"{near}, which llama3 does not; " if near else ""
            known = " or ".join(map(json.dumps, _MODELS))
            raise self._refusal("model_type", kind, f"{beyond}must be {known}")
        self._values = _MODELS[kind] | values

    def check(self) -> None:
        """Refuse what a Llama can't be."""
        for key, (only, why) in _ALONE.items():
            value = self._values.get(key)
            if value is not None and value != only:
                raise self._refusal(
                    key, value, f"in llama3 {why}; must be {json.dumps(only)}, or left out"
                )
        layers = self._values.get("layer_types") or []
        if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
            raise self._refusal(
                "layer_types",
                layers,
                'in llama3 layers are alike; all must be "full_attention"',
            )
        dim, heads = self.size("hidden_size"), self.size("num_attention_heads")
        kv_heads, head_dim = self.size("num_key_value_heads"), self._values.get("head_dim")
        if head_dim is not None and head_dim * heads != dim:
            raise self._refusal(
                "head_dim",
                head_dim,
                f"in llama3 it is hidden_size / num_attention_heads; must be {dim / heads:g}",
            )
        if dim % (2 * heads):
            raise self._refusal(
                "num_attention_heads",
                heads,
                f"hidden_size = {dim} must be an even number of channels for each head",
            )
        if heads % kv_heads:
            raise self._refusal(
                "num_key_value_heads", kv_heads, f"must divide num_attention_heads = {heads}"
            )

    def rope(self) -> tuple[float, dict[str, Any]]:
        """Base of the wavelengths, and how they are stretched, with what transformers adds.

        transformers 4 writes rope_theta and rope_scaling, transformers 5 rope_parameters.
        """
        name = "rope_scaling" if self._values.get("rope_scaling") else "rope_parameters"
        table = self._values.get(name) or {}
        if not isinstance(table, dict) or any(isinstance(v, dict) for v in table.values()):
            raise self._refusal(name, table, "in llama3 all layers are rotated alike; must be one")
        kind = table.get("rope_type", table.get("type", "default"))
        kind = "none" if kind == "default" else kind
        if not isinstance(kind, str) or kind not in SCALING:
            known = ", ".join(["default", *(kind for kind in SCALING if kind != "none")])
            raise self._refusal(f"{name}.rope_type", kind, f"must be one of {known}")
        if table.get("partial_rotary_factor") not in (None, 1):
            raise self._refusal(
                f"{name}.partial_rotary_factor",
                table["partial_rotary_factor"],
                f"in llama3 {_ALONE['partial_rotary_factor'][1]}; must be 1.0, or left out",
            )

        def number(key: str, default: Any = None, source: Mapping[str, Any] = table) -> Any:
            value = source.get(key)
            return self._positive(f"{name}.{key}", default if value is None else value)

        theta = number("rope_theta", self.number("rope_theta", 10000.0))
        length = self.size("max_position_embeddings")
        original = self.number("original_max_position_embeddings", None, required=False)
        original = original or number("original_max_position_embeddings", length)
        scaling: dict[str, Any] = {"rope_type": kind, "original_max_position_embeddings": original}
        if kind != "none":
            scaling["factor"] = number("factor", length / original if kind == "yarn" else None)
        if kind == "llama3":
            low, high = number("low_freq_factor"), number("high_freq_factor")
            if high <= low:
                raise self._refusal(f"{name}.high_freq_factor", high, f"must be more than {low}")
            scaling |= {"low_freq_factor": low, "high_freq_factor": high}
        if kind == "yarn":
            scales = ("mscale", "mscale_all_dim")
            given = [number(key) if table.get(key) else None for key in scales]
            usual = attention_factor(scaling["factor"], *given)
            scaling |= {
                "attention_factor": number("attention_factor", usual),
                "beta_fast": number("beta_fast", 32.0),
                "beta_slow": number("beta_slow", 1.0),
                "truncate": self._flag(f"{name}.truncate", table.get("truncate", True)),
            }
        return theta, scaling

    def size(self, key: str, most: int | None = None) -> int:
        """A whole number, at most ``most``; that of key/value heads may be left out."""
        value = self._values.get(key)
        if value is None and key == "num_key_value_heads":
            value = self._values.get("num_attention_heads")
        found: int = self._positive(key, value, whole=True)
        if most is not None and found > most:
            raise self._refusal(key, value, f"must be at most {most}")
        return found

    def number(self, key: str, default: float | None, required: bool = True) -> Any:
        value = self._values.get(key)
        if value is None and not required:
            return None
        return self._positive(key, default if value is None else value)

    def flag(self, key: str) -> bool:
        return self._flag(key, self._values.get(key) or False)

    def _flag(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._refusal(key, value, "must be true or false")
        return value

    def _positive(self, key: str, value: Any, whole: bool = False) -> Any:
        kinds: Any = int if whole else (int, float)
        # NaN and infinity are no JSON, but Python reads and writes them.
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
            number = "a whole number" if whole else "a number"
            raise self._refusal(key, value, f"must be {number}, more than 0")
        least, most = bounds(key)
        if not whole and not least <= value <= most:
            raise self._refusal(key, value, f"must be at least {least} and at most {most}")
        return value

    def _refusal(self, key: str, value: Any, why: str) -> ValueError:
        said = "no " + key if value is None else f"{key} = {json.dumps(value)}"
        return ValueError(f"{self._where}{said}: {why}")
