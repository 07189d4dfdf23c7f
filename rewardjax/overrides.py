"""Settings by dotted name: `override(config, ["optimizer.learning_rate=1e-4"])`, types checked."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

Config = TypeVar("Config")

ABSENT = "(absent)"
BOOLS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
NONES = ("none", "null")


class OverrideError(ValueError):
    """A setting that the configuration does not have, or a value of another type."""


def override(config: Config, assignments: Sequence[str]) -> Config:
    """A copy of a frozen dataclass with `"dotted.name=value"` settings applied, in order.

    Values are read by the field's annotation: int, float, bool (true/false), str, Path, Literal,
    Optional (none), and tuples ("1,2" or "(1, 2)").

    Raises:
      OverrideError: no such field (near names are given), or a value that is not of the field's
        type, or that the dataclass itself refuses; the message names the field.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise OverrideError(f"expected dotted.name=value, found {assignment!r}")
        config = _assign(config, name.strip().split("."), text.strip(), root=config)
    return config


def near_names(name: str, known: Iterable[str]) -> str:
    """A clause for an error on a misspelt name: the nearest known names, or else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"expected one of {', '.join(known)}" if known else "there are none"


def dotted_names(config: Any) -> list[str]:
    """The dotted names of all settings in a configuration."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inside = dotted_names(value) if _is_config(value) else []
        names += [f"{field.name}.{name}" for name in inside] or [field.name]
    return names


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries of what JSON has: paths, types and functions by name."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """`{dotted name: (value in a, value in b)}` where two configurations differ.

    Each may be a dataclass or what `to_dict` made of one; "(absent)" stands for a missing field.
    """
    old, new = _flat(a), _flat(b)
    changed = {}
    for name in [*old, *(name for name in new if name not in old)]:
        pair = (old.get(name, ABSENT), new.get(name, ABSENT))
        # NaN differs from itself, but not from the NaN of the other configuration.
        if pair[0] != pair[1] and not (pair[0] != pair[0] and pair[1] != pair[1]):
            changed[name] = pair
    return changed


def _assign(config: Any, path: Sequence[str], text: str, root: Any, group: str = "") -> Any:
    """`config`, the group named `group` ("optimizer.") of `root`, with the setting at `path` set."""
    name, *rest = path
    where = group + ".".join(path)
    if name not in {field.name for field in dataclasses.fields(config)}:
        raise OverrideError(f"{where}: no such setting; {near_names(where, dotted_names(root))}")
    value = getattr(config, name)
    if rest:
        if not _is_config(value):
            raise OverrideError(f"{where}: no such setting; {group}{name} is a value, not a group")
        new = _assign(value, rest, text, root, f"{group}{name}.")
    elif _is_config(value):
        inside = ", ".join(f"{where}.{child}" for child in dotted_names(value))
        raise OverrideError(f"{where}: a group of settings cannot be set whole; set {inside}")
    else:
        new = _read(typing.get_type_hints(type(config))[name], text, where)
    try:
        return dataclasses.replace(config, **{name: new})
    except ValueError as error:
        raise OverrideError(f"{where}={text}: {error}") from error


def _read(hint: Any, text: str, where: str) -> Any:
    try:
        return _parse(hint, text)
    except ValueError as error:
        raise OverrideError(f"{where}: expected {_describe(hint)}, found {text!r}") from error


def _parse(hint: Any, text: str) -> Any:
    """`text` as a value of the annotation; ValueError where it is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _first(arguments, text)
    if origin is Literal:
        choices = {str(choice): choice for choice in arguments}
        if text not in choices:
            raise ValueError(text)
        return choices[text]
    if origin is tuple or hint is tuple:
        return _parse_tuple(arguments or (str, ...), text)
    if hint is bool:
        if text.lower() not in BOOLS:
            raise ValueError(text)
        return BOOLS[text.lower()]
    if hint in (None, type(None)):
        if text.lower() not in NONES:
            raise ValueError(text)
        return None
    readers: dict[Any, Callable[[str], Any]] = {int: int, float: float, str: str, Path: Path}
    if hint not in readers:
        raise ValueError(f"{_describe(hint)} cannot be set from text")
    return readers[hint](text)


def _first(hints: Sequence[Any], text: str) -> Any:
    # A string takes any text, so it is asked last.
    for hint in sorted(hints, key=lambda hint: hint in (str, Path)):
        try:
            return _parse(hint, text)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_tuple(hints: Sequence[Any], text: str) -> tuple[Any, ...]:
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    items = [item.strip().strip("'\"") for item in inner.split(",")]
    if items[-1] == "":
        items.pop()
    if hints[-1] is Ellipsis:
        hints = [hints[0]] * len(items)
    if len(items) != len(hints):
        raise ValueError(f"expected {len(hints)} values, found {len(items)}")
    return tuple(_parse(hint, item) for hint, item in zip(hints, items))


def _describe(hint: Any) -> str:
    """An annotation in a reader's words: "int or none", "one of a, b"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        inside = ", ".join("..." if it is Ellipsis else _describe(it) for it in arguments)
        return f"tuple ({inside})"
    if hint is bool:
        return "bool (true or false)"
    return "none" if hint in (None, type(None)) else getattr(hint, "__name__", str(hint))


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    items = config if isinstance(config, Mapping) else to_dict(config)
    flat: dict[str, Any] = {}
    for name, value in items.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _plain(value: Any) -> Any:
    if _is_config(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # A function's repr holds its address, which another process does not share.
    return getattr(value, "__qualname__", None) or str(value)
