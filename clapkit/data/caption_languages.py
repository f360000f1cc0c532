"""Which captions of a clip a batch gets where a corpus is described in several languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip

Strategy = Literal["sample", "all", "anchor"]

# Objectives that set languages against each other know them by a number that is made of so many bytes of the tag.
_BYTES_TOLD_APART = 7
_MAX_ROUNDS = 1000
_SETTLED = 1e-9


class LanguageDraw:
    """Draws captions by language; a ``CaptionDraw`` for ``TrainingBatches``.

    ``sample`` takes one language and a caption of it. ``all`` takes a caption of every language, in the order of their tags.
    ``anchor`` takes a caption of the anchor language and then one of another language. Languages are drawn so that over the
    corpus each comes equally often, as far as what clips lack allows that, see ``even_shares``. Inside a language captions are
    drawn evenly; those that stand at the same place in languages with equally many captions, translations of each other as a
    rule, come together.

    Reference: ATRI, 2025, arXiv 2502.14627, where ``sample`` is called ML-CLAP, ``all`` KCL and ``anchor`` CACL. Deviation:
    clips may lack languages; ``sample`` and ``anchor`` then draw unevenly from a clip to be even over the corpus.

    Args:
        clips: of the training split, in the order of its rows; those without captions are left to ``TrainingBatches``.
        strategy: see above.
        anchor: tag of the anchor language.

    Attributes:
        languages: tags of the captions, sorted.
        captions_per_clip: 1, the number of languages, or 2.

    Raises:
        ConfigError: if there are fewer than two languages, no caption is in the anchor language, or tags cannot be told apart.
        ManifestError: if a clip lacks a language that the strategy takes of all.
    """

    def __init__(self, clips: Sequence[Clip], strategy: Strategy, *, anchor: str = "en") -> None:
        self._clips, self._strategy, self._anchor = clips, strategy, anchor
        spoken = [_languages(clip) for clip in clips]
        self.languages = tuple(sorted({language for own in spoken for language in own}))
        self._check_languages()
        if strategy == "all":
            _check_complete(clips, spoken, self.languages)
        elif strategy == "anchor":
            _check_anchored(clips, spoken, anchor)
        self.captions_per_clip = {"sample": 1, "all": len(self.languages), "anchor": 2}[strategy]
        candidates = Counter(filter(None, map(self._candidates, spoken)))
        self._shares = even_shares(candidates) if candidates else {}

    def draw(self, row: int, rng: np.random.Generator) -> list[int]:
        """Numbers of the captions of a clip that a batch gets, ``captions_per_clip`` of them."""
        captions = self._clips[row].captions
        place = rng.random()  # one for all languages, so that translations come together
        drawn = []
        for language in self._choose(_languages(self._clips[row]), rng):
            numbers = [number for number, caption in enumerate(captions) if caption.lang == language]
            drawn.append(numbers[int(place * len(numbers))])
        return drawn

    def _choose(self, spoken: tuple[str, ...], rng: np.random.Generator) -> list[str]:
        if self._strategy == "all":
            return list(self.languages)
        candidates = self._candidates(spoken)
        shares = np.cumsum(self._shares[candidates])
        one = candidates[int(np.searchsorted(shares / shares[-1], rng.random(), side="right"))]
        return [one] if self._strategy == "sample" else [self._anchor, one]

    def _candidates(self, spoken: tuple[str, ...]) -> tuple[str, ...]:
        """Languages of a clip of which one is drawn; none where all are taken."""
        if self._strategy == "all":
            return ()
        return tuple(language for language in spoken if self._strategy == "sample" or language != self._anchor)

    def _check_languages(self) -> None:
        flag, found = f"--language-strategy {self._strategy}", ", ".join(self.languages) or "none"
        if len(self.languages) < 2:
            raise ConfigError(f"{flag}: the training split has captions in one language only ({found}); leave it out")
        if self._strategy == "anchor" and self._anchor not in self.languages:
            raise ConfigError(f"--anchor-language {self._anchor}: no caption is in it; pass one of {found}")
        first_with: dict[bytes, str] = {}
        for language in self.languages if self._strategy != "sample" else ():
            known = first_with.setdefault(language.encode()[:_BYTES_TOLD_APART], language)
            if known != language:
                raise ConfigError(
                    f"{flag}: the languages {known} and {language} are equal in their first {_BYTES_TOLD_APART} letters, by "
                    "which training tells them apart; shorten the tags in the manifest"
                )


def even_shares(count: Mapping[tuple[str, ...], int]) -> dict[tuple[str, ...], np.ndarray]:
    """How often each language is drawn of clips that have certain ones, so that all come equally often.

    Language l is drawn of a clip with the languages S with the share ``w_l / sum of w_k over k in S``. The weights w are found
    by iterative proportional fitting. Where equal counts cannot be had, because too few clips have a language, this tends to
    the nearest that can: clips then draw only those of their languages that come least often.

    Args:
        count: languages of a clip, sorted, at least one -> number of clips with exactly these.

    Returns:
        The same languages -> their shares, float64, summing to 1.
    """
    languages = sorted({language for own in count for language in own})
    has = np.array([[language in own for language in languages] for own in count], dtype=bool)  # [S, L]
    clips = np.array(list(count.values()), dtype=np.float64)
    log_weight, shares = np.zeros(len(languages)), np.zeros(has.shape)
    for _ in range(_MAX_ROUNDS):
        # Weights are kept as logarithms: where even counts cannot be had, their ratios grow without end.
        logits = np.where(has, log_weight, -np.inf)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        before, shares = shares, weights / weights.sum(axis=1, keepdims=True)
        if np.abs(shares - before).max() < _SETTLED:
            break
        log_weight = log_weight - np.log(clips @ shares)
    return {own: row[present] for own, row, present in zip(count, shares, has, strict=True)}


def _languages(clip: Clip) -> tuple[str, ...]:
    """Tags of the captions of a clip, sorted, which is also the order of ``even_shares``."""
    return tuple(sorted({caption.lang for caption in clip.captions}))


def _check_complete(clips: Sequence[Clip], spoken: Sequence[tuple[str, ...]], languages: Sequence[str]) -> None:
    lacking = [(clip, missing) for clip, own in zip(clips, spoken, strict=True) if (missing := _without(languages, own))]
    if lacking:
        counts = Counter(language for _, missing in lacking for language in missing)
        listing = ", ".join(f"{language} in {counts[language]}" for language in sorted(counts))
        raise ManifestError(
            f"--language-strategy all: {len(lacking)} of {len(clips)} training clips lack captions in a language ({listing}), "
            f"first {lacking[0][0].id} ({', '.join(lacking[0][1])}); add them, leave these clips out, or pass "
            "--language-strategy sample"
        )


def _check_anchored(clips: Sequence[Clip], spoken: Sequence[tuple[str, ...]], anchor: str) -> None:
    without = [clip for clip, own in zip(clips, spoken, strict=True) if anchor not in own]
    alone = [clip for clip, own in zip(clips, spoken, strict=True) if own == (anchor,)]
    if without or alone:
        ids = {clip.id for clip in (*without, *alone)}
        first = next(clip.id for clip in clips if clip.id in ids)
        raise ManifestError(
            f"--language-strategy anchor: of {len(clips)} training clips {len(without)} have no caption in {anchor} and "
            f"{len(alone)} in no other language, first {first}; add them, leave these clips out, or pass "
            "--language-strategy sample"
        )


def _without(languages: Sequence[str], own: tuple[str, ...]) -> list[str]:
    return [language for language in languages if language not in own]
