"""Prompt templates of zero-shot: those of ``--prompt``, named sets of the field, or a file.

The wording of a prompt alone moves accuracy by many points, full stop and case included, so that a number without its prompt
cannot be repeated. A named set says both halves of what a published system does: its templates, and how it spells the names of
classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clapkit.config import EvalConfig
from clapkit.data.recipes.mlclap import normalized
from clapkit.errors import ConfigError, UnknownNameError

Spelling = Literal["blanks", "lower", "clean", "raw"]
"""Of class names: underscores as blanks; also in lower case; also without punctuation; or as the data have them."""

PLACE = "{}"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Templates that make the vectors of classes together.

    Attributes:
        name: as given to ``--prompt-set``; None for the templates of ``--prompt``.
        templates: each with one ``{}`` where the text of the class goes.
        spelling: of class names that come without a text of their own.
    """

    name: str | None
    templates: tuple[str, ...]
    spelling: Spelling = "blanks"


def _named(name: str, *templates: str, spelling: Spelling = "blanks") -> tuple[str, PromptSet]:
    return name, PromptSet(name, templates, spelling)


NAMED: Mapping[str, PromptSet] = dict(
    [
        # Templates of the evaluation scripts that were published with each system.
        _named("laion", "This is a sound of {}."),
        _named("laion-music", "This is a {} song."),
        _named("msclap", "this is the sound of {}", spelling="lower"),
        _named("wavcaps", "{} can be heard", spelling="clean"),
        _named("supclap", "This is a sound of {}"),
        _named("glap", "The sound of {} can be heard."),
        _named("glap-music", "The music in the style of {}."),
        _named("cacophony", "This is a sound of {}", spelling="raw"),
        _named("maeb", "This is a sound of {}", spelling="raw"),
        # The name alone, which competes with ensembles (arXiv 2409.13676).
        _named("labels", "{}"),
        # Ours: the wordings above without doubles, and some that captions of sounds have.
        _named(
            "ensemble",
            "This is a sound of {}.",
            "this is the sound of {}",
            "The sound of {} can be heard.",
            "{} can be heard",
            "{}",
            "a recording of {}",
            "We hear {} in the background.",
            "{}, recorded outdoors or in a room",
        ),
    ]
)


def read_prompts(config: EvalConfig) -> PromptSet:
    """The prompts that a configuration asks for.

    Args:
        config: ``prompt`` is an ensemble of templates, ``prompt_set`` a name of ``NAMED`` or a text file with one template a
            line; empty lines and those that start with ``#`` say nothing.

    Raises:
        ConfigError: if both are given, the file cannot be read, or a template does not have exactly one ``{}`` or comes twice.
        UnknownNameError: if there is neither such a set nor such a file.
    """
    if config.prompt_set is None:
        places = [(f"--prompt {prompt!r}", prompt) for prompt in config.prompt]
        return PromptSet(None, _checked(places, "give it once"))
    if config.prompt != EvalConfig.prompt:
        raise ConfigError(
            f"--prompt {config.prompt[0]!r} and --prompt-set {config.prompt_set}: both name the prompts, expected one of them; "
            "drop one, or add the template to a file for --prompt-set"
        )
    if config.prompt_set in NAMED:
        return NAMED[config.prompt_set]
    path = Path(config.prompt_set)
    if not path.is_file():
        raise UnknownNameError("prompt set", config.prompt_set, NAMED, hint="or a text file with one template a line")
    return PromptSet(config.prompt_set, _read_file(path))


def default_prompt() -> str:
    """The template of ``--prompt`` where nothing is given, which results of a set are compared with."""
    return EvalConfig.prompt[0]


def spell(label: str, spelling: Spelling = "blanks") -> str:
    """How a class name is written in a prompt.

    Args:
        label: as the data have it.
        spelling: ``blanks`` turns underscores and runs of blanks into one blank and keeps case, ``lower`` also lower-cases,
            ``clean`` also turns punctuation into blanks, ``raw`` changes nothing.
    """
    if spelling == "raw":
        return label
    words = " ".join(re.sub("_", " ", label).split())
    if spelling == "blanks":
        return words
    return normalized(words) if spelling == "clean" else words.lower()


def read_lines(path: Path, *, flag: str, expected: str) -> list[tuple[str, str]]:
    """The lines of a text file that say something, each with its place as messages name it.

    Args:
        path: of the file, UTF-8.
        flag: that names the file.
        expected: what the file should hold, for the message.

    Raises:
        ConfigError: if the file cannot be read, or says nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path}: cannot be read ({error}); expected {expected}") from error
    found = [(f"{flag} {path}, line {number}", line) for number, line in enumerate(lines, 1)]
    found = [(place, line) for place, line in found if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise ConfigError(f"{flag} {path}: is empty, expected {expected}")
    return found


def _read_file(path: Path) -> tuple[str, ...]:
    lines = read_lines(path, flag="--prompt-set", expected="a text file with one template a line")
    return _checked([(place, line.strip()) for place, line in lines], "drop one of the two lines")


def _checked(places: Iterable[tuple[str, str]], remedy: str) -> tuple[str, ...]:
    """Templates of which each has one place for the class, and none comes twice."""
    first: dict[str, str] = {}
    for place, template in places:
        named = place if template in place else f"{place}: {template!r}"
        if template.count(PLACE) != 1:
            raise ConfigError(
                f"{named}: has {template.count(PLACE)} places for the class name, expected exactly one {{}}; "
                "write {} where it goes"
            )
        if template in first:
            raise ConfigError(f"{named}: comes twice and would count double, expected each template once; {remedy}")
        first[template] = place
    return tuple(first)
