"""Spanish for the built-in corpus.

Adverbials stand behind the verb and what belongs to it. Sounds as nouns are "el sonido de" with a relative clause, so that
neither the number of the subject nor the "a" before persons asks for another verb form.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clapkit.data.recipes._synth_grammar import Grammar, Words, draw, draw_words

SOURCES: dict[str, tuple[tuple[str, str], ...]] = {
    "dog barking": (("un perro", "ladra"),),
    "cat meowing": (("un gato", "maúlla"),),
    "rooster crowing": (("un gallo", "canta"),),
    "bird chirping": (("un pájaro", "canta"), ("un pájaro", "pía"), ("un pájaro", "gorjea")),
    "rain falling": (("la lluvia", "cae"),),
    "wind blowing": (("el viento", "sopla"), ("el viento", "aúlla")),
    "waves crashing": (("las olas", "rompen"), ("las olas del mar", "rompen")),
    "thunder rumbling": (("un trueno", "retumba"), ("el trueno", "retumba")),
    "bell ringing": (("una campana", "suena"), ("una campana", "repica")),
    "alarm beeping": (("una alarma", "pita"), ("una alarma", "emite pitidos")),
    "siren wailing": (("una sirena", "suena"), ("una sirena", "aúlla")),
    "car honking": (("un coche", "toca la bocina"), ("un coche", "toca el claxon"), ("la bocina de un coche", "suena")),
    "engine running": (("un motor", "funciona"), ("un motor", "ronronea")),
    "helicopter flying": (("un helicóptero", "vuela"),),
    "clock ticking": (("un reloj", "hace tictac"),),
    "person walking": (("alguien", "camina"), ("una persona", "camina")),
    "knocking on a door": (
        ("alguien", "llama a una puerta"),
        ("alguien", "golpea una puerta"),
        ("una persona", "llama a una puerta"),
    ),
    "glass breaking": (("un vaso", "se rompe"), ("un cristal", "se rompe"), ("un cristal", "se hace añicos")),
    "telephone ringing": (("un teléfono", "suena"),),
    "person whistling": (("alguien", "silba"), ("alguien", "silba una melodía"), ("una persona", "silba")),
}
"""Subject with its article, and the verb in its number, with what belongs to it."""

ADVERBIALS: Words = {
    ("loudness", "loud"): ("ruidosamente", "con mucho ruido"),
    ("loudness", "quiet"): ("con poco ruido", "sin hacer mucho ruido"),
    ("rate", "fast"): ("con rapidez", "a un ritmo rápido"),
    ("rate", "slow"): ("con lentitud", "a un ritmo lento"),
    ("pitch", "high"): ("en tono agudo", "con un sonido agudo"),
    ("pitch", "low"): ("en tono grave", "con un sonido grave"),
    ("distance", "far"): ("a lo lejos", "en la lejanía"),
}
"""Manner, joined by "y", then place. Of two words in -mente the first would lose its ending, so only loudness has one."""

_TEMPLATES = {
    "single": (
        "{finite}",
        "se oye cómo {finite}",
        "el sonido {genitive}",
        "se oye el sonido {genitive}",
        "se puede oír cómo {finite}",
    ),
    "then": (
        "{finite} y luego {finite2}",
        "{finite} y después {finite2}",
        "primero {finite} y después {finite2}",
        "se oye cómo {finite} y luego cómo {finite2}",
        "el sonido {genitive}, seguido del sonido {genitive2}",
        "tras el sonido {genitive}, {finite2}",
        "{finite2} después del sonido {genitive}",
    ),
    "while": (
        "{finite} mientras {finite2}",
        "mientras {finite}, {finite2}",
        "{finite} y al mismo tiempo {finite2}",
        "{finite} a la vez que {finite2}",
        "el sonido {genitive} y, al mismo tiempo, el sonido {genitive2}",
        "se oye cómo {finite} y, al mismo tiempo, cómo {finite2}",
    ),
}


def _forms(sound: str, attributes: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """One event as a clause, and with a relative clause behind "de"."""
    subject, verb = draw(SOURCES[sound], rng)
    adverbials = draw_words(ADVERBIALS, attributes, rng)
    place = [adverbials.pop()] if "distance" in attributes else []
    predicate = " ".join(part for part in (verb, " y ".join(adverbials), *place) if part)
    of = f"del {subject.removeprefix('el ')}" if subject.startswith("el ") else f"de {subject}"
    return {"finite": f"{subject} {predicate}", "genitive": f"{of} que {predicate}"}


GRAMMAR = Grammar(_TEMPLATES, _forms)
