"""Vectors of clips from what is written about them, without a model: tf-idf of captions, multi-hot of labels.

Rows are dense float32, because k-means and cosine kernels want them so: N rows of V terms take 4 N V bytes. AudioCaps, with
49,000 clips, takes 200 MB at the 1024 terms of the default and 400 MB at 2048.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from clapkit.errors import ManifestError

FloatArray = npt.NDArray[np.float32]

MAX_TERMS = 1024
# Scripts that put no blanks between words: Thai and Lao, Burmese, Khmer, kana, Han with its iteration mark.
_UNSPACED = re.compile(
    "(["
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "]+)"
)


def tfidf_features(documents: Sequence[str], *, max_terms: int = MAX_TERMS) -> FloatArray:
    """Tf-idf vectors of documents, each row of unit norm.

    The weight of term t in document d is (1 + ln tf(t, d)) * (1 + ln((1 + N) / (1 + df(t)))), tf and df its counts in d and
    of the N documents with it: what five captions of a clip repeat counts more, but not five times as much.

    Args:
        documents: N texts of any length; for a clip, all its captions joined by blanks.
        max_terms: terms to keep, those in most documents; equally frequent ones in alphabetical order.

    Returns:
        float32 [N, V], V at most ``max_terms``, the most frequent term first. A document that has none of the kept terms gets
        a row of zeros: it is like no other document.

    Raises:
        ManifestError: if no document holds a word.
    """
    counts = [Counter(terms) for terms in _terms(documents)]
    num_documents = Counter(term for count in counts for term in count)
    if not num_documents:
        raise ManifestError(
            f"{len(documents)} captions: found no word in any, expected sentences; write captions, prepare again"
        )
    kept = sorted(num_documents, key=lambda term: (-num_documents[term], term))[:max_terms]
    column = {term: number for number, term in enumerate(kept)}
    idf = 1 + np.log((1 + len(documents)) / (1 + np.array([num_documents[term] for term in kept])))  # [V]
    features = np.zeros((len(documents), len(kept)), dtype=np.float32)
    for row, count in enumerate(counts):
        known = [(column[term], times) for term, times in count.items() if term in column]
        if known:
            columns, times = np.array(known).T
            weights = (1 + np.log(times)) * idf[columns]
            features[row, columns] = weights / np.linalg.norm(weights)
    return features


def label_features(label_sets: Sequence[Collection[str]]) -> FloatArray:
    """Multi-hot vectors of label sets, each row of unit norm.

    The cosine of two rows is the number of shared labels over the geometric mean of the two numbers of labels.

    Args:
        label_sets: labels of N clips, none empty.

    Returns:
        float32 [N, number of labels], labels in alphabetical order.
    """
    labels = sorted({label for labels in label_sets for label in labels})
    column = {label: number for number, label in enumerate(labels)}
    features = np.zeros((len(label_sets), len(labels)), dtype=np.float32)
    for row, names in enumerate(map(set, label_sets)):
        features[row, [column[name] for name in names]] = len(names) ** -0.5
    return features


def label_groups(label_sets: Sequence[Collection[str]]) -> npt.NDArray[np.int64]:
    """Which clips have the very same set of labels.

    Args:
        label_sets: labels of N clips; order and repetition do not matter.

    Returns:
        int64 [N], groups numbered as they first appear.
    """
    group: dict[frozenset[str], int] = {}
    return np.array([group.setdefault(frozenset(names), len(group)) for names in label_sets], dtype=np.int64)


def _terms(documents: Sequence[str]) -> Iterable[list[str]]:
    """The terms of every document: words in folded case, pairs of characters in scripts without blanks."""
    texts = [unicodedata.normalize("NFKC", text).casefold() for text in documents]
    # Not the \w of re, which ends a word at every vowel sign of Hindi or Thai: those are marks.
    between = {ord(char): " " for char in set().union(*texts) if unicodedata.category(char)[0] not in "LMN"}
    for text in texts:
        terms: list[str] = []
        for word in text.translate(between).split():
            if word.isascii():
                terms.append(word)
            else:
                terms += _split_unspaced(word)
        yield terms


def _split_unspaced(word: str) -> Iterable[str]:
    """A word as it is; of a run of a script without blanks, its overlapping pairs of characters."""
    for number, part in enumerate(_UNSPACED.split(word)):
        if number % 2 and len(part) > 1:
            yield from (part[start : start + 2] for start in range(len(part) - 1))
        elif part:
            yield part
