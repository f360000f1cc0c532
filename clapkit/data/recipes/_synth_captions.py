"""The wording of the built-in corpus: a small grammar from planned events to English sentences.

All captions of a clip but one name every class, the order of the sounds and every attribute, by one of several words, so
that each of them alone tells the clip from nearly all others. The remaining one is what a person would search for: the class
names as they are written in ``labels``, and their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clapkit.data.recipes._synth_plan import EventPlan
from clapkit.data.recipes._synth_sounds import SOUNDS


@dataclass(frozen=True, slots=True)
class Source:
    """Who or what makes a sound, and what it does.

    Attributes:
        article: ``a``, ``the`` or nothing.
        noun: without the article.
        finite: third person of each verb.
        gerund: the same verbs with -ing.
        is_plural: True for nouns that take a plural verb.
        takes_adjective: False where "a quiet person walks" would say something else.
    """

    article: str
    noun: str
    finite: tuple[str, ...]
    gerund: tuple[str, ...]
    is_plural: bool = False
    takes_adjective: bool = True


_KNOCKS = (("knocks on a door", "raps on a door"), ("knocking on a door", "rapping on a door"))
_WALKS = (("walks", "walks along"), ("walking", "walking along"))

SOURCES: dict[str, tuple[Source, ...]] = {
    "dog barking": (Source("a", "dog", ("barks", "woofs"), ("barking", "woofing")),),
    "cat meowing": (Source("a", "cat", ("meows", "mews"), ("meowing", "mewing")),),
    "rooster crowing": (
        Source("a", "rooster", ("crows",), ("crowing",)),
        Source("a", "cockerel", ("crows",), ("crowing",)),
    ),
    "bird chirping": (Source("a", "bird", ("chirps", "tweets"), ("chirping", "tweeting")),),
    "rain falling": (Source("", "rain", ("falls", "comes down"), ("falling", "coming down")),),
    "wind blowing": (Source("the", "wind", ("blows", "howls"), ("blowing", "howling")),),
    "waves crashing": (
        Source("", "waves", ("crash", "break"), ("crashing", "breaking"), is_plural=True),
        Source("", "sea waves", ("crash", "roll in"), ("crashing", "rolling in"), is_plural=True),
    ),
    "thunder rumbling": (Source("", "thunder", ("rumbles", "rolls"), ("rumbling", "rolling")),),
    "bell ringing": (Source("a", "bell", ("rings", "tolls"), ("ringing", "tolling")),),
    "alarm beeping": (Source("an", "alarm", ("beeps", "bleeps"), ("beeping", "bleeping")),),
    "siren wailing": (Source("a", "siren", ("wails", "howls"), ("wailing", "howling")),),
    "car honking": (
        Source("a", "car", ("honks", "hoots"), ("honking", "hooting")),
        Source("a", "car horn", ("honks", "sounds"), ("honking", "sounding")),
    ),
    "engine running": (
        Source("an", "engine", ("runs", "idles"), ("running", "idling")),
        Source("a", "motor", ("runs", "idles"), ("running", "idling")),
    ),
    "helicopter flying": (Source("a", "helicopter", ("flies", "hovers"), ("flying", "hovering")),),
    "clock ticking": (Source("a", "clock", ("ticks", "tick-tocks"), ("ticking", "tick-tocking")),),
    "person walking": (
        Source("a", "person", *_WALKS, takes_adjective=False),
        Source("", "someone", *_WALKS, takes_adjective=False),
        Source("", "footsteps", ("crunch",), ("crunching",), is_plural=True),
    ),
    "knocking on a door": (
        Source("a", "person", *_KNOCKS, takes_adjective=False),
        Source("", "someone", *_KNOCKS, takes_adjective=False),
    ),
    "glass breaking": (Source("", "glass", ("breaks", "shatters"), ("breaking", "shattering"), takes_adjective=False),),
    "telephone ringing": (
        Source("a", "telephone", ("rings",), ("ringing",)),
        Source("a", "phone", ("rings",), ("ringing",)),
    ),
    "person whistling": (
        Source("a", "person", ("whistles", "whistles a tune"), ("whistling", "whistling a tune"), takes_adjective=False),
        Source("", "someone", ("whistles", "whistles a tune"), ("whistling", "whistling a tune"), takes_adjective=False),
    ),
}

ADJECTIVES: dict[tuple[str, str], tuple[str, ...]] = {
    ("pitch", "high"): ("high-pitched", "shrill"),
    ("pitch", "low"): ("low-pitched", "deep"),
    ("loudness", "loud"): ("loud",),
    ("loudness", "quiet"): ("quiet", "soft"),
    ("distance", "far"): ("distant", "faraway"),
}
"""Words that stand before the noun; what has none here stands behind the verb."""

ADVERBIALS: dict[tuple[str, str], tuple[str, ...]] = {
    ("rate", "fast"): ("quickly", "rapidly", "at a fast pace"),
    ("rate", "slow"): ("slowly", "at a slow pace"),
    ("loudness", "loud"): ("loudly", "very loudly"),
    ("loudness", "quiet"): ("quietly", "softly"),
    ("pitch", "high"): ("at a high pitch", "in a high tone"),
    ("pitch", "low"): ("at a low pitch", "in a low tone"),
    ("distance", "far"): ("far away", "in the distance"),
}
"""Words that stand behind the verb, in the order in which several of them stand."""

# Each slot is form and number of the event: finite, progressive, nominal or label.
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "single": (
        "{finite}",
        "{progressive}",
        "{nominal}",
        "the sound of {nominal}",
        "you can hear {nominal}",
        "there is the sound of {nominal}",
    ),
    "then": (
        "{finite}, then {finite2}",
        "{finite} and then {finite2}",
        "{finite} before {finite2}",
        "{finite2} after {finite}",
        "after {nominal}, {finite2}",
        "first {finite}, then {finite2}",
        "{nominal}, followed by {nominal2}",
        "{nominal} and afterwards {nominal2}",
    ),
    "while": (
        "{progressive} while {progressive2}",
        "{finite} while {finite2}",
        "{finite} as {finite2}",
        "{finite} and {finite2} at the same time",
        "while {progressive}, {finite2}",
        "{nominal} together with {nominal2}",
        "{nominal} and {nominal2} at once",
    ),
}
_IN_BACKGROUND = "{nominal} with {nominal2} in the background"
_LABEL_TEMPLATES = {
    "single": ("{label}",),
    "then": ("{label}, then {label2}", "{label} followed by {label2}"),
    "while": ("{label} and {label2} together", "{label} and {label2} at the same time"),
}


def captions(composition: str, events: Sequence[EventPlan], *, rng: np.random.Generator, count: int) -> list[str]:
    """Differently built sentences about one clip, each true of it.

    Args:
        composition: ``single``, ``then`` or ``while``.
        events: one event, or two in their order.
        rng: draws templates and words.
        count: how many, at most 7.

    Returns:
        ``count`` different sentences: one holds the class names literally, the others everything that can be heard.
    """
    templates = list(_TEMPLATES[composition])
    if composition == "while" and [SOUNDS[event.sound].is_continuous for event in events] in (
        [False, True],
        [True, False],
    ):
        templates.append(_IN_BACKGROUND)
    shuffled = [templates[place] for place in rng.permutation(len(templates))]
    chosen, spare = shuffled[: count - 1], shuffled[count - 1 :]
    labelled = _LABEL_TEMPLATES[composition]
    chosen.insert(int(rng.integers(count)), labelled[int(rng.integers(len(labelled)))])
    sentences = [_sentence(template.format_map(_slots(template, composition, events, rng))) for template in chosen]
    for place, sentence in enumerate(sentences):
        # Where "Rain falling." is both a description and the class name, another template says it.
        while sentence in sentences[:place] and spare:
            template = spare.pop(0)
            sentence = sentences[place] = _sentence(template.format_map(_slots(template, composition, events, rng)))
    return sentences


def _slots(template: str, composition: str, events: Sequence[EventPlan], rng: np.random.Generator) -> dict[str, str]:
    """Every form of every event, worded once; simultaneous events in either order."""
    ordered = list(events)
    if template == _IN_BACKGROUND:
        ordered.sort(key=lambda event: SOUNDS[event.sound].is_continuous)
    elif composition == "while" and rng.random() < 0.5:
        ordered.reverse()
    slots = {}
    for suffix, event in zip(("", "2"), ordered, strict=False):
        slots.update({f"{form}{suffix}": text for form, text in _forms(event.sound, event.attributes, rng).items()})
    return slots


def _forms(sound: str, attributes: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """One event as a finite clause, a progressive clause, a noun with participle, and its class name."""
    source = SOURCES[sound][int(rng.integers(len(SOURCES[sound])))]
    verb = int(rng.integers(len(source.finite)))
    before, behind = _attribute_words(attributes, rng, takes_adjective=source.takes_adjective)
    subject = _with_article(source.article, " ".join([*before, source.noun]))
    finite, gerund = (" ".join([verbs[verb], *behind]) for verbs in (source.finite, source.gerund))
    return {
        "finite": f"{subject} {finite}",
        "progressive": f"{subject} {'are' if source.is_plural else 'is'} {gerund}",
        "nominal": f"{subject} {gerund}",
        "label": sound,
    }


def _attribute_words(
    attributes: Mapping[str, str], rng: np.random.Generator, *, takes_adjective: bool
) -> tuple[list[str], list[str]]:
    """Words before the noun, at most one, and words behind the verb."""
    before: list[str] = []
    behind: list[str] = []
    for key, adverbials in ADVERBIALS.items():
        if attributes.get(key[0]) != key[1]:
            continue
        if takes_adjective and not before and key in ADJECTIVES and rng.random() < 0.5:
            before.append(_draw(ADJECTIVES[key], rng))
            continue
        adverbial = _draw(adverbials, rng)
        behind += ["and", adverbial] if behind and adverbial.endswith("ly") else [adverbial]
    return before, behind


def _draw(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _with_article(article: str, noun: str) -> str:
    if article in ("a", "an"):
        article = "an" if noun[0] in "aeiou" else "a"
    return f"{article} {noun}" if article else noun


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
