"""German for the built-in corpus.

The verb is second in a main clause, first behind "dann" or "hier", and last behind "während"; each is a form of its own.
Sounds as nouns ("das laute Bellen eines Hundes") are all neuter, so that one ending fits every adjective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clapkit.data.recipes._synth_grammar import Grammar, Words, draw, draw_words


@dataclass(frozen=True, slots=True)
class GermanSource:
    """Who or what makes a sound, and what it does.

    Attributes:
        subject: with its article.
        verb: third person, in the number of the subject.
        nominal: the sound as a neuter noun without its article, and whose sound it is.
        complement: what belongs to the verb and stands behind the adverbials.
        prefix: the separable part of the verb.
    """

    subject: str
    verb: str
    nominal: str
    complement: str = ""
    prefix: str = ""


SOURCES: dict[str, tuple[GermanSource, ...]] = {
    "dog barking": (GermanSource("ein Hund", "bellt", "Bellen eines Hundes"),),
    "cat meowing": (
        GermanSource("eine Katze", "miaut", "Miauen einer Katze"),
        GermanSource("eine Katze", "maunzt", "Maunzen einer Katze"),
    ),
    "rooster crowing": (GermanSource("ein Hahn", "kräht", "Krähen eines Hahns"),),
    "bird chirping": (
        GermanSource("ein Vogel", "zwitschert", "Zwitschern eines Vogels"),
        GermanSource("ein Vogel", "singt", "Singen eines Vogels"),
    ),
    "rain falling": (
        GermanSource("es", "regnet", "Rauschen des Regens"),
        GermanSource("der Regen", "prasselt", "Prasseln des Regens"),
    ),
    "wind blowing": (
        GermanSource("der Wind", "rauscht", "Rauschen des Windes"),
        GermanSource("der Wind", "heult", "Heulen des Windes"),
    ),
    "waves crashing": (
        GermanSource("die Wellen", "rauschen", "Rauschen der Wellen"),
        GermanSource("die Brandung", "rauscht", "Rauschen der Brandung"),
    ),
    "thunder rumbling": (GermanSource("der Donner", "grollt", "Grollen des Donners"),),
    "bell ringing": (
        GermanSource("eine Glocke", "läutet", "Läuten einer Glocke"),
        GermanSource("eine Glocke", "schlägt", "Schlagen einer Glocke"),
    ),
    "alarm beeping": (
        GermanSource("ein Alarm", "piept", "Piepen eines Alarms"),
        GermanSource("ein Alarm", "piepst", "Piepsen eines Alarms"),
    ),
    "siren wailing": (GermanSource("eine Sirene", "heult", "Heulen einer Sirene"),),
    "car honking": (
        GermanSource("ein Auto", "hupt", "Hupen eines Autos"),
        GermanSource("eine Autohupe", "ertönt", "Ertönen einer Autohupe"),
    ),
    "engine running": (
        GermanSource("ein Motor", "läuft", "Geräusch eines laufenden Motors"),
        GermanSource("ein Motor", "läuft", "Geräusch eines Motors im Leerlauf", complement="im Leerlauf"),
    ),
    "helicopter flying": (
        GermanSource("ein Hubschrauber", "fliegt", "Geräusch eines fliegenden Hubschraubers", prefix="umher"),
        GermanSource("ein Hubschrauber", "knattert", "Knattern eines Hubschraubers"),
    ),
    "clock ticking": (GermanSource("eine Uhr", "tickt", "Ticken einer Uhr"),),
    "person walking": (
        GermanSource("jemand", "geht", "Knirschen von Schritten", prefix="umher"),
        GermanSource("eine Person", "geht", "Umhergehen einer Person", prefix="umher"),
    ),
    "knocking on a door": (
        GermanSource("jemand", "klopft", "Klopfen an einer Tür", complement="an eine Tür"),
        GermanSource("eine Person", "klopft", "Klopfen an einer Tür", complement="an eine Tür"),
    ),
    "glass breaking": (
        GermanSource("ein Glas", "zerbricht", "Klirren eines zerbrechenden Glases"),
        GermanSource("eine Glasscheibe", "zersplittert", "Klirren einer zersplitternden Glasscheibe"),
    ),
    "telephone ringing": (
        GermanSource("ein Telefon", "klingelt", "Klingeln eines Telefons"),
        GermanSource("ein Telefon", "läutet", "Läuten eines Telefons"),
    ),
    "person whistling": (
        GermanSource("jemand", "pfeift", "Pfeifen einer Melodie", complement="eine Melodie"),
        GermanSource("eine Person", "pfeift", "Pfeifen einer Person"),
    ),
}

ADVERBIALS: Words = {
    ("distance", "far"): ("in der Ferne", "weit entfernt"),
    ("loudness", "loud"): ("laut", "sehr laut"),
    ("loudness", "quiet"): ("leise", "ganz leise"),
    ("rate", "fast"): ("schnell", "in schnellem Tempo"),
    ("rate", "slow"): ("langsam", "in langsamem Tempo"),
    ("pitch", "high"): ("mit hohem Ton", "in hoher Tonlage"),
    ("pitch", "low"): ("mit tiefem Ton", "in tiefer Tonlage"),
}
"""Place stands before manner, and what follows it is joined by "und"."""

ADJECTIVES: Words = {
    ("distance", "far"): ("ferne", "entfernte"),
    ("loudness", "loud"): ("laute",),
    ("loudness", "quiet"): ("leise",),
    ("rate", "fast"): ("schnelle", "rasche"),
    ("rate", "slow"): ("langsame",),
    ("pitch", "high"): ("hohe", "helle"),
    ("pitch", "low"): ("tiefe", "dunkle"),
}
"""Behind "das"; behind "dem" they end in n."""

_TEMPLATES = {
    "single": (
        "{main}",
        "hier {inverted}",
        "man hört, wie {final}",
        "man hört {nominal}",
        "zu hören ist {nominal}",
        "{nominal} ist zu hören",
    ),
    "then": (
        "{main}, dann {inverted2}",
        "{main} und danach {inverted2}",
        "{main}, bevor {final2}",
        "bevor {final2}, {inverted}",
        "zuerst {inverted}, dann {inverted2}",
        "man hört zuerst {nominal} und dann {nominal2}",
        "auf {nominal} folgt {nominal2}",
        "nach {dative} hört man {nominal2}",
    ),
    "while": (
        "{main}, während {final2}",
        "während {final}, {inverted2}",
        "{main} und gleichzeitig {inverted2}",
        "man hört, wie {final} und gleichzeitig {final2}",
        "man hört gleichzeitig {nominal} und {nominal2}",
        "zusammen mit {dative} ist {nominal2} zu hören",
    ),
}


def _forms(sound: str, attributes: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """One event as main clause, with the verb first, with the verb last, and as a noun in two cases."""
    source = draw(SOURCES[sound], rng)
    adverbials = _joined(draw_words(ADVERBIALS, attributes, rng), is_far="distance" in attributes)
    adjectives = draw_words(ADJECTIVES, attributes, rng)
    behind = _spaced(adverbials, source.complement, source.prefix)
    return {
        "main": _spaced(source.subject, source.verb, behind),
        "inverted": _spaced(source.verb, source.subject, behind),
        "final": _spaced(source.subject, adverbials, source.complement, source.prefix + source.verb),
        "nominal": _spaced("das", ", ".join(adjectives), source.nominal),
        "dative": _spaced("dem", ", ".join(f"{adjective}n" for adjective in adjectives), source.nominal),
    }


def _joined(adverbials: list[str], *, is_far: bool) -> str:
    place, manner = adverbials[:is_far], adverbials[is_far:]
    return _spaced(*place, " und ".join(manner))


def _spaced(*parts: str) -> str:
    return " ".join(part for part in parts if part)


GRAMMAR = Grammar(_TEMPLATES, _forms)
