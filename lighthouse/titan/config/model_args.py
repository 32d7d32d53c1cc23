"""``[model.args]``: sizes of a model of one's own, on top of a flavor.

torchtitan's ``JobConfig`` imports this module, so it must not import torchtitan. Field types are
read at run time: no ``from __future__ import annotations`` here.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


@dataclass
class RopeScaling:
    """Hugging Face's names; what is unset is the flavor's."""

    rope_type: Literal["none", "llama3"] | None = None
    """Stretch the rotary positions as Llama 3.1 does, or not at all; unset: the flavor's"""

    factor: float | None = None
    """How far long wavelengths are stretched"""

    low_freq_factor: float | None = None
    """original_max_position_embeddings / this: wavelengths above are stretched"""

    high_freq_factor: float | None = None
    """original_max_position_embeddings / this: wavelengths below are not"""

    original_max_position_embeddings: int | None = None
    """Tokens of a sequence before the stretch"""


@dataclass
class ModelArgs:
    """What differs from ``model.flavor``; unset: as there."""

    dim: int | None = None
    """Width of the residual stream"""

    n_layers: int | None = None
    """Number of layers"""

    n_heads: int | None = None
    """Query heads, of dim / n_heads channels each"""

    n_kv_heads: int | None = None
    """Key/value heads, a divisor of n_heads"""

    ffn_dim: int | None = None
    """Width inside the feed-forward, to the unit"""

    vocab_size: int | None = None
    """Tokens that the embedding and the output layer know"""

    norm_eps: float | None = None
    """Added to the mean square in each norm"""

    rope_theta: float | None = None
    """Base of the rotary wavelengths"""

    rope_scaling: RopeScaling = field(default_factory=RopeScaling)


_ROPE_NAMES = {
    "factor": "scaling_factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
}
"""Hugging Face's name and torchtitan's."""


def model_args_of(job_config: "JobConfig") -> Any:
    """torchtitan's model arguments of a job: those of its flavor, but for ``[model.args]``.

    Raises:
        ValueError: no such flavor, or sizes that make no model; names the key.
    """
    # Not imported above: torchtitan's configuration imports this module.
    from torchtitan.protocols.train_spec import get_train_spec

    model = job_config.model
    known = get_train_spec(model.name).model_args
    if model.flavor not in known:
        raise ValueError(f"model.flavor = {model.flavor!r}: must be one of {', '.join(known)}")
    of_flavor = known[model.flavor]
    told = {k: v for k, v in dataclasses.asdict(model.args).items() if v is not None}
    scaling = {k: v for k, v in told.pop("rope_scaling").items() if v is not None}
    if not told and not scaling:
        return of_flavor
    if model.name != "llama3":
        key = next(iter(told), "rope_scaling")
        raise ValueError(f"model.args.{key}: model.name = {model.name!r} has only its flavors")
    for key, value in told.items():
        if value <= 0:
            raise ValueError(f"model.args.{key} = {value}: must be more than 0")
    if scaling:
        told["rope_scaling_args"] = _scaling_args(of_flavor.rope_scaling_args, scaling)
    changed = dataclasses.replace(of_flavor, **told)
    _check_heads(changed)
    return changed


def _scaling_args(of_flavor: Any, scaling: dict[str, Any]) -> Any:
    kind = scaling.pop("rope_type", "llama3")
    for key, value in scaling.items():
        if kind == "none":
            raise ValueError(
                f"model.args.rope_scaling.{key} = {value}: means nothing with rope_type = 'none'; "
                "leave it out"
            )
        if value <= 0:
            raise ValueError(f"model.args.rope_scaling.{key} = {value}: must be more than 0")
    if kind == "none":
        return dataclasses.replace(of_flavor, scaling_factor=1.0)
    changed = dataclasses.replace(of_flavor, **{_ROPE_NAMES[k]: v for k, v in scaling.items()})
    if changed.high_freq_factor <= changed.low_freq_factor:
        raise ValueError(
            f"model.args.rope_scaling.high_freq_factor = {changed.high_freq_factor}: must be more "
            f"than low_freq_factor = {changed.low_freq_factor}"
        )
    return changed


def _check_heads(args: Any) -> None:
    kv_heads = args.n_kv_heads or args.n_heads
    if args.dim % (2 * args.n_heads):
        raise ValueError(
            f"model.args.n_heads = {args.n_heads}: dim = {args.dim} must be an even number of "
            "channels for each head"
        )
    if args.n_heads % kv_heads:
        raise ValueError(
            f"model.args.n_kv_heads = {kv_heads}: must divide n_heads = {args.n_heads}"
        )
