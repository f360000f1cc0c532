"""Variants of captions: sentences that are nearly the caption and false of its clip, and the parts that are true of it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

import numpy as np

from clapkit.data._caption_clauses import reordered, says_order, says_together
from clapkit.data._caption_parts import parts
from clapkit.data._caption_rules import Site, Vocabulary, groups_of, negated, opposed, swapped
from clapkit.data._caption_words import folded, words_of
from clapkit.data.language_tags import normal_tag
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.types import Caption, Clip

Kind = Literal["order", "attribute", "negation", "swap", "given"]

KINDS: tuple[Kind, ...] = get_args(Kind)
GIVEN_KEY = "hard_captions"
"""Key of ``Clip.extra`` under which a manifest brings false captions of its own."""

_MOST_REMEMBERED = 65_536
_EXPECTED = 'expected a text or {"text": ..., "lang": ..., "caption": number of a caption, from 0}'


@dataclass(frozen=True, slots=True)
class _Made:
    """What is made of a caption once.

    Attributes:
        given: false, of the manifest.
        by_kind: false, by the rules for order, attribute and negation; lists that are not empty.
        true: parts.
        sites: where something else can be named.
        taken: folded texts that no false variant may have.
        groups: of sources that the clip is said to hold.
    """

    given: tuple[str, ...]
    by_kind: tuple[tuple[str, ...], ...]
    true: tuple[str, ...]
    sites: tuple[Site, ...]
    taken: frozenset[str]
    groups: frozenset[str]


class CaptionVariants:
    """Draws variants of captions, see ``clapkit.data.dataset.VariantDraw``.

    False ones that the manifest brings come first; then each kind in turn, in random order, gives one. Only English captions
    have variants by rules. What a rule makes is false of the clip as far as its own captions and labels tell: no variant is
    one of them, and none names what another one names.

    Args:
        clips: of the training split, in the order of its rows.
        num_false: false variants of each caption.
        num_true: true ones.
        kinds: of the false ones; all unless given.

    Raises:
        UnknownNameError: if there is no such kind.
        ConfigError: if nothing is asked for.
        ManifestError: if what a clip has under ``extra.hard_captions`` cannot be read.
    """

    def __init__(self, clips: Sequence[Clip], *, num_false: int, num_true: int, kinds: Sequence[str] | None = None) -> None:
        check_kinds(kinds or ())
        if min(num_false, num_true) < 0 or num_false + num_true == 0:
            raise ConfigError(
                f"{num_false} false and {num_true} true variants of a caption: expected at least 1 in all, none below 0"
            )
        if kinds is not None and not kinds:
            raise ConfigError(f"no kind of variants: expected some of {', '.join(KINDS)}")
        self.kinds: tuple[str, ...] = KINDS if kinds is None else tuple(dict.fromkeys(kinds))
        self.num_false, self.num_true = num_false, num_true
        self.per_caption = num_false + num_true
        self._clips = tuple(clips)
        self._given = {row: _read_given(clip) for row, clip in enumerate(clips) if GIVEN_KEY in clip.extra}
        self._vocabulary = self._make_vocabulary() if "swap" in self.kinds else None
        self._made = functools.lru_cache(maxsize=_MOST_REMEMBERED)(self._make)
        self._parts = functools.lru_cache(maxsize=_MOST_REMEMBERED)(self._make_parts)

    def draw(self, row: int, caption: int, rng: np.random.Generator) -> tuple[list[str], list[int]]:
        """Variants of a caption of a clip, false ones first.

        Args:
            row: of the clip.
            caption: its number among the captions of the clip.
            rng: chooses among more than are asked for.

        Returns:
            ``per_caption`` texts, and -1 for each that is false, 1 for each that is true, 0 for the caption itself, which
            stands where there are too few.
        """
        made = self._made(row, caption)
        text = self._clips[row].captions[caption].text
        false = _distinct(self._false(row, caption, made, rng), made.taken, self.num_false)
        true = [made.true[place] for place in rng.permutation(len(made.true))[: self.num_true]]
        texts = [*false, *[text] * (self.num_false - len(false)), *true, *[text] * (self.num_true - len(true))]
        truth = [-1] * len(false) + [0] * (self.num_false - len(false)) + [1] * len(true) + [0] * (self.num_true - len(true))
        return texts, truth

    def true_of(self, row: int) -> list[str]:
        """All true variants of all captions of a clip, of which ``draw`` gives some; none if none are asked for."""
        return list(dict.fromkeys(part for of_caption in self._parts(row) for part in of_caption))

    def num_without(self, *, most: int | None = None) -> tuple[int, int]:
        """How many captions have no false variant at all, whatever is drawn, and how many were looked at.

        Args:
            most: captions to look at, from the first on; None for all, which takes a third of a millisecond each.
        """
        captions = ((row, number) for row, clip in enumerate(self._clips) for number in range(len(clip.captions)))
        has_false = [self._has_false(row, number) for row, number in itertools.islice(captions, most)]
        return has_false.count(False), len(has_false)

    def _has_false(self, row: int, caption: int) -> bool:
        """Whether a caption has a false variant; looks no further than the first."""
        if self.num_false == 0:
            return False
        clip, taken = self._clips[row], self._taken(row)
        if any(folded(text) not in taken for text in self._given_to(row, caption)):
            return True
        if _is_english(clip.captions[caption]):
            if any(folded(text) not in taken for texts in self._by_rules(clip, caption) for text in texts):
                return True
        return bool(_distinct(self._false(row, caption, self._made(row, caption), np.random.default_rng(0)), taken, 1))

    @property
    def num_captions(self) -> int:
        """Captions of all clips."""
        return sum(len(clip.captions) for clip in self._clips)

    def _false(self, row: int, caption: int, made: _Made, rng: np.random.Generator) -> Iterator[str]:
        """False variants, the given ones first, then one of each kind in turn."""
        yield from (made.given[place] for place in rng.permutation(len(made.given)))
        sources = [iter([texts[place] for place in rng.permutation(len(texts))]) for texts in made.by_kind]
        if made.sites and self._vocabulary is not None:
            clip = self._clips[row]
            sources.append(
                swapped(
                    clip.captions[caption].text,
                    made.sites,
                    self._vocabulary,
                    named_groups=made.groups,
                    labels=clip.labels,
                    rng=rng,
                )
            )
        waiting = [sources[place] for place in rng.permutation(len(sources))]
        while waiting:
            source = waiting.pop(0)
            text = next(source, None)
            if text is not None:
                yield text
                waiting.append(source)

    def _make(self, row: int, caption: int) -> _Made:
        clip = self._clips[row]
        text = clip.captions[caption].text
        by_rules = _is_english(clip.captions[caption]) and self.num_false > 0
        sites = self._vocabulary.sites(text, clip.labels) if by_rules and self._vocabulary is not None else []
        return _Made(
            given=tuple(self._given_to(row, caption)),
            by_kind=tuple(tuple(texts) for texts in self._by_rules(clip, caption) if texts) if by_rules else (),
            true=self._parts(row)[caption],
            sites=tuple(sites),
            taken=self._taken(row),
            groups=groups_of([*(other.text for other in clip.captions), *clip.labels]) if sites else frozenset(),
        )

    def _make_parts(self, row: int) -> tuple[tuple[str, ...], ...]:
        """Parts of each caption of a clip that are none of its captions."""
        captions = self._clips[row].captions
        if self.num_true == 0:
            return ((),) * len(captions)
        texts = {folded(caption.text) for caption in captions}
        return tuple(
            tuple(part for part in parts(caption.text) if folded(part) not in texts) if _is_english(caption) else ()
            for caption in captions
        )

    def _taken(self, row: int) -> frozenset[str]:
        """Folded texts that are true of a clip, as none of its false variants may be."""
        return frozenset(map(folded, [*(caption.text for caption in self._clips[row].captions), *self.true_of(row)]))

    def _given_to(self, row: int, caption: int) -> list[str]:
        """What the manifest says against a caption, or against all in its language."""
        if "given" not in self.kinds:
            return []
        lang = self._clips[row].captions[caption].lang
        entries = self._given.get(row, ())
        return [entry.text for entry in entries if entry.caption in (None, caption) and entry.lang in (None, lang)]

    def _by_rules(self, clip: Clip, caption: int) -> Iterator[list[str]]:
        """False captions of each kind that needs no other clip, the quick ones first."""
        text = clip.captions[caption].text
        others = [other.text for number, other in enumerate(clip.captions) if number != caption]
        if "negation" in self.kinds:
            yield negated(text)
        if "attribute" in self.kinds:
            yield opposed(text, {word for other in others for word in words_of(other)})
        if "order" in self.kinds:
            ordered, together = any(map(says_order, others)), any(map(says_together, others))
            yield reordered(text, may_be_ordered=ordered, may_be_together=together)

    def _make_vocabulary(self) -> Vocabulary:
        return Vocabulary(
            (caption.text for clip in self._clips for caption in clip.captions),
            (label for clip in self._clips for label in clip.labels),
        )


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse kinds of variants that there are not; costs nothing, so that it can be asked before data are read.

    Raises:
        UnknownNameError: naming the first.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of variants", kind, KINDS)


def _is_english(caption: Caption) -> bool:
    return caption.lang.lower().split("-")[0] == "en"


def _distinct(texts: Iterator[str], taken: frozenset[str], count: int) -> list[str]:
    """The first ``count`` texts that differ from each other and from what is taken."""
    seen = set(taken)
    found: list[str] = []
    while len(found) < count:
        text = next(texts, None)
        if text is None:
            break
        if folded(text) not in seen:
            seen.add(folded(text))
            found.append(text)
    return found


@dataclass(frozen=True, slots=True)
class _Given:
    """A false caption of the manifest, of the captions in a language or of one of them only, if it says so."""

    text: str
    lang: str | None
    caption: int | None


def _read_given(clip: Clip) -> tuple[_Given, ...]:
    entries = clip.extra[GIVEN_KEY]
    if not isinstance(entries, list | tuple):
        _refuse(clip, f"holds {entries!r}, expected a list")
    return tuple(_read_entry(clip, entry) for entry in entries)


def _read_entry(clip: Clip, entry: Any) -> _Given:
    if isinstance(entry, str):
        entry = {"text": entry}
    if not isinstance(entry, dict) or entry.keys() - {"text", "lang", "caption"}:
        _refuse(clip, f"holds {entry!r}, {_EXPECTED}")
    text, lang, caption = entry.get("text"), entry.get("lang"), entry.get("caption")
    if not isinstance(text, str) or not text.strip() or not isinstance(lang, str | None) or lang == "":
        _refuse(clip, f"holds {entry!r}, {_EXPECTED}")
    lang = None if lang is None else normal_tag(lang)
    if caption is not None and (type(caption) is not int or not 0 <= caption < len(clip.captions)):
        _refuse(clip, f"names caption {caption!r}, expected a whole number from 0 to {len(clip.captions) - 1}")
    if lang is not None and caption is not None and clip.captions[caption].lang != lang:
        _refuse(clip, f"names caption {caption} in {lang!r}, which is in {clip.captions[caption].lang!r}")
    return _Given(text, lang, caption)


def _refuse(clip: Clip, found: str) -> NoReturn:
    raise ManifestError(f"clip {clip.id}: extra.{GIVEN_KEY} {found}; correct the manifest")
