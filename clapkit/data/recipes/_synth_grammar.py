"""What a template language of the built-in corpus consists of, and how one of its sentences is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from clapkit.data.recipes._synth_plan import EventPlan

_Choice = TypeVar("_Choice")
Words = Mapping[tuple[str, str], tuple[str, ...]]
"""(axis, value) -> words that say it."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A language.

    Attributes:
        templates: composition -> sentences with slots: the form of an event, with a ``2`` behind it for the second one.
        forms: words one event, given its class and attributes, in every form that the templates know.
    """

    templates: Mapping[str, tuple[str, ...]]
    forms: Callable[[str, Mapping[str, str], np.random.Generator], dict[str, str]]


def write_sentences(
    grammar: Grammar, composition: str, events: Sequence[EventPlan], *, rng: np.random.Generator, count: int
) -> list[str]:
    """Differently built sentences about one clip, each of which names all classes, their order and all attributes.

    Args:
        grammar: of the language.
        composition: ``single``, ``then`` or ``while``.
        events: one event, or two in their order.
        rng: draws templates and words.
        count: how many, at most as many as the composition has templates.
    """
    templates = grammar.templates[composition]
    sentences = []
    for place in rng.permutation(len(templates))[:count]:
        ordered = list(events)
        if composition == "while" and rng.random() < 0.5:
            ordered.reverse()
        slots = {}
        for suffix, event in zip(("", "2"), ordered, strict=False):
            forms = grammar.forms(event.sound, event.attributes, rng)
            slots.update({f"{form}{suffix}": text for form, text in forms.items()})
        text = templates[place].format_map(slots)
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    return sentences


def draw_words(words: Words, attributes: Mapping[str, str], rng: np.random.Generator) -> list[str]:
    """One way to say each attribute, in the order of ``words``."""
    return [draw(ways, rng) for (axis, value), ways in words.items() if attributes.get(axis) == value]


def draw(choices: Sequence[_Choice], rng: np.random.Generator) -> _Choice:
    """One of the choices."""
    return choices[int(rng.integers(len(choices)))]
