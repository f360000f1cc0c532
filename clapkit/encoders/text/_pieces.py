"""Captions that are longer than a text tower reads, in pieces that it can read.

Without torch, so that a query of words is divided just as a caption is (``encoders.numpy_text``).
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Literal, cast, get_args

from clapkit.errors import UnknownNameError

LongCaptions = Literal["cut", "split"]
CountTokens = Callable[[Sequence[str]], list[int]]

# Behind the mark of an end there may be quotes and brackets that close. A mark of Latin script counts before a blank alone,
# for 3.5 and 10:30 are one word, and a full stop not behind a lone letter, as in i.e. and U.S.; those of scripts that put no
# blank behind them count everywhere.
_CLOSING = r"[\"'”’»)\]}」』）】〉》]*"
# Chinese and Japanese, Hindi, Arabic and Urdu, Armenian, Amharic, Burmese, Khmer, Tibetan.
_FULL_STOPS = "。！？．｡\u0964\u0965\u061f\u06d4\u0589\u1362\u104b\u17d4\u0f0d"
_SENTENCE_END = re.compile(rf"(?:(?<!\b\w)\.|[!?…])+{_CLOSING}(?=\s)|[{_FULL_STOPS}]+{_CLOSING}|\n")
# Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese write no blanks between words; between phrases, Thai does.
_WITHOUT_BLANKS = (
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_CLAUSE_END = re.compile(rf"(?:[,;:]{_CLOSING}|\s[-–—])(?=\s)|[—、，；：\u060c\u061b\u104a]{_CLOSING}|(?<={_WITHOUT_BLANKS})\s")
_LONE_LETTER = re.compile(_WITHOUT_BLANKS)
# Vowels of Thai and Lao that are written before their consonant, and those behind it that Unicode does not call marks.
_LEADING_VOWELS = frozenset("\u0e40\u0e41\u0e42\u0e43\u0e44\u0ec0\u0ec1\u0ec2\u0ec3\u0ec4")
_FOLLOWING_VOWELS = frozenset("\u0e30\u0e32\u0e33\u0eb0\u0eb2\u0eb3")
_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class Pieces:
    """B captions as M pieces, M >= B, those of a caption side by side.

    Attributes:
        texts: the M pieces; a caption that fits is its own, as it was given.
        counts: pieces of each of the B captions.
        tokens: length of each piece, the tokens that a tower adds left out; its weight in the mean of a caption.
    """

    texts: list[str]
    counts: list[int]
    tokens: list[int]

    @property
    def num_split(self) -> int:
        """How many captions are not whole."""
        return sum(count > 1 for count in self.counts)


def expect_long_captions(name: str) -> LongCaptions:
    """What becomes of captions that are too long: ``cut`` or ``split``.

    Args:
        name: what was given for it.

    Raises:
        UnknownNameError: if it is neither.
    """
    if name not in get_args(LongCaptions):
        raise UnknownNameError("treatment of long captions", str(name), get_args(LongCaptions))
    return cast(LongCaptions, name)


def split_captions(captions: Sequence[str], count_tokens: CountTokens, *, max_tokens: int) -> Pieces:
    """Divide captions that are too long at sentence ends; a sentence that is too long at clause marks, else between words.

    Sentences that fit are never broken, and neighbours share a piece as long as they fit. A word is broken where it alone is
    too long. Scripts without blanks are broken between letters, which keep their marks. What becomes of a caption does not
    depend on the others.

    Args:
        captions: B sentences or texts.
        count_tokens: texts -> how many tokens each has for the tower, those that it adds among them.
        max_tokens: most that the tower reads.
    """
    added, *counts = count_tokens(["", *captions])
    reader = _Reader(count_tokens, added=added, room=max_tokens - added)
    divided = [
        reader.divide(caption) if count > max_tokens else [(caption, count - added)]
        for caption, count in zip(captions, counts, strict=True)
    ]
    return Pieces(
        texts=[text for pieces in divided for text, _ in pieces],
        counts=[len(pieces) for pieces in divided],
        tokens=[max(1, size) for pieces in divided for _, size in pieces],
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """What a tower can read.

    Attributes:
        count_tokens: see ``split_captions``.
        added: tokens that it adds to every text.
        room: most tokens of a text without them.
    """

    count_tokens: CountTokens
    added: int
    room: int

    def sizes(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text without those that are added."""
        return [count - self.added for count in self.count_tokens(texts)]

    def divide(self, caption: str) -> list[tuple[str, int]]:
        """Pieces of a caption and their sizes; blanks around a piece, and pieces without a token, are left out."""
        pieces = [(text, size) for text, size in self._fit(caption, _LEVELS) if size > 0]
        return pieces or [("", 0)]

    def _fit(self, text: str, levels: Sequence[Callable[[str], list[int]]]) -> Iterator[tuple[str, int]]:
        """Parts of a text between the marks of a level: those that fit are joined, those that do not are divided further."""
        parts = _between(text, levels[0](text))
        sized = zip(parts, self.sizes([part.strip() for part in parts]), strict=True)
        for fits, run in groupby(sized, key=lambda part: part[1] <= self.room):
            if fits:
                yield from self._join(list(run))
                continue
            for part, size in run:
                if len(levels) > 1:
                    yield from self._fit(part, levels[1:])
                else:  # a single letter, which the tower cuts and counts
                    yield part.strip(), size

    def _join(self, parts: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
        """As many consecutive parts in a piece as fit; each does so by itself."""
        share = 1.0
        while parts:
            count, piece, share = self._fill(parts, share)
            yield piece
            parts = parts[count:]

    def _fill(self, parts: Sequence[tuple[str, int]], share: float) -> tuple[int, tuple[str, int], float]:
        """How many parts from the first on fit together, the piece, and the share of the sum of their tokens that it has.

        Together they may have fewer tokens than one by one, where a tokenizer puts a blank before every text or where letters
        make a word, or more, where blanks between them are tokens. What is measured tells what to try next.
        """
        sums = list(accumulate(size for _, size in parts))
        fitting, too_many = 1, len(parts) + 1
        piece = (parts[0][0].strip(), parts[0][1])
        count = bisect_right(sums, self.room / share)
        while fitting < count < too_many:
            text = "".join(part for part, _ in parts[:count]).strip()
            size = self.sizes([text])[0]
            share = max(1, size) / max(1, sums[count - 1])
            likely = bisect_right(sums, self.room / share)
            if size <= self.room:
                fitting, piece, count = count, (text, size), min(likely, too_many - 1)
            else:
                too_many, count = count, min(max(likely, fitting + 1), count - 1)
        return fitting, piece, share


def _between(text: str, places: Sequence[int]) -> list[str]:
    """The parts of a text between these places; together they are the text."""
    edges = [0, *(place for place in places if 0 < place < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def _sentence_ends(text: str) -> list[int]:
    return [mark.end() for mark in _SENTENCE_END.finditer(text)]


def _clause_ends(text: str) -> list[int]:
    return [mark.end() for mark in _CLAUSE_END.finditer(text)]


def _word_ends(text: str) -> list[int]:
    """Behind blanks, and around the letters of scripts that have none."""
    lone = [_LONE_LETTER.match(letter) is not None for letter in text]
    return [
        place
        for place in _letter_ends(text)
        if (text[place - 1].isspace() and not text[place].isspace())
        or ((lone[place - 1] or lone[place]) and not _stick_together(text[place - 1], text[place]))
    ]


def _letter_ends(text: str) -> list[int]:
    """Wherever no letter is parted from its marks."""
    return [place for place in range(1, len(text)) if not _belong_together(text[place - 1], text[place])]


def _belong_together(before: str, behind: str) -> bool:
    return (
        unicodedata.category(behind).startswith("M")
        or behind in _FOLLOWING_VOWELS
        or before in _LEADING_VOWELS
        or _JOINER in (before, behind)
        or "\U0001f3fb" <= behind <= "\U0001f3ff"  # the colour of an emoji's skin
    )


def _stick_together(before: str, behind: str) -> bool:
    """Whether a bracket that opens stands before the place, or another mark of punctuation behind it."""
    opens = ("Ps", "Pi")
    category = unicodedata.category(behind)
    return unicodedata.category(before) in opens or (category.startswith("P") and category not in opens)


_LEVELS = (_sentence_ends, _clause_ends, _word_ends, _letter_ends)
