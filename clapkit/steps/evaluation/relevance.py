"""Tables of relevance: which clips people judged right for a caption, whatever clip it was written for.

More than half of the pairs of a captioning corpus are not confirmed when people listen again, and clips of other captions are
right, too. A table with the columns ``query``, ``clip`` and, if wanted, ``grade`` therefore replaces the pairs of the data for
the queries that it names: a clip is relevant where the grade is above 0, and a clip that is not in the table is not.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest
from clapkit.data.tables import Row, read_table
from clapkit.errors import ManifestError
from clapkit.types import Clip

IntArray = npt.NDArray[np.int64]
_COLUMNS = ("query", "clip", "grade")
_WORDS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One row of the table.

    Attributes:
        captions: clip id and number, from 0, of the captions that the query is: several if they have the same text.
        clip: id.
        is_relevant: whether the grade is above 0.
    """

    captions: tuple[tuple[str, int], ...]
    clip: str
    is_relevant: bool


@dataclass(frozen=True, slots=True)
class RelevantPairs:
    """What the table says of the clips that were evaluated.

    Attributes:
        clip: int64 [P], row of each relevant clip.
        caption: int64 [P], row of the caption that it is relevant for.
        warnings: what was left out.
    """

    clip: IntArray
    caption: IntArray
    warnings: list[str]


def read_relevance(path: Path, manifest: Manifest) -> list[Judgement]:
    """Read a table of relevance.

    Args:
        path: CSV, TSV, JSON, JSONL or Parquet with the columns ``query`` (the text of a caption, or ``clip_id#number`` with
            captions numbered from 1), ``clip`` (id) and optionally ``grade`` (a number of at least 0, or true and false).
        manifest: the whole data set, so that a row about another split is known from a wrong one.

    Raises:
        ManifestError: if the table cannot be read, or a row names no caption or clip of the data, judges a pair that another
            row judges, or has no grade.
    """
    table = read_table(path)
    missing = [name for name in _COLUMNS[:2] if name not in table.columns]
    if missing:
        found = ", ".join(table.columns)
        raise ManifestError(
            f"--relevance {path}: no column {missing[0]!r}, found {found}; expected query, clip and maybe grade"
        )
    clips = {clip.id: clip for clip in manifest}
    by_text: dict[str, list[tuple[str, int]]] = {}
    for clip in manifest:
        for number, caption in enumerate(clip.captions):
            by_text.setdefault(caption.text, []).append((clip.id, number))
    has_grade = _COLUMNS[2] in table.columns
    seen: dict[tuple[tuple[str, int], str], str] = {}
    judgements = []
    for row in table.rows:
        place = f"--relevance {path} {row.place}"
        query, name = _text(row, "query", place), _text(row, "clip", place)
        if name not in clips:
            raise ManifestError(
                f"{place}: clip {name!r} is not in the data, expected the id of a clip; correct or drop the row"
            )
        captions = _captions(query, by_text, clips, place)
        for which in captions:  # a query may be named by its text or by its number
            first = seen.setdefault((which, name), row.place)
            if first != row.place:
                raise ManifestError(f"{place}: judges the same query and clip as {first}, expected one row a pair; drop one")
        grade = _grade(row, place) if has_grade else 1.0
        judgements.append(Judgement(captions, name, grade > 0))
    return judgements


def relevant_pairs(judgements: Sequence[Judgement], clips: Sequence[Clip]) -> RelevantPairs:
    """The relevant pairs among evaluated clips and their captions.

    Args:
        judgements: as read.
        clips: N, in the order of the embeddings; their captions, one after the other, are the rows of the captions.

    Raises:
        ManifestError: if no caption of the clips has a relevant clip among them.
    """
    row = {clip.id: number for number, clip in enumerate(clips)}
    first = np.concatenate(([0], np.cumsum([len(clip.captions) for clip in clips])))
    found: set[tuple[int, int]] = set()
    num_elsewhere = 0
    for judgement in judgements:
        if not judgement.is_relevant:
            continue
        captions = [int(first[row[clip]]) + number for clip, number in judgement.captions if clip in row]
        if judgement.clip not in row or not captions:
            num_elsewhere += 1
            continue
        found |= {(caption, row[judgement.clip]) for caption in captions}
    if not found:
        raise ManifestError(
            "--relevance: no caption of the evaluated clips has a relevant clip among them; is it of this split?"
        )
    caption, clip = np.array(sorted(found), dtype=np.int64).T
    warnings = []
    if num_elsewhere:
        warnings.append(
            f"relevance: {num_elsewhere} relevant pairs of the table are not among the evaluated clips and are left out"
        )
    num_queries = len(np.unique(caption))
    if num_queries < first[-1]:
        warnings.append(
            f"relevance: {first[-1] - num_queries} of {first[-1]} captions have no relevant clip and are no queries"
        )
    return RelevantPairs(clip, caption, warnings)


def fingerprint(judgements: Sequence[Judgement]) -> str:
    """SHA-256 of what the table says, whatever the order of its rows and however they name their captions."""
    lines = sorted({json.dumps([caption, j.clip, j.is_relevant]) for j in judgements for caption in j.captions})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _text(row: Row, column: str, place: str) -> str:
    if row.problem is not None:
        raise ManifestError(f"{place}: {row.problem}")
    value = row.cells.get(column)
    if value is None or not str(value).strip():
        raise ManifestError(f"{place}: {column} is empty, expected a caption and a clip; fill it in or drop the row")
    return str(value)


def _captions(
    query: str, by_text: Mapping[str, list[tuple[str, int]]], clips: Mapping[str, Clip], place: str
) -> tuple[tuple[str, int], ...]:
    if query in by_text:
        return tuple(by_text[query])
    clip, _, number = query.rpartition("#")
    if clip in clips and number.isdecimal() and 1 <= int(number) <= len(clips[clip].captions):
        return ((clip, int(number) - 1),)
    raise ManifestError(
        f"{place}: query {query!r} is no caption of the data, expected its text, or clip_id#number from 1; correct it"
    )


def _grade(row: Row, place: str) -> float:
    value: Any = row.cells.get("grade")
    try:
        grade = float(_WORDS.get(str(value).strip().lower(), value))
    except (TypeError, ValueError):
        grade = math.nan
    if not math.isfinite(grade) or grade < 0:
        raise ManifestError(f"{place}: grade {value!r}, expected a number of at least 0, or true or false; correct it")
    return grade
