"""What the report shows of a model beside its numbers: a map, and queries and clips that went wrong.

Only places and names are kept, no sounds: pictures and sounds are made of the few clips that are shown, when the report is
written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.report.cards import MAX_HUBS
from clapkit.report.embedding_map import EmbeddingMap, project
from clapkit.steps.evaluation.context import Captions, Evaluated
from clapkit.steps.evaluation.queries import Gallery, find_queries
from clapkit.steps.evaluation.result import TaskResult

MAX_POINTS = 500
"""Sounds of a map; more are spots on top of each other."""

MAX_MISTAKES = 6
_MAX_TEXTS = 5


@dataclass(frozen=True, slots=True)
class ClipSource:
    """Where the sound of a clip is.

    Attributes:
        path: of the file.
        start_s: where the clip starts in it; None is its start.
        end_s: where the clip ends; None is its end.
    """

    path: Path
    start_s: float | None
    end_s: float | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the report shows beside the numbers of one model.

    Attributes:
        map: places of sounds and texts.
        clips: row of a clip that is shown -> ``id``, ``captions``, ``labels`` and ``duration_s``.
        sources: row of a clip that is shown -> its sound.
        queries: kind (``t2a_worst``, ``t2a_confusing``, ``a2t_worst``, ``a2t_confusing``) -> queries, the worst first; JSON
            values, clips as their rows.
        mistakes: clips that were given a wrong class with the most confidence; JSON values.
        notes: what was left out.
    """

    map: EmbeddingMap
    clips: dict[int, dict[str, Any]]
    sources: dict[int, ClipSource]
    queries: dict[str, list[dict[str, Any]]]
    mistakes: list[dict[str, Any]]
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """What ``results.json`` says of it: all but the map and where files lie."""
        return {
            "clips": {str(row): facts for row, facts in self.clips.items()},
            "queries": self.queries,
            "mistakes": self.mistakes,
            "map": {
                "num_sounds": len(self.map.sounds),
                "num_texts": len(self.map.texts),
                "explained": list(self.map.explained),
            },
            "notes": list(self.notes),
        }


def gather(evaluated: Evaluated, results: Mapping[str, TaskResult]) -> Evidence:
    """Collect what the report shows of a model, while it is loaded.

    Args:
        evaluated: the model and its clips.
        results: of the tasks that ran.
    """
    queries: dict[str, list[dict[str, Any]]] = {}
    notes: tuple[str, ...] = ()
    captions = evaluated.captions if any(clip.captions for clip in evaluated.clips) else None
    if captions is not None and "retrieval" in results:
        gallery = Gallery.build(evaluated.audio, captions.vectors, captions.clip, captions.texts)
        ranks = {direction: table["rank"] for direction, table in results["retrieval"].per_query.items() if "rank" in table}
        queries = find_queries(gallery, ranks)
        notes = gallery.notes
    mistakes = _mistakes(evaluated, results.get("zero-shot"))
    rows = _shown_rows(queries, mistakes, _hubs(evaluated, results.get("geometry")))
    return Evidence(
        map=_map(evaluated, captions, results.get("zero-shot")),
        clips={row: _facts(evaluated, row) for row in rows},
        sources={row: _source(evaluated, row) for row in rows},
        queries=queries,
        mistakes=mistakes,
        notes=notes,
    )


def _map(evaluated: Evaluated, captions: Captions | None, zero_shot: TaskResult | None) -> EmbeddingMap:
    """Sounds, and the first caption of each; where there are no captions, the prompts of the classes."""
    number = len(evaluated.clips)
    rows = np.unique(np.linspace(0, number - 1, min(number, MAX_POINTS)).astype(np.int64))
    place = {int(row): position for position, row in enumerate(rows)}
    labels = tuple(_first(evaluated.clips[row].labels) for row in rows)
    texts: npt.NDArray[np.floating[Any]] = np.empty((0, evaluated.audio.shape[1]), np.float32)
    clip, text_labels = np.empty(0, np.int64), tuple[str, ...]()
    if captions is not None:
        of_clip, first = np.unique(captions.clip, return_index=True)
        kept = [(place[int(row)], at) for row, at in zip(of_clip, first, strict=True) if int(row) in place]
        clip = np.array([position for position, _ in kept], dtype=np.int64)
        texts, text_labels = captions.vectors[[at for _, at in kept]], tuple(labels[position] for position, _ in kept)
    elif zero_shot is not None and evaluated.model is not None:
        classes, prompts = _prompted(zero_shot)
        texts, text_labels, clip = evaluated.embed_texts(prompts), tuple(classes), np.full(len(classes), -1)
    sounds_at, texts_at, explained = project(evaluated.audio[rows], texts)
    return EmbeddingMap(sounds_at, texts_at, clip, labels, text_labels, explained)


