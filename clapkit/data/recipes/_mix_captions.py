"""Captions of mixed clips: clauses taken from the captions of the recordings, put together by templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# {a}, {b}: clauses; {A}, {B}: the same with a capital. In ``then`` a sounds before b; in ``while`` either may be a.
TEMPLATES = {
    "single": ("{A}.", "We hear that {a}.", "In this clip {a}.", "What happens here is that {a}."),
    "then": ("{A}, then {b}.", "First {a}, then {b}.", "{B} after {a}.", "{A} before {b}."),
    "while": ("{A} while {b}.", "{A} and at the same time {b}.", "While {a}, {b}.", "{A}, and meanwhile {b}."),
}
"""Composition -> its sentences; each clip gets all of them."""

# "I" and "I'm" stay, and so does a word of two or more capitals such as "TV"; the article "A" does not.
_KEEPS_CAPITAL = re.compile(r"I\b|[A-Z]{2,}\b")


def clause(caption: str) -> str:
    """A caption as part of a sentence: no full stop at the end, no capital at the start. "A dog barks." -> "a dog barks"."""
    text = caption.strip().rstrip(".").rstrip()
    return text if _KEEPS_CAPITAL.match(text) else text[:1].lower() + text[1:]


def captions(composition: str, phrases: Sequence[Sequence[str]], *, rng: np.random.Generator) -> list[str]:
    """Four sentences of different build about one clip.

    Args:
        composition: ``single``, ``then`` or ``while``.
        phrases: the clauses that may be used for each event, in the order of the events.
        rng: draws the clauses, and in ``while`` which event is named first.
    """
    sentences = []
    for template in TEMPLATES[composition]:
        chosen = [clauses[int(rng.integers(len(clauses)))] for clauses in phrases]
        if composition == "while" and rng.random() < 0.5:
            chosen.reverse()
        named = dict(zip("ab", chosen, strict=False))
        named |= {name.upper(): text[:1].upper() + text[1:] for name, text in named.items()}
        sentences.append(template.format_map(named))
    return sentences
