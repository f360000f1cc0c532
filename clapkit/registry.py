"""Plug-ins by file name: a file that defines ``build(...)`` in the folder of its kind is a plug-in of that name.

Names are found by looking at the files, without importing them, so that ``--help`` can list plug-ins whose dependencies
take seconds to load. The keyword arguments of ``build`` are the plug-in's options; their annotations say how the text of
``-O key=value`` is read.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from clapkit.errors import ConfigError, UnknownNameError

PACKAGES = {
    "loss": "clapkit.objectives",
    "schedule": "clapkit.objectives.schedules",
    "term": "clapkit.objectives.terms",
    "audio encoder": "clapkit.encoders.audio",
    "text encoder": "clapkit.encoders.text",
    "recipe": "clapkit.data.recipes",
    "metric": "clapkit.metrics",
    "index": "clapkit.index",
    "task": "clapkit.steps.tasks",
}


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """The plug-ins of a kind, sorted.

    Args:
        kind: a key of ``PACKAGES``, for example ``"loss"``.
    """
    folder = Path(__file__).parent.joinpath(*PACKAGES[kind].split(".")[1:])
    return tuple(
        sorted(
            path.stem for path in folder.glob("*.py") if not path.name.startswith("_") and b"\ndef build(" in path.read_bytes()
        )
    )


def module(kind: str, name: str) -> types.ModuleType:
    """Import one plug-in.

    Raises:
        UnknownNameError: if there is no such plug-in.
    """
    if name not in names(kind):
        raise UnknownNameError(kind, name, names(kind))
    return importlib.import_module(f"{PACKAGES[kind]}.{name}")


def defaults(kind: str, name: str) -> dict[str, Any]:
    """The options of a plug-in with their default values (``inspect.Parameter.empty`` where one must be given)."""
    return {key: p.default for key, p in inspect.signature(module(kind, name).build).parameters.items()}


def build(kind: str, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """Make one plug-in.

    Args:
        kind: a key of ``PACKAGES``.
        name: the plug-in's file name.
        options: keyword arguments of its ``build``; text is read by the annotation of the argument.

    Raises:
        UnknownNameError: if there is no such plug-in or option.
        ConfigError: if an option's text cannot be read.
    """
    factory = module(kind, name).build
    hints = typing.get_type_hints(factory)
    known = inspect.signature(factory).parameters
    values = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise UnknownNameError(f"option of {kind} {name!r}:", key, known)
        values[key] = read_value(key, value, hints.get(key, str)) if isinstance(value, str) else value
    return factory(**values)


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Split ``key=value`` texts.

    Raises:
        ConfigError: if one has no ``=`` or a key comes twice.
    """
    parsed: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"option {text!r}: expected key=value, for example -O alpha=0.5")
        if key.strip() in parsed:
            raise ConfigError(f"option {key.strip()!r} is given twice; give it once")
        parsed[key.strip()] = value.strip()
    return parsed


def read_value(key: str, text: str, hint: Any) -> Any:
    """Read the text of an option by its annotation: bool, int, float, str, Literal, or one of these or None.

    Raises:
        ConfigError: if the text is no such value.
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        members = typing.get_args(hint)
        if text.lower() == "none" and type(None) in members:
            return None
        return _read_first(key, text, [member for member in members if member is not type(None)])
    if typing.get_origin(hint) is Literal:
        choices = [str(choice) for choice in typing.get_args(hint)]
        if text not in choices:
            raise ConfigError(f"option {key}={text}: expected one of {', '.join(choices)}")
        return typing.get_args(hint)[choices.index(text)]
    if hint is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ConfigError(f"option {key}={text}: expected true or false")
        return text.lower() in ("true", "1", "yes")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError as error:
            kind = "a whole number" if hint is int else "a number"
            raise ConfigError(f"option {key}={text}: expected {kind}") from error
    return text


def _read_first(key: str, text: str, hints: list[Any]) -> Any:
    for hint in hints[:-1]:
        try:
            return read_value(key, text, hint)
        except ConfigError:
            continue
    return read_value(key, text, hints[-1])
