"""In which file the stages stand that a refusal is about; the one place where that is said.

torchtitan's ``ConfigManager`` imports this module, so it must not import torchtitan.
"""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lighthouse.titan.config.stage_tables import take_flags
from lighthouse.titan.config.toml_files import Layer

_ABOUT_STAGES = re.compile(r"\bstages?\b")
_OF_A_KEY = re.compile(r"stages\.\d+\.")


def names_file_of_stages(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``ConfigManager.parse_args``: a refusal about stages ends with their file.

    Whichever check it comes from. Not where a ``--stages.N.KEY`` is to blame: without those flags
    the file is taken, or refused for something else.
    """

    @functools.wraps(parse)
    def parsed(manager: Any, args: Sequence[str] | None = None) -> Any:
        words = sys.argv[1:] if args is None else args
        try:
            return parse(manager, words)
        except ValueError as error:
            said, layers = str(error), manager.toml_layers
            file = _file_of_stages(layers)
            named = any(said.endswith(f" (in {layer})") for layer, _ in layers)
            if file is None or named or not _ABOUT_STAGES.search(said):
                raise
            without, flags = take_flags(words)
            if flags and _refusal(parse, manager, without) != said:
                raise
            where = "in" if _OF_A_KEY.match(said) else "[[stages]] stand in"
            raise ValueError(f"{said} ({where} {file})") from error

    return parsed


def _file_of_stages(layers: Sequence[Layer]) -> Path | None:
    return next((file for file, values in reversed(layers) if "stages" in values), None)


def _refusal(parse: Callable[..., Any], manager: Any, words: Sequence[str]) -> str | None:
    try:
        parse(manager, words)
    except ValueError as error:
        return str(error)
    return None
