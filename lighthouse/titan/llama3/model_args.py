"""What a job's model is: its flavor, or a folder's config.json, and ``[model.args]`` on top.

torchtitan's ``JobConfig`` imports this module, so it must not import torchtitan. Field types are
read at run time: no ``from __future__ import annotations`` here.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lighthouse.titan.llama3.config_json import args_of_config
from lighthouse.titan.llama3.description import (
    MOST,
    SCALING,
    attention_factor,
    bounds,
    describe,
    titans,
)

if TYPE_CHECKING:
    from torchtitan.config import JobConfig


@dataclass
class RopeScaling:
    """Hugging Face's names; what is unset is the flavor's."""

    rope_type: Literal["none", "linear", "llama3", "yarn"] | None = None
    """
    Stretch the rotary positions not at all, all alike, as Llama 3.1 does or as YaRN; unset: the
    flavor's
    """

    factor: float | None = None
    """How far long wavelengths are stretched"""

    low_freq_factor: float | None = None
    """original_max_position_embeddings / this: wavelengths above are stretched"""

    high_freq_factor: float | None = None
    """original_max_position_embeddings / this: wavelengths below are not"""

    original_max_position_embeddings: int | None = None
    """Tokens of a sequence before the stretch"""

    attention_factor: float | None = None
    """YaRN multiplies queries and keys by it, each; unset: 0.1 * ln(factor) + 1"""

    beta_fast: float | None = None
    """YaRN leaves pairs as they are that turn more often in the original length; unset: 32"""

    beta_slow: float | None = None
    """YaRN stretches pairs fully that turn less often in the original length; unset: 1"""


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

    tied: bool | None = None
    """The output layer has the embedding's weights"""

    norm_eps: float | None = None
    """Added to the mean square in each norm"""

    rope_theta: float | None = None
    """Base of the rotary wavelengths"""

    rope_scaling: RopeScaling = field(default_factory=RopeScaling)


HF = "hf"
"""The flavor that is what ``config.json`` in ``model.hf_assets_path`` says."""


def model_args_of(job_config: "JobConfig") -> Any:
    """torchtitan's model arguments of a job: those of its flavor, but for ``[model.args]``.

    Raises:
        ValueError: no such flavor, a ``config.json`` that describes no Llama, or sizes that make no
            model; names the key.
    """
    section = job_config.model
    of_flavor = flavor_args_of(job_config)
    told = {k: v for k, v in dataclasses.asdict(section.args).items() if v is not None}
    scaling = {k: v for k, v in told.pop("rope_scaling").items() if v is not None}
    if not told and not scaling:
        return of_flavor
    if section.name != "llama3":
        key = next(iter(told), "rope_scaling")
        raise ValueError(f"model.args.{key}: model.name = {section.name!r} has only its flavors")
    for key, value in told.items():
        if key != "tied":
            _check_number(key, value)
    if scaling:
        told["rope_scaling_args"] = _scaling_args(of_flavor.rope_scaling_args, scaling)
    changed = dataclasses.replace(of_flavor, **told)
    _check_heads(changed)
    return changed


def flavor_args_of(job_config: "JobConfig") -> Any:
    """torchtitan's model arguments of a job's flavor, whatever ``[model.args]`` changes.

    A copy each time: the trainer sets the job's length in them, and the next job of the process
    would have it too.

    Raises:
        ValueError: as :func:`model_args_of`.
    """
    # Not imported above: torchtitan's configuration imports this module.
    from torchtitan.protocols.train_spec import get_train_spec

    section = job_config.model
    known = get_train_spec(section.name).model_args
    if section.flavor == HF and section.name == "llama3":
        return args_of_config(Path(section.hf_assets_path))
    if section.flavor not in known:
        names = [*known, *([HF] if section.name == "llama3" else [])]
        raise ValueError(f"model.flavor = {section.flavor!r}: must be one of {', '.join(names)}")
    return copy.deepcopy(known[section.flavor])


def told_args(job_config: "JobConfig") -> list[str]:
    """What ``[model.args]`` makes other than the flavor is, a sentence for each key."""
    if job_config.model.name != "llama3":
        return []
    flavor = job_config.model.flavor
    was, now = describe(flavor_args_of(job_config)), describe(model_args_of(job_config))
    of = "config.json" if flavor == HF else f"model.flavor = {flavor!r}"
    return [
        f"model.args.{key} = {value!r}, on purpose: {of} has {was.get(key, 'none')!r}"
        for key, value in now.items()
        if was.get(key) != value
    ]


def _scaling_args(of_flavor: Any, scaling: dict[str, Any]) -> Any:
    kind = scaling.get("rope_type", of_flavor.rope_type)
    for key, value in scaling.items():
        if key == "rope_type":
            continue
        if key not in SCALING[kind]:
            raise ValueError(
                f"model.args.rope_scaling.{key} = {value}: means nothing with rope_type = "
                f"{kind!r}; leave it out, or set rope_type to one that it is for"
            )
        _check_number(f"rope_scaling.{key}", value)
    if kind != of_flavor.rope_type:
        if kind != "none" and "factor" not in scaling:
            raise ValueError(
                f"model.args.rope_scaling.rope_type = {kind!r}: needs a factor, such as the "
                "longest stage's seq_len over original_max_position_embeddings"
            )
        # Nothing of the flavor's way to stretch stays, but where its positions ended.
        length = of_flavor.original_max_position_embeddings
        of_flavor = type(of_flavor)(original_max_position_embeddings=length)
    changed = dataclasses.replace(of_flavor, **titans(scaling | {"rope_type": kind}))
    if kind == "yarn" and "attention_factor" not in scaling:
        changed.attention_factor = attention_factor(changed.scaling_factor)
    if kind == "llama3" and changed.high_freq_factor <= changed.low_freq_factor:
        raise ValueError(
            f"model.args.rope_scaling.high_freq_factor = {changed.high_freq_factor}: must be more "
            f"than low_freq_factor = {changed.low_freq_factor}"
        )
    return changed


def _check_number(key: str, value: float) -> None:
    least, most = (1, MOST[key]) if key in MOST else bounds(key)
    if not 0 < value < math.inf:
        raise ValueError(f"model.args.{key} = {value}: must be more than 0, and finite")
    if not least <= value <= most:
        limit = f"at most {most}" if value > most else f"at least {least}"
        raise ValueError(f"model.args.{key} = {value}: must be {limit}")


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
