"""What documents leave of attention in each stage, as a survey of the text has counted."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lighthouse.titan.config.stages import Stage

if TYPE_CHECKING:
    from torchtitan.config import JobConfig

HOW = "python -m lighthouse.data check RUN.toml --json > FILE"

PairsLeft = Callable[[Stage], float | None]


def unknown_pairs(job_config: "JobConfig") -> PairsLeft:
    """Without a survey: all pairs, as of one document a sequence; None without documents."""
    pairs = 1.0 if job_config.training.document_mask else None
    return lambda _: pairs


def surveyed_pairs(job_config: "JobConfig", file: str) -> PairsLeft:
    """Share of a causal sequence's pairs that documents leave in a stage.

    Args:
        file: JSON of ``python -m lighthouse.data check`` for this job.

    Raises:
        ValueError: no such file, or one that says nothing of a stage's sequences.
    """
    from lighthouse.titan.data.document_packing import Packing

    if not job_config.training.document_mask:
        raise ValueError(
            f"--survey {file}: says nothing without training.document_mask = true; leave it out"
        )
    try:
        with open(file, encoding="utf-8") as opened:
            sources: list[dict[str, Any]] = json.load(opened)
        surveyed = [
            {(p["seq_len"], p["multiple"]): p["pairs"] * source["share"] for p in source["packed"]}
            for source in sources
        ]
    except OSError as error:
        raise ValueError(f"--survey {file}: {error.strerror}; make it with {HOW}") from None
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"--survey {file}: is no survey of a run; make it with {HOW}") from None

    def pairs(stage: Stage) -> float:
        packing = Packing.of_training(job_config, stage)
        kind = packing.seq_len, packing.multiple
        if not surveyed or any(kind not in source for source in surveyed):
            raise ValueError(
                f"--survey {file}: has no sequences of {kind[0]:,} tokens with documents at "
                f"multiples of {kind[1]}, as stage {stage.number} reads; make it with {HOW}"
            )
        return sum(source[kind] for source in surveyed)

    return pairs
