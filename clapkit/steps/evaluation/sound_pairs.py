"""Two sounds put together in three ways: one then the other, the other then the one, both at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.inspection import SILENT_RMS
from clapkit.data.sound_events import FRAME_S, active_part, active_rms, faded, loudest_window

FloatArray = npt.NDArray[np.floating[Any]]

FADE_S = 0.02
"""Of the cross-fade, and at both ends of every event."""

RMS = 0.05
"""Root mean square of every event, and of every sound that is made of events: -26 dBFS."""

_MAX_PEAK = 0.99


def draw_pairs(ids_by_class: Mapping[str, Sequence[str]], *, num_pairs: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of clips of different classes, no two clips together twice.

    Class pairs are equally likely, and so are the clips of a class. Where there are no more pairs than wanted, all are
    taken. The order of classes and clips has no influence.

    Args:
        ids_by_class: at least two classes; no clip in two.
        num_pairs: how many, at most.
        seed: of the draws; which clip of a pair comes first is drawn, too.
    """
    generator = np.random.default_rng(seed)
    classes = [sorted(ids_by_class[name]) for name in sorted(ids_by_class)]
    every = sum(len(a) * len(b) for number, a in enumerate(classes) for b in classes[:number])
    if every <= num_pairs:
        pairs = [(x, y) for number, b in enumerate(classes) for a in classes[:number] for x in a for y in b]
        return [(x, y) if generator.random() < 0.5 else (y, x) for x, y in pairs]
    found: dict[frozenset[str], tuple[str, str]] = {}
    while len(found) < num_pairs:
        a, b = (classes[number] for number in generator.permutation(len(classes))[:2])
        x, y = a[int(generator.integers(len(a)))], b[int(generator.integers(len(b)))]
        found.setdefault(frozenset((x, y)), (x, y))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Mixer:
    """Makes sounds of events.

    Attributes:
        sample_rate: Hz.
        window: samples that every sound must fit into.
    """

    sample_rate: int
    window: int

    @property
    def fade(self) -> int:
        """Samples of a fade."""
        return min(round(FADE_S * self.sample_rate), self.window // 4)

    @property
    def max_event(self) -> int:
        """Samples of the longest event: two of them with one cross-fade fill the window."""
        return (self.window + self.fade) // 2

    def event(self, waveform: FloatArray) -> FloatArray | None:
        """The loudest part of a recording [T], without the silence around it, faded at both ends; None if all is silent."""
        frame = max(1, round(FRAME_S * self.sample_rate))
        if float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))) < SILENT_RMS:
            return None
        part = active_part(waveform.astype(np.float32), frame)
        event = loudest_window(part, self.max_event).astype(np.float64)
        return faded(event * (RMS / active_rms(event, frame)), self.fade)

    def sequence(self, first: FloatArray, second: FloatArray) -> FloatArray:
        """Two events, the second fading in while the first fades out, float32 [T]."""
        overlap = min(self.fade, len(first) // 2, len(second) // 2)
        start = len(first) - overlap
        sound = np.zeros(start + len(second))
        sound[: len(first)] = first
        sound[start:] += second
        return _levelled(sound)

    def overlay(self, first: FloatArray, second: FloatArray) -> FloatArray:
        """Two events that start together, float32 [T]."""
        sound = np.zeros(max(len(first), len(second)))
        sound[: len(first)] += first
        sound[: len(second)] += second
        return _levelled(sound)

    def single(self, event: FloatArray) -> FloatArray:
        """One event, float32 [T]."""
        return _levelled(event)


SOUNDS = ("sequence", "reversed", "overlay", "first", "second")
"""The sounds of a pair, in this order: x then y, y then x, both at once, x alone, y alone."""


def pair_sounds(waveforms: Iterable[FloatArray], mixer: Mixer, *, kept: list[int]) -> Iterator[npt.NDArray[np.float32]]:
    """The sounds of each pair, five after five; two recordings are in memory at a time.

    Args:
        waveforms: x and y of one pair after the other, float32 [T].
        mixer: makes the sounds.
        kept: is given the number of every pair that has sounds; the others have a silent recording.
    """
    recordings = iter(waveforms)
    for number, (x, y) in enumerate(zip(recordings, recordings, strict=True)):
        first, second = mixer.event(x), mixer.event(y)
        if first is None or second is None:
            continue
        kept.append(number)
        yield mixer.sequence(first, second)
        yield mixer.sequence(second, first)
        yield mixer.overlay(first, second)
        yield mixer.single(first)
        yield mixer.single(second)


def _levelled(sound: FloatArray) -> npt.NDArray[np.float32]:
    """All sounds have one loudness, so that it gives nothing away; those with high peaks are a little softer."""
    gain = RMS / float(np.sqrt(np.mean(np.square(sound))))
    return (sound * min(gain, _MAX_PEAK / float(np.abs(sound).max()))).astype(np.float32)
