"""What vectors of some clips are worth, query by query, while captions and classes stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.metrics.retrieval import evaluate_retrieval
from clapkit.metrics.zero_shot import evaluate_zero_shot
from clapkit.steps.embedding import cosine_similarity
from clapkit.steps.evaluation.class_prompts import embed_classes, labels_of, wanted_classes
from clapkit.steps.evaluation.context import Evaluated, caption_rows
from clapkit.steps.evaluation.prompts import read_prompts

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
Score = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number that vectors of R clips give.

    Attributes:
        name: as in names of metrics: ``t2a_R@1``, ``a2t_R@1``, ``accuracy`` or ``cosine``.
        table: of ``per_query``, where the values of single queries go.
        clip: int64 [Q], row of each query's clip among the evaluated clips.
        columns: what else the table says of the queries.
        score: vectors of the clips [R, D] to the value of each query [Q].
    """

    name: str
    table: str
    clip: IntArray
    score: Score
    columns: dict[str, Any] = field(default_factory=dict)


def measures_of(evaluated: Evaluated, rows: IntArray) -> list[Measure]:
    """What the data allow: retrieval both ways where there are captions, accuracy where there are labels, and the cosine.

    Args:
        evaluated: the clips as they are.
        rows: int64 [R], ascending, of the clips whose vectors will be scored.
    """
    return [*_retrieval(evaluated, rows), *_zero_shot(evaluated, rows), _cosine(evaluated, rows)]


def _retrieval(evaluated: Evaluated, rows: IntArray) -> list[Measure]:
    """R@1 both ways among the clips that have captions, and all captions of theirs."""
    captioned = np.array([place for place, row in enumerate(rows) if evaluated.clips[row].captions], dtype=np.int64)
    if len(captioned) < 2:
        return []
    texts, clip = caption_rows([evaluated.clips[row] for row in rows[captioned]])
    kept = np.isin(evaluated.captions.clip, rows[captioned])  # captions are in the order of the clips, as rows are
    vectors_of_text = evaluated.captions.vectors[kept]  # [M, D]

    def score_of(direction: str) -> Score:
        def score(vectors: FloatArray) -> FloatArray:
            found = evaluate_retrieval(cosine_similarity(vectors[captioned], vectors_of_text), clip, ks=(1,))
            hits: FloatArray = found["per_query"][direction]["R@1"]
            return hits

        return score

    return [
        Measure("t2a_R@1", "robustness_t2a", rows[captioned][clip], score_of("t2a"), {"caption": texts}),
        Measure("a2t_R@1", "robustness_a2t", rows[captioned], score_of("a2t")),
    ]


def _zero_shot(evaluated: Evaluated, rows: IntArray) -> list[Measure]:
    """Accuracy of the clips with one label, with the classes and prompts of zero-shot classification."""
    single = np.array([place for place, row in enumerate(rows) if len(evaluated.clips[row].labels) == 1], dtype=np.int64)
    prompts = read_prompts(evaluated.config)
    classes = wanted_classes(evaluated, prompts)
    if not len(single) or len(classes) < 2:
        return []
    labels = labels_of(evaluated, [evaluated.clips[row] for row in rows[single]], classes)
    class_vectors = embed_classes(evaluated, classes, prompts.templates)  # [C, D]

    def score(vectors: FloatArray) -> FloatArray:
        found = evaluate_zero_shot(cosine_similarity(vectors[single], class_vectors), labels)
        return np.asarray(found["per_query"]["correct"], dtype=np.float64)

    return [Measure("accuracy", "robustness_zero_shot", rows[single], score)]


def _cosine(evaluated: Evaluated, rows: IntArray) -> Measure:
    """Cosine of the vector of every clip with that of the clip as it is."""
    clean = evaluated.audio[rows].astype(np.float64)

    def score(vectors: FloatArray) -> FloatArray:
        cosines: FloatArray = (clean * vectors).sum(axis=1)
        return cosines

    return Measure("cosine", "robustness_cosine", rows, score)
