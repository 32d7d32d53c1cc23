"""Which parameters of a test are in the quick tier."""

from collections.abc import Iterable
from typing import Any

import pytest


def tiers(parameters: Iterable[Any], *quick: Any) -> list[Any]:
    """The parameters of a test: the quick ones as they are, all others marked thorough."""
    parameters = list(parameters)
    assert bool(parameters) == bool(quick) and all(x in parameters for x in quick), quick
    mark = pytest.mark.thorough
    return [x if x in quick else pytest.param(x, marks=mark) for x in parameters]
