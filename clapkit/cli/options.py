"""From configuration classes to command-line options: the flags are the fields, nothing is written twice."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import typer

from clapkit import registry
from clapkit.config import CommonConfig


def command_function(config_class: type[CommonConfig], run: Callable[[dict[str, Any]], None], help: str) -> Callable[..., None]:
    """A function with one parameter per field, for Typer to read.

    Args:
        config_class: whose fields become options; none of them has a default here, so that ``run`` can tell what was given.
        run: called with the values by field name, None where a flag was not given.
        help: the command's help text.
    """

    def command(**given: Any) -> None:
        run(given)

    hints = typing.get_type_hints(config_class)
    parameters = []
    for field in dataclasses.fields(config_class):
        kind = _cli_type(hints[field.name])
        default = _argument(field) if field.metadata["argument"] else _option(field)
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind | None)
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = help
    return command


def flags_of(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The spellings of a field on the command line."""
    return field.metadata["flags"] or (f"--{field.name.replace('_', '-')}",)


def help_of(field: dataclasses.Field[Any]) -> str:
    """Help text of a field, with plug-in names, choices and default filled in."""
    text: str = field.metadata["help"]
    choices = _choices(field)
    if choices:
        sentence, bracket, note = text.partition(" [")
        text = f"{sentence.rstrip('.')}: {', '.join(choices)}.{bracket}{note}"
    # Identity, because a default of 0 is worth showing and equals False.
    if field.default is not None and field.default is not False and field.default != () and "[default" not in text:
        shown = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        text = f"{text} [default: {shown}]"
    return text


def _choices(field: dataclasses.Field[Any]) -> list[str]:
    if field.metadata["plugin"]:
        names = registry.names(field.metadata["plugin"])
        return [name.replace("_", "-") for name in names] if field.metadata["plugin"] == "task" else list(names)
    literal = str(field.type)
    start = literal.find("Literal[")
    if start < 0:
        return []
    return [choice.strip(" \"'") for choice in literal[start + 8 : literal.index("]", start)].split(",")]


def _option(field: dataclasses.Field[Any]) -> Any:
    envvar = "CLAPKIT_RUNS" if field.name == "runs_root" else None
    metavar = "KEY=VALUE" if field.name == "options" else None
    return typer.Option(
        None, *flags_of(field), help=help_of(field), envvar=envvar, metavar=metavar, show_default=False, show_envvar=False
    )


def _argument(field: dataclasses.Field[Any]) -> Any:
    metavar = {"inputs": "[INPUT]...", "runs": "[RUN]...", "query": "[QUERY]..."}.get(field.name, f"[{field.name.upper()}]")
    return typer.Argument(None, help=help_of(field), metavar=metavar, show_default=False)


def _cli_type(hint: Any) -> Any:
    """The type that Typer reads: choices stay text, because their errors are ours."""
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    if type(None) in typing.get_args(hint):
        return _cli_type(members[0])
    if typing.get_origin(hint) is Literal:
        return str
    if typing.get_origin(hint) is tuple:
        return list[str]
    return hint if hint in (str, int, float, bool, Path) else str
