"""What each clip of the mixed corpus is made of: its concept and its recordings; no sound yet.

A concept is what a query can ask for: one label alone, one label and *then* another, or two *while* each other. Training
clips are dealt from the concepts like cards; a gallery holds each concept once, so that every query has one right answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

COMPOSITIONS = ("single", "then", "while")
_SINGLE_SHARE, _THEN_SHARE = 0.2, 0.5
_PLAN_KEY, _RECORDING_KEY, _SOUND_KEY, _CAPTION_KEY = range(4)
_Card = TypeVar("_Card")


@dataclass(frozen=True, slots=True)
class Recording:
    """One labelled event of the source corpus.

    Attributes:
        id: of the clip in the source corpus.
        source: what that clip was cut from.
        label: its only one.
        split: train, val or test.
        path: of its file.
        start_s: start of its span in the file; None is the start of the file.
        end_s: end of its span; None is the end of the file.
        phrases: clauses that describe it, at least one.
    """

    id: str
    source: str
    label: str
    split: str
    path: Path
    start_s: float | None
    end_s: float | None
    phrases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MixPlan:
    """One clip: ``single``, ``then`` (the first recording ends before the second starts) or ``while`` (both throughout)."""

    split: str
    index: int
    composition: str
    recordings: tuple[Recording, ...]


def sound_generator(seed: int, plan: MixPlan) -> np.random.Generator:
    """The generator of the levels and times of a clip."""
    return _generator(seed, _SOUND_KEY, plan.split, plan.index)


def caption_generator(seed: int, plan: MixPlan) -> np.random.Generator:
    """The generator that words the captions of a clip."""
    return _generator(seed, _CAPTION_KEY, plan.split, plan.index)


def _generator(seed: int, key: int, split: str, index: int = 0) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key, index, *split.encode())))


def concepts(labels: Sequence[str]) -> dict[str, list[tuple[str, ...]]]:
    """Composition -> the labels of every concept: each label, each ordered pair, each unordered pair.

    With L labels these are L + L(L-1) + L(L-1)/2; ten labels give 145.
    """
    return {
        "single": [(label,) for label in labels],
        "then": list(itertools.permutations(labels, 2)),
        "while": list(itertools.combinations(labels, 2)),
    }


def composition_sizes(num_clips: int) -> dict[str, int]:
    """How many training clips are ``single`` (20 %), ``then`` (50 %) and ``while`` (the rest)."""
    num_single, num_then = round(_SINGLE_SHARE * num_clips), round(_THEN_SHARE * num_clips)
    return {"single": num_single, "then": num_then, "while": num_clips - num_single - num_then}


def fewest_clips(num_labels: int) -> int:
    """The smallest number of training clips from which on every concept occurs."""
    wanted = {name: len(found) for name, found in concepts([str(label) for label in range(num_labels)]).items()}
    # Fewer than one clip for each concept cannot do; rounding decides between there and four times that.
    return next(
        num_clips
        for num_clips in itertools.count(sum(wanted.values()))
        if all(composition_sizes(num_clips)[name] >= wanted[name] for name in COMPOSITIONS)
    )


def plan_train(by_label: Mapping[str, Sequence[Recording]], *, seed: int, num_clips: int) -> list[MixPlan]:
    """Deal the training clips.

    Args:
        by_label: the recordings of the split.
        seed: of the corpus.
        num_clips: at least one for each concept.
    """
    rng = _generator(seed, _PLAN_KEY, "train")
    sizes = composition_sizes(num_clips)
    order = [name for name in COMPOSITIONS for _ in range(sizes[name])]
    rng.shuffle(order)
    decks = {name: _deal(rng, found) for name, found in concepts(list(by_label)).items()}
    plans = []
    for index, composition in enumerate(order):
        draw = _generator(seed, _RECORDING_KEY, "train", index)
        chosen = tuple(by_label[label][int(draw.integers(len(by_label[label])))] for label in next(decks[composition]))
        plans.append(MixPlan("train", index, composition, chosen))
    return plans


def plan_gallery(
    by_label: Mapping[str, Sequence[Recording]], *, seed: int, split: str, gallery: int = 0, name: str | None = None
) -> list[MixPlan]:
    """One clip of every concept.

    Args:
        by_label: the recordings of the split.
        seed: of the corpus.
        split: that the recordings are of.
        gallery: number of the gallery from 0. Galleries of one split differ in their recordings for each concept, as long
            as there are combinations left.
        name: of the split that is made; default: ``split``.
    """
    kinds = [(composition, labels) for composition, found in concepts(list(by_label)).items() for labels in found]
    plans = []
    for index, (composition, labels) in enumerate(kinds):
        draw = _generator(seed, _RECORDING_KEY, split, index)
        decks = [[by_label[label][place] for place in draw.permutation(len(by_label[label]))] for label in labels]
        plans.append(MixPlan(name or split, index, composition, _combination(decks, gallery)))
    return plans


def _combination(decks: Sequence[Sequence[Recording]], number: int) -> tuple[Recording, ...]:
    """The combination with a number; all combinations come once before one comes twice.

    Both decks move on by one each time, so that neighbours share no recording. After the least common multiple of their
    sizes they meet again, and the second deck slips by one.
    """
    sizes = [len(deck) for deck in decks]
    slip = number // math.lcm(*sizes)
    return tuple(deck[(number + slip * position) % len(deck)] for position, deck in enumerate(decks))


def _deal(rng: np.random.Generator, cards: Sequence[_Card]) -> Iterator[_Card]:
    while True:
        for place in rng.permutation(len(cards)):
            yield cards[place]
