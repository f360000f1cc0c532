"""French for the built-in corpus.

Adverbs in -ment stand right behind the verb, other adverbials behind what belongs to it. Behind "on entend" stands an
infinitive or a relative clause, behind "le bruit" always a relative clause; "de" and "que" melt into the article that
follows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clapkit.data.recipes._synth_grammar import Grammar, Words, draw, draw_words


@dataclass(frozen=True, slots=True)
class FrenchSource:
    """Who or what makes a sound, and what it does.

    Attributes:
        subject: with its article.
        finite: third person, in the number of the subject.
        infinitive: of the verb.
        complement: what belongs to the verb.
    """

    subject: str
    finite: str
    infinitive: str
    complement: str = ""


SOURCES: dict[str, tuple[FrenchSource, ...]] = {
    "dog barking": (FrenchSource("un chien", "aboie", "aboyer"),),
    "cat meowing": (FrenchSource("un chat", "miaule", "miauler"),),
    "rooster crowing": (
        FrenchSource("un coq", "chante", "chanter"),
        FrenchSource("un coq", "lance", "lancer", "un cocorico"),
    ),
    "bird chirping": (
        FrenchSource("un oiseau", "gazouille", "gazouiller"),
        FrenchSource("un oiseau", "pépie", "pépier"),
    ),
    "rain falling": (
        FrenchSource("la pluie", "tombe", "tomber"),
        FrenchSource("la pluie", "crépite", "crépiter"),
    ),
    "wind blowing": (FrenchSource("le vent", "souffle", "souffler"),),
    "waves crashing": (
        FrenchSource("les vagues", "déferlent", "déferler"),
        FrenchSource("les vagues", "se brisent", "se briser"),
    ),
    "thunder rumbling": (FrenchSource("le tonnerre", "gronde", "gronder"),),
    "bell ringing": (
        FrenchSource("une cloche", "sonne", "sonner"),
        FrenchSource("une cloche", "tinte", "tinter"),
    ),
    "alarm beeping": (
        FrenchSource("une alarme", "bipe", "biper"),
        FrenchSource("une alarme", "émet", "émettre", "des bips"),
    ),
    "siren wailing": (
        FrenchSource("une sirène", "hurle", "hurler"),
        FrenchSource("une sirène", "sonne", "sonner"),
    ),
    "car honking": (
        FrenchSource("une voiture", "klaxonne", "klaxonner"),
        FrenchSource("un klaxon", "sonne", "sonner"),
    ),
    "engine running": (FrenchSource("un moteur", "tourne", "tourner"),),
    "helicopter flying": (
        FrenchSource("un hélicoptère en vol", "vrombit", "vrombir"),
        FrenchSource("un hélicoptère", "vrombit", "vrombir"),
    ),
    "clock ticking": (
        FrenchSource("une horloge", "fait tic-tac", "faire tic-tac"),
        FrenchSource("une pendule", "fait tic-tac", "faire tic-tac"),
    ),
    "person walking": (
        FrenchSource("des pas", "résonnent", "résonner"),
        FrenchSource("des pas", "crissent", "crisser"),
    ),
    "knocking on a door": (
        FrenchSource("quelqu'un", "frappe", "frapper", "à une porte"),
        FrenchSource("quelqu'un", "toque", "toquer", "à une porte"),
        FrenchSource("une personne", "frappe", "frapper", "à une porte"),
    ),
    "glass breaking": (
        FrenchSource("un verre", "se brise", "se briser"),
        FrenchSource("une vitre", "se brise", "se briser"),
    ),
    "telephone ringing": (FrenchSource("un téléphone", "sonne", "sonner"),),
    "person whistling": (
        FrenchSource("quelqu'un", "siffle", "siffler"),
        FrenchSource("quelqu'un", "siffle", "siffler", "un air"),
        FrenchSource("une personne", "siffle", "siffler"),
    ),
}

ADVERBIALS: Words = {
    ("loudness", "loud"): ("bruyamment", "à grand bruit"),
    ("loudness", "quiet"): ("faiblement", "en sourdine"),
    ("rate", "fast"): ("rapidement", "à un rythme rapide"),
    ("rate", "slow"): ("lentement", "à un rythme lent"),
    ("pitch", "high"): ("avec un son aigu", "dans les aigus"),
    ("pitch", "low"): ("avec un son grave", "dans les graves"),
    ("distance", "far"): ("au loin", "dans le lointain"),
}
"""Place stands last."""

_TEMPLATES = {
    "single": (
        "{finite}",
        "on entend {relative}",
        "on entend {infinitive}",
        "le bruit {genitive}",
        "on peut entendre {infinitive}",
    ),
    "then": (
        "{finite}, puis {finite2}",
        "{finite} et ensuite {finite2}",
        "d'abord, {finite}, puis {finite2}",
        "on entend {infinitive}, puis {infinitive2}",
        "le bruit {genitive}, suivi du bruit {genitive2}",
        "après le bruit {genitive}, on entend {infinitive2}",
        "on entend {infinitive2} après le bruit {genitive}",
    ),
    "while": (
        "{finite} pendant {that2}",
        "{finite} tandis {that2}",
        "pendant {that}, {finite2}",
        "{finite} et {finite2} en même temps",
        "on entend à la fois {infinitive} et {infinitive2}",
        "le bruit {genitive} et, en même temps, celui {genitive2}",
    ),
}


def _forms(sound: str, attributes: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """One event as a clause, alone and behind "que"; with a relative clause, alone and behind "de"; with an infinitive."""
    source = draw(SOURCES[sound], rng)
    behind = _predicate_end(source.complement, draw_words(ADVERBIALS, attributes, rng), is_far="distance" in attributes)
    finite = f"{source.subject} {source.finite}{behind}"
    relative = f"{source.subject} qui {source.finite}{behind}"
    return {
        "finite": finite,
        "that": f"qu'{finite}" if finite[0] in "aeiou" else f"que {finite}",
        "relative": relative,
        "genitive": _behind_de(relative),
        "infinitive": f"{source.subject} {source.infinitive}{behind}",
    }


def _predicate_end(complement: str, adverbials: list[str], *, is_far: bool) -> str:
    """What stands behind the verb, each part with a blank before it."""
    manner, place = (adverbials[:-1], adverbials[-1]) if is_far else (adverbials, "")
    adverbs = [words for words in manner if words.endswith("ment")]
    phrases = [words for words in manner if not words.endswith("ment")]
    parts = (" et ".join(adverbs), complement, " et ".join(phrases), place)
    return "".join(f" {part}" for part in parts if part)


def _behind_de(noun_phrase: str) -> str:
    """The noun phrase behind "de", which melts into articles and swallows "des"."""
    article, _, noun = noun_phrase.partition(" ")
    melted = {"un": "d'un", "une": "d'une", "le": "du", "les": "des", "des": "de"}
    return f"{melted[article]} {noun}" if article in melted else f"de {noun_phrase}"


GRAMMAR = Grammar(_TEMPLATES, _forms)
