"""Which classes are asked for, and the vectors that their prompts have with a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.metrics.zero_shot import described_class_vectors
from clapkit.steps.evaluation.classes import classes_of, label_matrix, read_classes
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.prompts import PLACE, PromptSet
from clapkit.types import Clip

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


def wanted_classes(evaluated: Evaluated, prompts: PromptSet) -> dict[str, tuple[str, ...]]:
    """Label -> the texts that go into prompts: of ``--classes``, or every label of the data set.

    Raises:
        ConfigError: if the list cannot be read.
    """
    if evaluated.config.classes is None:
        return classes_of(evaluated.manifest, spelling=prompts.spelling)
    return read_classes(evaluated.config.classes, spelling=prompts.spelling)


def labels_of(evaluated: Evaluated, clips: Sequence[Clip], classes: Mapping[str, tuple[str, ...]]) -> BoolArray:
    """Which of some clips has which of the classes: bool [N, C].

    Raises:
        ManifestError: if a clip has a label that is no class.
    """
    wanted = evaluated.config.classes
    return label_matrix(clips, classes, known_from="the data" if wanted is None else f"--classes {wanted}")


def embed_classes(evaluated: Evaluated, classes: Mapping[str, tuple[str, ...]], templates: Sequence[str]) -> FloatArray:
    """One unit vector per class [C, D]; all prompts of all texts of a class count the same."""
    prompts = [
        (number, template.replace(PLACE, text))
        for number, texts in enumerate(classes.values())
        for text in texts
        for template in templates
    ]
    embedded = evaluated.embed_texts([prompt for _, prompt in prompts])  # [M, D]
    return described_class_vectors(embedded, [number for number, _ in prompts])
