"""The ``[lighthouse]`` section of a job's TOML and what it means for each layer.

torchtitan's ``JobConfig`` imports this module, so it must not import torchtitan. Field types are
read at run time: no ``from __future__ import annotations`` here.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from lighthouse.config import (
    LighthouseConfig,
    Scorer,
    SelectionKind,
    WindowConfig,
    nearest_multiple,
)

_NUMBER_KEYS = ("topk", "pooling_factor", "num_levels", "window")
LAYER_KEYS = (*_NUMBER_KEYS, "scorer", "selection")
"""What ``layer_overrides`` may set."""

LayerConfig = LighthouseConfig | WindowConfig | None
"""Of one layer; None for one that is always dense."""

_OVERRIDE = re.compile(r"(?P<first>\d+)(-(?P<last>\d+))?:(?P<settings>.+)")


@dataclass
class Lighthouse:
    enable: bool = False
    """
    Use Lighthouse Attention in all layers but dense_layers and window_layers; false trains dense
    throughout
    """

    num_levels: int = 3
    """L, levels of the pyramid, tokens included (at least 2)"""

    pooling_factor: int = 4
    """p, children per parent (at least 2)"""

    topk: int = 1536
    """k, entries refined per level, batch row and key/value head"""

    scorer: Scorer = "norm"
    """How tokens are scored"""

    selection: SelectionKind = "causal"
    """
    Tokens that decide whether an entry is refined: those under it (published), which lets a token's
    output tell of later ones, or as many that end with its first (causal)
    """

    dilation: int = 4
    """Interleaved subsequences of the dilated and gla scorers"""

    stratum: int = 128
    """m, entries refined per stratum (even); topk must be a multiple of it"""

    cover_prefix: bool = True
    """Always refine the first entry of each level, so that every token gets an output"""

    dense_layers: list[int] = field(default_factory=list)
    """Layers that keep dense attention throughout, for instance [0, 1, 28, 29]"""

    window: int | None = None
    """Tokens that a token of window_layers, or in a window stage, sees, its own among them"""

    window_layers: list[int] = field(default_factory=list)
    """Layers that attend in the window, at full resolution, instead of running Lighthouse"""

    dense_from_step: int | None = None
    """First step at which every layer is dense (steps count from 1); unset: never in this run"""

    num_chunks: int | None = None
    """
    Equal pieces of the sequence inside which everything but attention stays; unset: one on a
    single rank, under context parallelism as many as its ranks own
    """

    impl: Literal["auto", "reference", "triton"] = "auto"
    """Implementation of the steps around the dense call; auto takes the fastest for the device"""

    validate_dense: bool = False
    """In the Lighthouse stage, validation also reports the loss under dense attention"""

    validate_leak: int = 0
    """
    In the Lighthouse stage, validation also reports what the loss owes to later tokens, from this
    many pairs of batches with different futures; 0 for none
    """

    selection_log_freq: int = 0
    """Steps between statistics of the selection (a multiple of metrics.log_freq); 0 for none"""

    layer_overrides: list[str] = field(default_factory=list)
    """
    Per-layer values of topk, pooling_factor, num_levels, scorer, selection and window, each entry
    as "LAYER:key=value" or "FIRST-LAST:key=value key=value", for instance
    ["2-7:topk=4096", "8:scorer=gla num_levels=4"]. Later entries win.
    """


def num_chunks(section: Lighthouse, parallelism: Any) -> int:
    """Chunks of the sequence: each context-parallel rank owns one, or two with balancing.

    Args:
        section: the job's ``[lighthouse]``.
        parallelism: the job's ``[parallelism]``.

    Raises:
        ValueError: for a ``num_chunks`` that the ranks can't share out.
    """
    degree = parallelism.context_parallel_degree
    balanced = degree > 1 and bool(parallelism.context_parallel_load_balancer)
    least = 2 * degree if balanced else degree
    if section.num_chunks is None:
        return least
    if section.num_chunks < 1 or section.num_chunks % least:
        each = "two with" if balanced else "one without"
        raise ValueError(
            f"lighthouse.num_chunks = {section.num_chunks}: must be a positive multiple of "
            f"{least}, since parallelism.context_parallel_degree = {degree} ranks own {each} "
            f"head-tail balancing; nearest is {nearest_multiple(section.num_chunks, least)}"
        )
    return section.num_chunks


def layer_configs(
    section: Lighthouse,
    num_layers: int,
    seq_len: int,
    num_chunks: int = 1,
    length_section: str = "training",
) -> list[LayerConfig]:
    """The parameters of each layer, ``None`` for a layer that is always dense.

    Args:
        section: the job's ``[lighthouse]``.
        num_layers: layers of the model.
        seq_len: tokens per sequence over all ranks, which every layer must accept.
        num_chunks: chunks of the sequence over all ranks, see :func:`num_chunks`.
        length_section: the TOML section ``seq_len`` comes from, for messages.

    Raises:
        ValueError: for a value that does not fit, named as in the TOML.
    """
    for key in ("dense_layers", "window_layers"):
        for layer in getattr(section, key):
            if not 0 <= layer < num_layers:
                raise ValueError(
                    f"lighthouse.{key} = {getattr(section, key)}: layer {layer} does not exist; "
                    f"the model has layers 0..{num_layers - 1}"
                )
    both = sorted({*section.dense_layers} & {*section.window_layers})
    if both:
        raise ValueError(
            f"lighthouse.window_layers = {section.window_layers}: layer {both[0]} is one of "
            f"lighthouse.dense_layers = {section.dense_layers} too; name it in one of them"
        )
    overrides: list[dict[str, Any]] = [{} for _ in range(num_layers)]
    entries: list[list[str]] = [[] for _ in range(num_layers)]
    for entry in section.layer_overrides:
        layers, settings = _parse_override(entry, num_layers)
        if "window" in settings and not {*layers} & {*section.window_layers}:
            raise ValueError(
                f"lighthouse.layer_overrides = {entry!r}: none of its layers is one of "
                f"lighthouse.window_layers = {section.window_layers}, which alone attend in a "
                "window; name it there, or leave window out"
            )
        for layer in layers:
            overrides[layer] |= settings
            entries[layer].append(entry)
    fields = (f.name for f in dataclasses.fields(LighthouseConfig))
    base: dict[str, Any] = {name: getattr(section, name) for name in fields}
    base["num_chunks"] = num_chunks
    if len({*section.dense_layers, *section.window_layers}) < num_layers:
        _check(base, seq_len, length_section, "")
    configs: list[LayerConfig] = []
    for layer in range(num_layers):
        window = overrides[layer].pop("window", section.window)
        values = base | overrides[layer]
        named = ", ".join(map(repr, entries[layer]))
        where = f"lighthouse.layer_overrides = {named}: " if named else ""
        if layer in section.window_layers:
            configs.append(_window_config(window, layer, section, where))
            continue
        if named:
            _check(values, seq_len, length_section, where)
        is_dense = layer in section.dense_layers
        configs.append(None if is_dense else LighthouseConfig(**values))
    return configs


def _window_config(window: Any, layer: int, section: Lighthouse, where: str) -> WindowConfig:
    if window is None:
        raise ValueError(
            f"lighthouse.window_layers = {section.window_layers}: layer {layer} has no window; set "
            "lighthouse.window to the tokens that a token sees, such as 4096"
        )
    try:
        return WindowConfig(window)
    except ValueError as error:
        raise ValueError(f"{where}lighthouse.{error}") from None


def _check(values: dict[str, Any], seq_len: int, length_section: str, where: str) -> None:
    try:
        LighthouseConfig(**values).validate(seq_len)
    except ValueError as error:
        message = str(error)
        section = length_section if message.startswith("seq_len") else "lighthouse"
        if length_section != "training" and section == "lighthouse":
            message = re.sub(r"\bseq_len\b", f"{length_section}.seq_len", message)
        raise ValueError(f"{where}{section}.{message}") from None


def _parse_override(entry: str, num_layers: int) -> tuple[range, dict[str, str | int]]:
    def refuse(why: str) -> ValueError:
        return ValueError(
            f"lighthouse.layer_overrides = {entry!r}: {why}; write LAYER:key=value or "
            f"FIRST-LAST:key=value key=value, with layers 0..{num_layers - 1} and keys "
            f"{', '.join(LAYER_KEYS)}"
        )

    match = _OVERRIDE.fullmatch(entry.strip())
    if not match:
        raise refuse("not understood")
    first = int(match["first"])
    last = int(match["last"] or first)
    if not first <= last < num_layers:
        raise refuse(f"no such layers {first}..{last}")
    values: dict[str, str | int] = {}
    for setting in match["settings"].split():
        key, _, value = setting.partition("=")
        if key not in LAYER_KEYS:
            raise refuse(f"unknown key {key!r}")
        if key in values:
            raise refuse(f"{key} is given twice")
        is_number = key in _NUMBER_KEYS
        if is_number and not value.isdecimal():
            raise refuse(f"{key} needs a whole number, got {value!r}")
        values[key] = int(value) if is_number else value
    return range(first, last + 1), values
