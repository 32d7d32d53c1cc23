"""The trainer's command line: lists as they are printed, and one sentence on what is wrong.

torchtitan's ``ConfigManager`` imports this module, so it must not import torchtitan.
"""

import ast
import contextlib
import functools
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, get_args, get_origin

import tyro

# What Python and tyro say of a value of another type.
_NOT_OF_TYPE = {
    r"invalid literal for int\(\) with base 10: ('.*?')": r"\1 is no whole number",
    r"could not convert string to float: ('.*?')": r"\1 is no number",
    r"no type matching (\S+) could be instantiated from \[(.*?)\]\. Got errors:.*": r"\2 is no \1",
    r"is no (\{None\}\|)?INT\b": "is no whole number",
    r"is no (\{None\}\|)?FLOAT(\|INT)?\b": "is no number",
    r"Missing value for argument '(\S+)'\. Expected 1 values\.": r"\1: needs a value behind it",
}
_MOST_MEANT = 3
CONFIG_FILE = ("--job.config_file", "--job.config-file")
_TABLES = "--training.sources"


def list_of(words: Sequence[str]) -> list[Any]:
    """The list that the words of a flag are: ``[0, 3]`` or ``['a', 'b']``, as messages print it.

    In one word or in several, as a shell leaves it. Without brackets the words are the items, or
    what stands between their commas.

    Raises:
        ValueError: brackets that don't match.
    """
    text = " ".join(words).strip()
    if not text.startswith("["):
        return [item for word in words for item in word.split(",") if item]
    if not text.endswith("]"):
        raise ValueError(f"{text} has no ] at its end")
    with contextlib.suppress(ValueError, SyntaxError):
        found = ast.literal_eval(text)
        if isinstance(found, list):
            return found
    items = text[1:-1].split(",")  # a shell has taken the quotes
    return [item.strip().strip("'\"") for item in items if item.strip()]


def _inner_list(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} must be a list inside the list")
    return [str(item) for item in value]


_ITEMS: dict[Any, Callable[[Any], Any]] = {
    int: lambda value: int(str(value)),  # not of a float, which would be cut
    float: float,
    str: str,
    list[str]: _inner_list,
}
_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _list_rule(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """All lists alike, where upstream has some with commas and tyro the others with blanks."""
    is_list = get_origin(type_info.type) is list
    item = _ITEMS.get(get_args(type_info.type)[0]) if is_list else None
    if item is None:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[A, B, ...]",
        instance_from_str=lambda words: [item(value) for value in list_of(words)],
        is_instance=lambda value: isinstance(value, list),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def wrong_in_one_sentence(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``tyro.cli``: a flag that is wrong is a ``ValueError``, and lists are `list_of`.

    tyro prints a box and exits, in every process of a run.
    """

    @functools.wraps(parse)
    def parsed(*args: Any, **kwargs: Any) -> Any:
        said = io.StringIO()
        words = kwargs.get("args", sys.argv[1:])
        _check_one_file(words)
        _check_no_tables(words)
        if "default" in kwargs and len(words) == 2 and words[0] in CONFIG_FILE:
            # Nothing to add to what the file says; a sweep parses once for each of its runs.
            kwargs["default"].job.config_file = words[1]
            return kwargs["default"]
        try:
            with contextlib.redirect_stderr(said):
                result = parse(*args, **kwargs | {"registry": _registry})
        except SystemExit as exit_:
            if exit_.code:
                raise ValueError(sentence_of(said.getvalue(), words)) from None
            raise
        sys.stderr.write(said.getvalue())
        return result

    return parsed


def sentence_of(box: str, words: Sequence[str] = ()) -> str:
    """What a box of tyro's says of a command line: its first paragraph, and what would do.

    Args:
        box: of tyro's.
        words: the command line.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines()]
    # Without UTF-8 there is no frame, but a rule below the title.
    inside = "\n".join(line for line in lines if not line.startswith(("╭", "╰")))
    parts = re.split(r"^[─-]{3,}$", inside, flags=re.MULTILINE)
    first, *others = parts if "╭" in plain else parts[1:] or parts
    sentence = " ".join(first.split())
    meant = re.findall(r"^(--[\w.-]+)", "\n".join(others), flags=re.MULTILINE)
    if sentence.startswith("Unrecognized"):
        if found := _switch_with_value(sentence, words) or _second_value(sentence, words):
            return found
        if names := [name for name in dict.fromkeys(meant) if name != "--help"][:_MOST_MEANT]:
            sentence += f"; perhaps {' or '.join(names)} was meant"
    for pattern, instead in _NOT_OF_TYPE.items():
        sentence = re.sub(pattern, instead, sentence)
    # Keys are written with underscores in files, and tyro takes both.
    return re.sub(r"--[\w.-]+", lambda flag: _as_key(flag.group()), sentence)


def _switch_with_value(sentence: str, words: Sequence[str]) -> str | None:
    """What to say where all that is not known stands behind options that have no value."""
    unknown = sentence.partition(": ")[2].split(", ")
    if any(word.startswith("--") for word in unknown):
        return None
    for before, word in zip(["", *words], words, strict=False):
        option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        if value in unknown and option.startswith("--") and "=" not in option:
            section, _, name = _as_key(option).rpartition(".")
            return (
                f"{_as_key(option)} {value}: an option without a value; leave {value!r} out, or "
                f"write {section}.no-{name.removeprefix('no-')} to turn it off"
            )
    return None


def _second_value(sentence: str, words: Sequence[str]) -> str | None:
    """What to say of a word that belongs to no option, or stands behind one that has its value."""
    first = sentence.partition(": ")[2].split(", ")[0]
    if first.startswith("-") or first not in words:
        return None
    at = list(words).index(first)
    option = next((word for word in reversed(words[:at]) if word.startswith("--")), None)
    if option is None:
        return f"{first}: is no option; write --SECTION.KEY VALUE, or see --help"
    key = _as_key(option.partition("=")[0])
    given = " ".join([option, *words[list(words).index(option) + 1 : at + 1]])
    return f"{given}: {key} has one value; leave {first!r} out, or quote what belongs together"


def _check_one_file(words: Sequence[str]) -> None:
    """Refuse a second configuration file, which upstream would not read."""
    files = [
        word.partition("=")[2] if "=" in word else following
        for word, following in pairwise([*words, ""])
        if word.partition("=")[0] in CONFIG_FILE
    ]
    if len(files) > 1:
        raise ValueError(
            f"--job.config_file is given {len(files)} times, as {' and '.join(map(repr, files))}; "
            "give one, which may extend another by [job] extends"
        )


def _check_no_tables(words: Sequence[str]) -> None:
    """Refuse a flag for tables, of which tyro says that they are fixed, or not known."""
    for word in words:
        option = word.partition("=")[0]
        if option == _TABLES or option.startswith(f"{_TABLES}."):
            raise ValueError(
                f"{option}: {_TABLES.removeprefix('--')} is a list of tables, which a TOML alone "
                "has; write a file that sets it and extends yours by [job] extends"
            )


def _as_key(flag: str) -> str:
    """An option as its key is written, with underscores; ``no-`` keeps its own."""
    section, _, name = flag.removeprefix("--").rpartition(".")
    no = "no-" if name.startswith("no-") else ""
    key = f"{section}.".replace("-", "_") + no + name.removeprefix("no-").replace("-", "_")
    return f"--{key}" if section else flag
