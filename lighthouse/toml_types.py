"""A TOML file, and the keys and types of its values, which torchtitan takes as they come."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def read_toml(file: Path) -> dict[str, Any]:
    """What stands in a file.

    Raises:
        ValueError: it is not TOML; names the file.
        OSError: it can't be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if text.startswith("\ufeff") or "\0" in text:
            raise ValueError("it has a byte order mark, or is UTF-16; save it as plain UTF-8")
        return tomllib.loads(text)
    except UnicodeDecodeError as error:
        why = f"it is not in UTF-8 from byte {error.start:,} on; save it as plain UTF-8"
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:
        why = str(error)
    raise ValueError(f"{file} is not TOML: {why}") from None


def spelled(value: Any) -> str:
    """A value as a TOML file has it, for messages: what they print can be typed."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def under_dotted_keys(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a table and of all tables in it, by keys such as ``training.steps``."""
    values: dict[str, Any] = {}
    for name, value in table.items():
        is_table = isinstance(value, dict)
        key = f"{prefix}{name}"
        values |= under_dotted_keys(value, f"{key}.") if is_table else {key: value}
    return values


def check_toml_types(config_cls: type, values: dict[str, Any], path: str = "") -> None:
    """Compare TOML values with the declared types of a configuration dataclass, section by section.

    A whole number is accepted for a float, as TOML writers expect; nothing else is converted.

    Raises:
        ValueError: for an unknown key, with similar ones; for a value of a wrong type, naming the
            key, the value and the type it should have.
    """
    _check_section(config_cls, values, path, _by_last_name(config_cls, path))


def _by_last_name(config_cls: type, path: str = "") -> dict[str, list[str]]:
    """The dotted keys of a configuration, by what they end with."""
    found: dict[str, list[str]] = {}
    for field in fields(config_cls):
        found.setdefault(field.name, []).append(f"{path}{field.name}")
        if is_dataclass(field.type):
            below = _by_last_name(field.type, f"{path}{field.name}.")  # type: ignore[arg-type]
            for name, keys in below.items():
                found.setdefault(name, []).extend(keys)
    return found


def _check_section(
    config_cls: type, values: dict[str, Any], path: str, everywhere: dict[str, list[str]]
) -> None:
    declared = {f.name: f.type for f in fields(config_cls)}
    for name, value in values.items():
        key, hint = f"{path}{name}", declared.get(name)
        if hint is None:
            similar = everywhere.get(name) or [path + s for s in _similar(name, declared)]
            meant = f"; did you mean {' or '.join(similar)}?" if similar else ""
            raise ValueError(f"{key}: there is no such key{meant}")
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise ValueError(f"{key} = {spelled(value)}: is a section, write [{key}]")
            _check_section(hint, value, f"{key}.", everywhere)  # type: ignore[arg-type]
        elif not _is_of_type(value, hint):
            # Of what is no choice the type is right, and not what is wrong.
            right = type(value) in _types(hint) and not isinstance(value, list)
            got = "" if right else f", got {_kind(value)}"
            raise ValueError(f"{key} = {spelled(value)}: must be {_describe(hint)}{got}")


def _similar(name: str, declared: Iterable[str]) -> list[str]:
    """At most three keys that may be meant by a name."""
    keys = list(declared)
    same_words = [key for key in keys if _has_same_words(name, key)]
    return [*dict.fromkeys([*get_close_matches(name, keys), *same_words])][:3]


def _has_same_words(one: str, other: str) -> bool:
    """Whether a name has all words of another, or their beginnings, or is made of their initials.

    ``batch_size`` and ``local_batch_size``, ``sequence_length`` and ``seq_len``, ``learning_rate``
    and ``lr``.
    """
    few, many = sorted((one.split("_"), other.split("_")), key=len)
    if len(few) == 1 < len(many) and few[0] == "".join(word[:1] for word in many):
        return True
    return all(any(_begins(word, found) for found in many) for word in few)


def _begins(one: str, other: str) -> bool:
    """Whether a word is the beginning of another, long enough to tell."""
    short, long = sorted((one, other), key=len)
    return len(short) > 2 and long.startswith(short)


def _kind(value: Any) -> str:
    if not isinstance(value, list):
        return type(value).__name__
    return f"list of {', '.join(sorted({type(item).__name__ for item in value})) or 'nothing'}"


def json_types(config_cls: type, prefix: str = "") -> dict[str, tuple[type, ...]]:
    """Of which types JSON has the values of a configuration, by dotted keys."""
    found: dict[str, tuple[type, ...]] = {}
    for field in fields(config_cls):
        key, hint = f"{prefix}{field.name}", field.type
        if is_dataclass(hint):
            found |= json_types(hint, f"{key}.")  # type: ignore[arg-type]
        else:
            found[key] = _types(hint)
    return found


def _types(hint: Any) -> tuple[type, ...]:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _types(args[0])
    if origin is Literal:
        return tuple({type(choice) for choice in args})
    if origin in (Union, UnionType):
        return tuple(kind for arg in args for kind in _types(arg))
    return (int, float) if hint is float else (origin or hint,)


def _is_of_type(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _is_of_type(value, args[0])
    if hint is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin in (Union, UnionType):
        return any(_is_of_type(value, arg) for arg in args)
    if origin is list:
        return isinstance(value, list) and all(_is_of_type(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of_type(v, args[1]) for v in value.values())
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (origin or hint)


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _describe(args[0])
    if origin is list and get_origin(args[0]) is dict:
        return "a list of tables"
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in args)
    if origin in (Union, UnionType):
        return " or ".join(_describe(arg) for arg in args if arg is not type(None))
    return getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
