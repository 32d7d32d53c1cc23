"""The trainer's command line, of which tyro says in a box what is wrong."""

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable
from typing import Any


def wrong_in_one_sentence(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``tyro.cli``, so that a flag that is wrong is a ``ValueError``.

    tyro prints a box and exits, in every process of a run.
    """

    @functools.wraps(parse)
    def parsed(*args: Any, **kwargs: Any) -> Any:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                result = parse(*args, **kwargs)
        except SystemExit as exit_:
            if exit_.code:
                raise ValueError(sentence_of(said.getvalue())) from None
            raise
        sys.stderr.write(said.getvalue())
        return result

    return parsed


def sentence_of(box: str) -> str:
    """What a box of tyro's says: its first paragraph, and the flags that it suggests instead."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines()]
    # Without UTF-8 there is no frame, but a rule below the title.
    inside = "\n".join(line for line in lines if not line.startswith(("╭", "╰")))
    parts = re.split(r"^[─-]{3,}$", inside, flags=re.MULTILINE)
    first, *others = parts if "╭" in plain else parts[1:] or parts
    sentence = " ".join(first.split())
    meant = re.findall(r"^(--[\w.-]+)", "\n".join(others), flags=re.MULTILINE)
    if sentence.startswith("Unrecognized") and meant:
        sentence += f"; perhaps {' or '.join(dict.fromkeys(meant))} was meant"
    return sentence
