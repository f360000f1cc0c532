"""Compositional items: clips and captions that differ only in how the same things are put together.

An item has C clips and C captions, caption i belonging to clip i. Conventions: the *text* score asks whether every clip
chooses its caption, the *audio* score whether every caption chooses its clip, the *group* score asks for both; a tie fails.

Reference: Thrush et al., Winoground, 2022, arXiv 2204.03162 (pairs); Ghosh et al., CompA, 2024, arXiv 2310.08753. Deviations:
CompA has items of three and does not say how they count; here it is the same question on a 3 x 3 matrix.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.ranking import BoolArray, checked_scores


def composition_scores(similarity: npt.ArrayLike) -> dict[str, BoolArray]:
    """Which items are solved.

    Args:
        similarity: [I items, C clips, C captions], true partners on the diagonal, C >= 2.

    Returns:
        ``text``: the diagonal is the only largest value of every row; ``audio``: of every column; ``group``: both; bool [I].

    Raises:
        MetricError: if the shape is another, there is no item, or a value is not finite.

    Example:
        >>> composition_scores([[[5, 4], [6, 7]]])["text"], composition_scores([[[5, 4], [6, 7]]])["audio"]
        (array([ True]), array([False]))
    """
    shape = np.shape(similarity)
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < 2:
        raise MetricError(f"similarity: shape {list(shape)}, expected [items, C, C] with C of 2 or more")
    size = shape[1]
    scores = checked_scores(np.reshape(similarity, (-1, size)), name="similarity").reshape(shape)
    own = np.diagonal(scores, axis1=1, axis2=2)  # [I, C]
    is_own = np.eye(size, dtype=bool)
    text = np.all((own[:, :, None] > scores) | is_own, axis=(1, 2))
    audio = np.all((own[:, None, :] > scores) | is_own, axis=(1, 2))
    return {"text": np.asarray(text), "audio": np.asarray(audio), "group": np.asarray(text & audio)}


def composition_chance(num_captions: int) -> dict[str, float]:
    """What scores drawn at random (independent, no ties) solve.

    Text and audio: each of C rows has its largest value on the diagonal with probability 1/C. Group: with the diagonal
    sorted, d_1 < ... < d_C, every wrong score must stay below the smaller of its two diagonal values; 2 (C - k) wrong scores
    stay below d_k, so that for uniform scores the probability is C! times the integral of prod_k d_k^(2 (C - k)), which is
    (C - 1)! / (2 C - 1)!.

    Args:
        num_captions: C, captions (and clips) of an item, at least 2.

    Raises:
        MetricError: if there are fewer than two.

    Example:
        >>> composition_chance(2)["group"] == 1 / 6
        True
    """
    if num_captions < 2:
        raise MetricError(f"composition: items of {num_captions} captions, expected at least 2")
    one_way = num_captions**-num_captions
    group = math.factorial(num_captions - 1) / math.factorial(2 * num_captions - 1)
    return {"text": one_way, "audio": one_way, "group": group}
