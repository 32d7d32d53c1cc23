"""Rows of a report, one measurement each, written as they come."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def add_row(
    report: dict[str, Any],
    out: Path,
    row: dict[str, Any],
    measure: Callable[[], dict[str, Any]],
    end: float,
) -> None:
    """Measure a row, or say in it why not, and write the report.

    Args:
        row: what it is of.
        measure: what to add to it.
        end: of the time, by the monotonic clock.
    """
    if time.monotonic() > end:
        row |= {"error": "no time left"}
    else:
        try:
            row |= measure()
        except Exception as error:  # another's kernel may fail in its own way
            row |= {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        torch.cuda.empty_cache()
    report["rows"].append(row)
    print(json.dumps(row), flush=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
