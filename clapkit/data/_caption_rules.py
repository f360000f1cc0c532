"""Rules that make an English caption false in one point: an attribute, a negation, what makes the sound."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clapkit.data._caption_clauses import Sentence, lacks_subject
from clapkit.data._caption_words import (
    EVENTS,
    FINITE,
    GENDERS,
    GROUPS,
    NOUNS,
    OPPOSITES,
    PRONOUNS,
    WORD,
    attributes,
    has_verb,
    is_gerund,
    words_of,
)

_DETERMINERS = re.compile(
    r"(?:(?:a|an|the|some|several|many|multiple|numerous|two|three|four|a few|a lot of|lots of|a couple of|a number of"
    r"|a group of|a bunch of|various|different) )+",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?P<lead>(?:(?:we|you|one) (?:can )?hears?(?: that)? |in this (?:clip|recording|audio),? |what happens here is that "
    r"|there (?:is|are) |first,? |(?:and )?then |while |after |before ))",
    re.IGNORECASE,
)
_PEOPLE = re.compile(r"(?:someone|somebody) ", re.IGNORECASE)
_NOT_NEGATED = frozenset(
    """in on at of with without for from to by into onto over under near nearby through against around behind during like than
    if when where and or but as while then before after again also another other more once no not none nothing both each every
    he she it they his its her their this that these those which who underwater outside inside outdoors indoors first finally
    all everyone i one upon among amid someone somebody whilst""".split()
)
_OBJECTS = frozenset("a an the his her its their some something it them through into onto on over in".split())
_BEHIND_NOUNS = frozenset(
    """and or with in on at to from by near nearby then followed preceded as while before after over through outside inside
    again loudly quietly is are was were that which who can""".split()
)
_AND = re.compile(r",? and (?!(?:then|afterwards|meanwhile|at the same time|simultaneously|forth|over|off|on|again|down|up)\b)")
_WITH = re.compile(r"(?<!together) with ", re.IGNORECASE)


def opposed(caption: str, elsewhere: Collection[str] = ()) -> list[str]:
    """Captions in which one attribute is its opposite.

    Args:
        caption: true of the clip.
        elsewhere: words of what else is said about the clip; what it calls loud and quiet is left alone.
    """
    named = attributes(caption)
    found = []
    for word in named:
        opposite = OPPOSITES[word]
        if opposite in named and word in EVENTS:
            continue
        if not any(part in elsewhere for part in words_of(opposite)):
            # Of "a man and a woman" one only: with both exchanged it is true again.
            found.append(_with_opposite(caption, word, opposite, count=1 if opposite in named else 0))
    return found


def _with_opposite(caption: str, word: str, opposite: str, *, count: int) -> str:
    changed = _replaced(caption, word, opposite, count=count)
    if word in GENDERS and count == 0:
        for pronoun in PRONOUNS if not {"he", "she"} <= set(words_of(caption)) else ():
            if pronoun in words_of(caption):
                changed = _replaced(changed, pronoun, PRONOUNS[pronoun], count=0)
    return changed


def _replaced(text: str, word: str, other: str, *, count: int) -> str:
    """A text with another word, in the capitals of the one that stood there and with the article that it takes."""

    def place(match: re.Match[str]) -> str:
        article, found = match["article"] or "", match["word"]
        return f"{_article(article, other)}{_like(found, other)}"

    return re.sub(
        rf"(?P<article>\ban? )?(?<![\w'’-])(?P<word>{re.escape(word)})(?![\w'’-])", place, text, count=count, flags=re.I
    )


def _article(article: str, noun: str) -> str:
    if not article:
        return ""
    return _like(article, "an " if noun[0].lower() in "aeiou" else "a ")


def _like(found: str, word: str) -> str:
    return word[:1].upper() + word[1:] if found[:1].isupper() else word


def negated(caption: str) -> list[str]:
    """Captions that deny one of the things that they name."""
    sentence = Sentence.of(caption)
    bodies = [_denied(sentence.body)]
    joints = list(_AND.finditer(sentence.body))
    for match in joints[-1:]:
        left, right = sentence.body[: match.start()], sentence.body[match.end() :]
        # "A man and a woman talk" has one verb for both, which neither half can do without.
        if not has_verb(left):
            continue
        if _is_noun_phrase(right):
            bodies.append(f"{left} without {_bare(right)}")
        elif (denied := _denied(right)) is not None and not is_gerund(words_of(right)[0]):
            bodies.append(f"{left} and {denied}")
    for match in list(_WITH.finditer(sentence.body))[-1:] if not joints else ():
        left, right = sentence.body[: match.start()], sentence.body[match.end() :]
        if has_verb(left) and words_of(right)[:1] and words_of(right)[0] not in _NOT_NEGATED:
            bodies.append(f"{left} without {_bare(right)}")
    return [sentence.with_body(body) for body in dict.fromkeys(bodies) if body is not None]


def _bare(text: str) -> str:
    """Without the article or number at its start."""
    match = _DETERMINERS.match(text)
    return text if match is None else text[match.end() :]


def _is_noun_phrase(text: str) -> bool:
    """Whether something is named that does nothing, or does it with -ing: "rain falling", "laughing"."""
    words = words_of(text)
    if not words or words[0] in _NOT_NEGATED:
        return False
    return not any(word in FINITE for word in words) and any(is_gerund(word) for word in words)


def _denied(body: str) -> str | None:
    """A clause that says that its subject is not there; None where it has none to deny."""
    lead = match["lead"] if (match := _LEAD.match(body)) else ""
    rest = body[len(lead) :]
    if rest.lower().startswith("it is "):
        return f"{lead}it is not {rest[6:]}"
    if _PEOPLE.match(rest):
        return f"{lead}{_PEOPLE.sub('no one ', rest, count=1)}"
    bare = _bare(rest)
    words = words_of(bare)
    if len(words) < 2 or words[0] in _NOT_NEGATED or words[0].endswith("ly") or lacks_subject(rest):
        return None
    if is_gerund(words[0]) and words[1] in _OBJECTS:
        return None
    if bare.split(",")[0] != bare and not has_verb(bare.split(",")[0]):
        return None
    return f"{lead}no {bare}"


@dataclass(frozen=True, slots=True)
class Site:
    """Where a caption names what makes a sound: characters ``start`` to ``end``, its article among them.

    ``form`` is what has to agree with whatever comes there: number and kind of a noun, or None for a label.
    """

    start: int
    end: int
    article: str
    word: str
    form: tuple[str, str] | None


class Vocabulary:
    """What makes sounds in a corpus, to put one thing in the place of another.

    Args:
        captions: of the corpus; of a list of nouns, those that they hold are used.
        labels: of the corpus, which are put in the place of labels.
    """

    def __init__(self, captions: Iterable[str], labels: Iterable[str]) -> None:
        words: set[str] = set()
        for caption in captions:
            words.update(caption.lower().replace(",", " ").replace(".", " ").split())
        self._nouns: dict[tuple[str, str], list[str]] = {}
        for noun, form in NOUNS.items():
            if noun in words and noun != "someone":
                self._nouns.setdefault(form, []).append(noun)
        self._labels = sorted(set(labels))
        self._groups = {name: groups_of([name]) for name in [*NOUNS, *self._labels]}

    def sites(self, caption: str, labels: Sequence[str]) -> list[Site]:
        """The places of a caption, of a clip with some labels, where something else can be named."""
        places = [_label_site(caption, label) for label in labels]
        found = [site for site in places if site is not None]
        before = ""
        tokens = list(WORD.finditer(caption))
        for token, following in zip(tokens, [*tokens[1:], None], strict=False):
            word, previous, before = token.group().lower(), before, token.group().lower()
            if word not in NOUNS or previous in NOUNS or any(site.start <= token.start() < site.end for site in found):
                continue
            if following is not None and caption[token.end() : following.start()] == " " and not _ends_noun(following.group()):
                continue
            article = re.search(r"\ban? $", caption[: token.start()], re.IGNORECASE)
            start = token.start() if article is None else article.start()
            found.append(Site(start, token.end(), "" if article is None else article.group(), token.group(), NOUNS[word]))
        return found

    def instead(self, site: Site, named_groups: frozenset[str], labels: Sequence[str]) -> list[str]:
        """What can stand at a place: not what is named elsewhere, by a word of the same group or as a label of the clip."""
        if site.form is None:
            taken = {word for label in labels for word in words_of(label)}
            candidates = [label for label in self._labels if taken.isdisjoint(words_of(label))]
        else:
            candidates = self._nouns.get(site.form, [])
        return [noun for noun in candidates if self._groups[noun].isdisjoint(named_groups)]

    def put(self, caption: str, site: Site, noun: str) -> str:
        """The caption with another noun at a place."""
        if site.word.lower() == "someone":
            noun = _article("a ", noun) + noun
        text = f"{_article(site.article, noun)}{_like(site.word, noun) if not site.article else noun}"
        return f"{caption[: site.start]}{_like(caption[site.start], text)}{caption[site.end :]}"


def _ends_noun(following: str) -> bool:
    """Whether the word behind a noun is no other noun, "car horn", of which it only says what kind."""
    word = following.lower()
    return word in _BEHIND_NOUNS or word in FINITE or is_gerund(word) or word.endswith("ly")


def _label_site(caption: str, label: str) -> Site | None:
    place = re.search(rf"(?<![\w-]){re.escape(label)}(?![\w-])", caption, re.IGNORECASE) if " " in label else None
    return None if place is None else Site(place.start(), place.end(), "", place.group(), None)


def groups_of(texts: Iterable[str]) -> frozenset[str]:
    """The groups of sources that texts speak of."""
    return frozenset().union(*(GROUPS.get(word, frozenset()) for text in texts for word in words_of(text)))


def swapped(
    caption: str,
    sites: Sequence[Site],
    vocabulary: Vocabulary,
    *,
    named_groups: frozenset[str],
    labels: Sequence[str],
    rng: np.random.Generator,
) -> Iterator[str]:
    """Captions, in random order, in which another source makes the sound: of every place one after the other."""
    choices = [vocabulary.instead(site, named_groups, labels) for site in sites]
    orders = [rng.permutation(len(nouns)) for nouns in choices]
    for turn in range(max(map(len, choices), default=0)):
        for place in rng.permutation(len(sites)):
            if turn < len(choices[place]):
                yield vocabulary.put(caption, sites[place], choices[place][orders[place][turn]])
