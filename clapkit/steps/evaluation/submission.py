"""Ranked lists of files for every caption, in the format of the DCASE challenges on language-based audio retrieval."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError
from clapkit.steps.embedding import cosine_similarity

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
# Scores held at a time: 16 MB.
_BLOCK_SCORES = 1 << 22


def write_submission(
    path: Path, audio: FloatArray, texts: Sequence[str], text_vectors: FloatArray, names: Sequence[str], n: int
) -> list[str]:
    """Write a CSV file with ``caption,file_name_1,...,file_name_n``: one row per caption, distinct names, best first.

    A file that several clips are spans of stands where the best of them is. Of clips with the same score the first comes first.

    Args:
        path: of the file.
        audio: unit norm [N, D], one row per clip.
        texts: M captions, the queries; scoring goes by text, so that one that comes again is written once.
        text_vectors: unit norm [M, D].
        names: N file names.
        n: names in a row.

    Returns:
        Warnings, sentences for people.

    Raises:
        ConfigError: if there are fewer distinct names than n, or n is less than 1.
    """
    check_num_files(n, names)
    distinct = list(dict.fromkeys(names))
    queries = list(dict.fromkeys(texts))
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    vectors = text_vectors[[first[text] for text in queries]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["caption", *(f"file_name_{place}" for place in range(1, n + 1))])
        for query, files in zip(queries, _best_files(audio, vectors, _numbered(names, distinct), n), strict=True):
            writer.writerow([query, *(distinct[number] for number in files)])
    if len(queries) == len(texts):
        return []
    return [f"submission: {len(texts) - len(queries)} captions have the text of another and are written once"]


def check_num_files(n: int, names: Sequence[str]) -> None:
    """Make sure that there are as many files as a row shall have.

    Raises:
        ConfigError: if there are fewer distinct names than n, or n is less than 1.
    """
    num_files = len(set(names))
    if not 1 <= n <= num_files:
        raise ConfigError(f"--submission {n}: the evaluated clips are {num_files} files; choose 1 to {num_files}")


def _numbered(names: Sequence[str], distinct: Sequence[str]) -> IntArray:
    number = {name: place for place, name in enumerate(distinct)}
    return np.array([number[name] for name in names], dtype=np.int64)


def _best_files(audio: FloatArray, vectors: FloatArray, file: IntArray, n: int) -> Iterator[IntArray]:
    """The n best files of each query, best first.

    Args:
        audio: [N, D].
        vectors: [Q, D].
        file: int64 [N], the file of each clip.
        n: files per query.
    """
    order = np.argsort(file, kind="stable")
    starts, ordered = np.flatnonzero(np.diff(file[order], prepend=-1)), audio[order]
    step = max(1, _BLOCK_SCORES // len(audio))
    for start in range(0, len(vectors), step):
        scores = cosine_similarity(vectors[start : start + step], ordered)  # [queries, N]
        best = np.maximum.reduceat(scores, starts, axis=1)  # [queries, files]
        worst = np.partition(best, best.shape[1] - n, axis=1)[:, best.shape[1] - n]  # [queries] the n-th best
        query, number = np.nonzero(best >= worst[:, None])  # n files of each query, or more if the last ones tie
        ranked = np.lexsort((number, -best[query, number], query))
        begin = np.searchsorted(query, np.arange(len(best)))  # lexsort keeps the queries in order
        yield from number[ranked][begin[:, None] + np.arange(n)]