def _prompted(zero_shot: TaskResult) -> tuple[list[str], list[str]]:
    """Classes, and the first prompt of each."""
    protocol = zero_shot.protocol
    classes, prompts = protocol.get("classes", []), protocol.get("prompts", [])
    if not prompts:
        return [], []
    return classes, [prompts[0].replace("{}", text) for text in protocol.get("class_texts", classes)]


def _first(labels: Sequence[str]) -> str:
    return labels[0] if labels else ""


def _mistakes(evaluated: Evaluated, zero_shot: TaskResult | None) -> list[dict[str, Any]]:
    """Clips whose wrong class leads the right one by most; where margins are not known, whose right class ranks last."""
    table = {} if zero_shot is None else zero_shot.per_query.get("zero_shot", {})
    if not {"id", "target", "predicted", "correct"} <= set(table):
        return []
    row_of = {clip.id: row for row, clip in enumerate(evaluated.clips)}
    wrong = [place for place, correct in enumerate(table["correct"]) if not correct]
    margins, ranks = table.get("margin"), table.get("rank")

    def badness(place: int) -> float:
        if margins is not None:
            return float(abs(margins[place]))
        return 0.0 if ranks is None else float(ranks[place])

    wrong.sort(key=lambda place: (-badness(place), place))
    found = []
    for place in wrong[:MAX_MISTAKES]:
        mistake = {"clip": row_of[table["id"][place]], "target": str(table["target"][place])}
        mistake["predicted"] = str(table["predicted"][place])
        if margins is not None:
            mistake["margin"] = float(abs(margins[place]))
        if ranks is not None:
            mistake["rank"] = int(ranks[place])
        found.append(mistake)
    return found


def _hubs(evaluated: Evaluated, geometry: TaskResult | None) -> list[int]:
    """Rows of the clips that captions find most often."""
    largest = [] if geometry is None else geometry.details.get("hubness", {}).get("t2a", {}).get("largest", [])
    row_of = {clip.id: row for row, clip in enumerate(evaluated.clips)}
    return [row_of[hub["id"]] for hub in largest[:MAX_HUBS]]


def _shown_rows(
    queries: Mapping[str, Sequence[Mapping[str, Any]]], mistakes: Sequence[Mapping[str, Any]], hubs: Sequence[int]
) -> list[int]:
    """Rows of the clips that the page shows; those that matter most come first, for they get the sounds.

    First the clip of each query and its best hit, then mistakes and hubs, then the other hits.
    """
    hits = [
        [hit["clip"] for hit in query["hits"]] for kind, found in queries.items() if kind.startswith("t2a") for query in found
    ]
    rows = [query["clip"] for found in queries.values() for query in found] + [found[0] for found in hits]
    rows += [mistake["clip"] for mistake in mistakes] + list(hubs)
    rows += [row for found in hits for row in found[1:]]
    return list(dict.fromkeys(rows))


def _facts(evaluated: Evaluated, row: int) -> dict[str, Any]:
    clip = evaluated.clips[row]
    return {
        "id": clip.id,
        "captions": list(dict.fromkeys(caption.text for caption in clip.captions))[:_MAX_TEXTS],
        "labels": list(clip.labels),
        "duration_s": clip.duration_s,
    }


def _source(evaluated: Evaluated, row: int) -> ClipSource:
    clip = evaluated.clips[row]
    return ClipSource(evaluated.split.audio_path(clip), clip.start_s, clip.end_s)
