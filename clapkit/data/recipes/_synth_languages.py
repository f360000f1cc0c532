"""The languages that the built-in corpus is captioned in besides English.

Each has a generator of its own for each clip, so that a further language changes no word of another one.
"""

from __future__ import annotations

import numpy as np

from clapkit.data.recipes import _synth_french, _synth_german, _synth_spanish
from clapkit.data.recipes._synth_grammar import Grammar, write_sentences
from clapkit.data.recipes._synth_plan import SPLITS, ClipPlan
from clapkit.errors import ConfigError

ENGLISH = "en"
GRAMMARS: dict[str, Grammar] = {"de": _synth_german.GRAMMAR, "es": _synth_spanish.GRAMMAR, "fr": _synth_french.GRAMMAR}
"""ISO 639-1 tag -> grammar; English, whose captions are of other kinds, has a module of its own."""

KNOWN = (ENGLISH, *GRAMMARS)
NUM_SENTENCES = 2
_LANGUAGE_KEY = 4  # behind the keys of _synth_plan


def read_languages(text: str) -> tuple[str, ...]:
    """The tags of a list such as ``en,de``, in its order.

    Raises:
        ConfigError: if there is none, an unknown one, or one twice.
    """
    tags = tuple(tag.strip().lower() for tag in text.split(","))
    unknown = next((tag for tag in tags if tag not in KNOWN), None)
    if unknown is not None:
        found = f"unknown language {unknown!r}" if unknown else "a language is missing"
        raise ConfigError(f"option languages={text}: {found}; known: {', '.join(KNOWN)}; pass for example -O languages=en,de")
    twice = next((tag for tag in tags if tags.count(tag) > 1), None)
    if twice:
        raise ConfigError(f"option languages={text}: {twice!r} is given twice; give it once")
    return tags


def sentences(plan: ClipPlan, language: str, *, seed: int) -> list[str]:
    """Two differently built sentences, each of which says all that can be heard.

    Args:
        plan: of the clip.
        language: a key of ``GRAMMARS``.
        seed: of the corpus.
    """
    key = (_LANGUAGE_KEY, SPLITS.index(plan.split), plan.index, *language.encode())
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    return write_sentences(GRAMMARS[language], plan.composition, plan.events, rng=rng, count=NUM_SENTENCES)
