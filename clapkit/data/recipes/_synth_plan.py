"""What each clip of the built-in corpus holds: composition, classes, attributes, times; no sound yet.

Everything is dealt like cards instead of drawn: classes come equally often, and every pair of classes comes once before
one comes twice, so that in a test split of 240 clips hardly two mean the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from clapkit.data.recipes._synth_sounds import SOUNDS, VALUES
from clapkit.errors import ConfigError

SPLITS = ("train", "val", "test")
MIN_NUM_CLIPS = 60
# Enough for one whole round of pairs, which holds every class.
_MIN_CLIPS_OF_SPLIT = 14
_SHARES = {"val": 0.08, "test": 0.12}
_COMPOSITION_SHARES = {"single": 0.28, "then": 0.4}
_NUM_VOICES = {"train": 32, "val": 8, "test": 8}
_Card = TypeVar("_Card")
_PLAN_KEY, _VOICE_KEY, _EVENT_KEY, _CAPTION_KEY = range(4)


@dataclass(frozen=True, slots=True)
class EventPlan:
    """One sound of a clip: its class, the attributes that captions name, its individual and its span."""

    sound: str
    attributes: Mapping[str, str]
    voice: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class ClipPlan:
    """One clip: ``single``, ``then`` (the first event ends before the second starts) or ``while`` (both throughout)."""

    split: str
    index: int
    composition: str
    duration_s: float
    events: tuple[EventPlan, ...]


def plan_generator(seed: int, split: str) -> np.random.Generator:
    """The generator that deals the clips of a split."""
    return _generator(seed, _PLAN_KEY, SPLITS.index(split))


def voice_generator(seed: int, split: str, sound: str, voice: int) -> np.random.Generator:
    """The generator of one individual's timbre; no individual is heard in two splits."""
    return _generator(seed, _VOICE_KEY, SPLITS.index(split), list(SOUNDS).index(sound), voice)


def event_generator(seed: int, split: str, index: int, position: int) -> np.random.Generator:
    """The generator of what differs from event to event."""
    return _generator(seed, _EVENT_KEY, SPLITS.index(split), index, position)


def caption_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator that words the captions of a clip."""
    return _generator(seed, _CAPTION_KEY, SPLITS.index(split), index)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def split_sizes(num_clips: int) -> dict[str, int]:
    """How many clips each split gets: 80, 8 and 12 percent, and never too few to hold every class.

    Raises:
        ConfigError: if ``num_clips`` cannot hold every class in every split.
    """
    if num_clips < MIN_NUM_CLIPS:
        raise ConfigError(
            f"option num_clips={num_clips}: expected at least {MIN_NUM_CLIPS}, so that train, val and test hold all "
            f"{len(SOUNDS)} classes; pass -O num_clips={MIN_NUM_CLIPS} or more"
        )
    held_out = {split: max(round(share * num_clips), _MIN_CLIPS_OF_SPLIT) for split, share in _SHARES.items()}
    return {"train": num_clips - sum(held_out.values()), **held_out}


def plan_split(seed: int, split: str, num_clips: int) -> list[ClipPlan]:
    """Deal the clips of one split.

    Args:
        seed: of the corpus.
        split: one of ``SPLITS``.
        num_clips: at least 14.
    """
    rng = plan_generator(seed, split)
    num_single, num_then = (round(share * num_clips) for share in _COMPOSITION_SHARES.values())
    compositions = ["single"] * num_single + ["then"] * num_then + ["while"] * (num_clips - num_single - num_then)
    rng.shuffle(compositions)
    singles, pairs = _deal_singles(rng), _deal_pairs(rng)
    plans = []
    for index, composition in enumerate(compositions):
        duration_s = round(rng.uniform(4.2, 5.0), 2)
        named = (
            [next(singles)]
            if composition == "single"
            else [(sound, _draw_attribute(rng, sound, composition)) for sound in next(pairs)]
        )
        spans = _draw_spans(rng, composition, duration_s)
        events = tuple(
            EventPlan(sound, attributes, int(rng.integers(_NUM_VOICES[split])), *span)
            for (sound, attributes), span in zip(named, spans, strict=True)
        )
        plans.append(ClipPlan(split, index, composition, duration_s, events))
    return plans


def attribute_states(sound: str, *, axes: Sequence[str] = tuple(VALUES), most: int = 2) -> list[dict[str, str]]:
    """Every set of at most ``most`` attributes that can be said of a class.

    A far sound is quiet anyway: distance and loudness never come together.
    """
    known = [axis for axis in axes if axis in SOUNDS[sound].axes]
    return [
        dict(zip(chosen, values, strict=True))
        for count in range(most + 1)
        for chosen in itertools.combinations(known, count)
        if not {"loudness", "distance"} <= set(chosen)
        for values in itertools.product(*(VALUES[axis] for axis in chosen))
    ]


def _deal_singles(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, str]]]:
    """Every class once in a random order, again and again; no state of a class repeats before all have come."""
    decks = {sound: _deal(rng, attribute_states(sound)) for sound in SOUNDS}
    for sound in _deal(rng, list(SOUNDS)):
        yield sound, next(decks[sound])


def _deal(rng: np.random.Generator, cards: Sequence[_Card]) -> Iterator[_Card]:
    while True:
        for place in rng.permutation(len(cards)):
            yield cards[place]


def _deal_pairs(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Pairs of unlike classes in random order of the two, in rounds that hold every class once.

    Rounds come from the circle method of round-robin tournaments: one player stays, the others move on by one seat. All
    pairs have met when everybody is back.
    """
    sounds = list(SOUNDS)
    while True:
        seats = [sounds[place] for place in rng.permutation(len(sounds))]
        for _ in range(len(seats) - 1):
            half = len(seats) // 2
            for pair in zip(seats[:half], reversed(seats[half:]), strict=True):
                yield (pair[0], pair[1]) if rng.random() < 0.5 else (pair[1], pair[0])
            seats = [seats[0], seats[-1], *seats[1:-1]]


def _draw_attribute(rng: np.random.Generator, sound: str, composition: str) -> dict[str, str]:
    """At most one attribute; of simultaneous sounds never the level, which the other sound would mask."""
    axes = ("pitch", "rate") if composition == "while" else tuple(VALUES)
    states = attribute_states(sound, axes=axes, most=1)
    return states[int(rng.integers(len(states)))]


def _draw_spans(rng: np.random.Generator, composition: str, duration_s: float) -> list[tuple[float, float]]:
    """Start and end of each event; one after the other for ``then``, with a short silence between."""
    start_s, end_s = round(rng.uniform(0.0, 0.1), 2), round(duration_s - rng.uniform(0.0, 0.1), 2)
    if composition != "then":
        return [(start_s, end_s)] * (1 if composition == "single" else 2)
    turn_s = round(duration_s * rng.uniform(0.47, 0.53), 2)
    return [(start_s, turn_s), (round(turn_s + rng.uniform(0.1, 0.2), 2), end_s)]
