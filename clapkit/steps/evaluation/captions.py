"""Captions as texts: cleaned as some models were trained, and those that several clips share."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def clean_caption(text: str) -> str:
    """Lower case, blanks for punctuation, and no blank beside another or at an end.

    The models of the WavCaps family were trained on such captions. Punctuation is what Unicode calls so, in any script, and
    the symbols of ASCII.
    """
    kept = (
        " " if character in string.punctuation or unicodedata.category(character)[0] == "P" else character for character in text
    )
    return " ".join("".join(kept).lower().split())


@dataclass(frozen=True, slots=True)
class SharedTexts:
    """Captions that several clips share.

    Attributes:
        num_captions: captions with the text of a caption of another clip.
        ceiling: the largest share of captions that can find their own clip first: of those with one text, only those of one
            clip can.
    """

    num_captions: int
    ceiling: float


def shared_texts(texts: Sequence[str], clip: IntArray) -> SharedTexts:
    """Count the captions whose text stands for several clips.

    Args:
        texts: M captions, as they were embedded.
        clip: int64 [M], the clip of each.
    """
    text = _numbered(texts)
    pairs, per_pair = np.unique(np.stack((text, clip)), axis=1, return_counts=True)
    num_clips = np.bincount(pairs[0])
    best = np.zeros(len(num_clips), dtype=np.int64)
    np.maximum.at(best, pairs[0], per_pair)
    return SharedTexts(int(per_pair[num_clips[pairs[0]] > 1].sum()), float(best.sum() / len(texts)))


def merged_pairs(texts: Sequence[str], clip: IntArray, *, most: int) -> tuple[IntArray, IntArray] | int:
    """Further relevant pairs if captions with the same words stand for all their clips.

    Args:
        texts: M captions; they are compared as ``clean_caption`` gives them.
        clip: int64 [M], the clip of each.
        most: no more pairs than this are listed.

    Returns:
        The clip and the caption of each further pair, [P] and [P]; their number if there are more than ``most``.
    """
    text = _numbered([clean_caption(one) or one for one in texts])  # punctuation alone has no words that could be equal
    pairs = np.unique(np.stack((text, clip)), axis=1)  # the clips of each text, by text
    first, num_clips = np.searchsorted(pairs[0], np.arange(text.max() + 1)), np.bincount(pairs[0])
    shared = np.flatnonzero(num_clips[text] > 1)  # captions
    repeats = num_clips[text[shared]]
    if int((repeats - 1).sum()) > most:
        return int((repeats - 1).sum())
    place = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)  # among the clips of the text
    caption = np.repeat(shared, repeats)
    clips = pairs[1][first[text[caption]] + place]
    other = clips != clip[caption]
    return clips[other], caption[other]


def _numbered(texts: Sequence[str]) -> IntArray:
    """Texts as numbers, the same for the same text [M]."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int64)
