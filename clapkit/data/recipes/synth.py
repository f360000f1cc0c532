"""The built-in corpus: everyday sounds made by arithmetic, with captions made by a grammar.

It needs no download and no network, so that the whole pipeline can be tried, tested and timed on any machine. It is
easier than recordings are: what a model scores here says that it learns, not how well it will do out of doors.

Origin: generated here from the seed, with numpy; no recording of anybody's is used.
Licence: none needed; generated, no third-party audio. What you generate is yours.

Classes (20): dog barking, cat meowing, rooster crowing, bird chirping, rain falling, wind blowing, waves crashing,
thunder rumbling, bell ringing, alarm beeping, siren wailing, car honking, engine running, helicopter flying, clock
ticking, person walking, knocking on a door, glass breaking, telephone ringing, person whistling.

Attributes, where a class has them: pitch (high, low), rate (fast, slow), loudness (loud, quiet) and distance (far:
dull, soft and reverberant). What is not named is ordinary, and the ranges keep clear of each other. Levels carry meaning:
clips are not normalised.

Compositions: ``single`` (28 %; up to two attributes), ``then`` (40 %; the first event ends before the second starts, up
to one attribute each) and ``while`` (32 %; both throughout, a pitch or a rate each).

Captions: five sentences for each clip, of different build; four name the classes, the order and all attributes, one just
the class names as they stand in ``labels``, as one would search for them. With ``languages=en,de,es,fr``, two sentences in
each further language follow, which name all of that; labels stay English.

Layout: ``audio/<split>/<index>.wav``, mono, 16 bit, 4.2 to 5.0 s. With the default of 2,000 clips: train 1,600, val
160, test 240; 2.6 hours, 290 MB.

Splits: every class occurs in every split. Each clip is rendered from a generator of (seed, split, index), and every
event has a *voice* (an individual dog, bell or engine), of which train has 32 a class and val and test 8 each; no voice
is in two splits. ``source`` names the voices of a clip. Classes and pairs of classes are dealt evenly: among 240 test
clips no two share a pair of classes.

``extra`` holds ``composition`` and ``events`` (class, attributes, voice, start_s, end_s). On one machine, the same
seed, size and rate give the same files, bit for bit, whatever the number of workers.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from clapkit.data.recipes._synth_captions import captions
from clapkit.data.recipes._synth_languages import ENGLISH, read_languages, sentences
from clapkit.data.recipes._synth_plan import SPLITS, ClipPlan, caption_generator, plan_split, split_sizes
from clapkit.data.recipes._synth_render import audio_name, write_clips
from clapkit.errors import ConfigError
from clapkit.types import Caption, Clip, RecipeRequest, Rejection

NUM_CAPTIONS = 5
_MIN_SAMPLE_RATE = 16000  # a high bird sweeps up to 7.6 kHz
_CHUNK = 25


@dataclass(frozen=True, slots=True)
class Synth:
    """Makes the corpus; see the module.

    Attributes:
        num_clips: in all splits together.
        sample_rate: Hz.
        languages: ISO 639-1 tags of the captions, in the order in which they stand in each clip.
        needs_source: False.
        makes_audio: True.
    """

    num_clips: int
    sample_rate: int
    languages: tuple[str, ...] = (ENGLISH,)
    needs_source: bool = False
    makes_audio: bool = True

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Render every clip below ``request.output_dir`` and yield it, in the order train, val, test."""
        sizes = split_sizes(self.num_clips)
        plans = [plan for split in SPLITS for plan in plan_split(request.seed, split, sizes[split])]
        for split in SPLITS:
            (request.output_dir / "audio" / split).mkdir(parents=True, exist_ok=True)
        write = partial(write_clips, output_dir=request.output_dir, seed=request.seed, sample_rate=self.sample_rate)
        chunks = [plans[start : start + _CHUNK] for start in range(0, len(plans), _CHUNK)]
        with request.reporter.track("synthesising", len(plans), "clips") as tracker:
            for chunk in _done_in_order(write, chunks, request.workers):
                tracker.advance(len(chunk))
                yield from (_clip(plan, request.seed, self.sample_rate, self.languages) for plan in chunk)


def build(num_clips: int = 2000, sample_rate: int = 16000, languages: str = ENGLISH) -> Synth:
    """The recipe of the built-in corpus.

    Args:
        num_clips: in all splits together, at least 60.
        sample_rate: of the files in Hz, at least 16000.
        languages: of the captions: one or more of en, de, es and fr, separated by commas.

    Raises:
        ConfigError: if there are too few clips for every class to be in every split, the rate is too low, or a language is
            unknown, missing or given twice.
    """
    split_sizes(num_clips)
    if sample_rate < _MIN_SAMPLE_RATE:
        raise ConfigError(
            f"option sample_rate={sample_rate}: expected at least {_MIN_SAMPLE_RATE} Hz, which high birds need; "
            f"pass -O sample_rate={_MIN_SAMPLE_RATE}"
        )
    return Synth(num_clips, sample_rate, read_languages(languages))


def _done_in_order(
    write: Callable[[Sequence[ClipPlan]], None], chunks: Sequence[Sequence[ClipPlan]], workers: int
) -> Iterator[Sequence[ClipPlan]]:
    """Yield each chunk once it is written, in the given order."""
    if workers <= 1:
        for chunk in chunks:
            write(chunk)
            yield chunk
        return
    # Spawned, not forked: the parent may hold threads of torch or BLAS, which do not survive a fork.
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)), multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_parent
    )
    try:
        for chunk, _ in zip(chunks, pool.map(write, chunks), strict=True):
            yield chunk
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _captions(plan: ClipPlan, seed: int, language: str) -> list[str]:
    if language != ENGLISH:
        return sentences(plan, language, seed=seed)
    rng = caption_generator(seed, plan.split, plan.index)
    return captions(plan.composition, plan.events, rng=rng, count=NUM_CAPTIONS)


def _clip(plan: ClipPlan, seed: int, sample_rate: int, languages: Sequence[str]) -> Clip:
    return Clip(
        id=f"synth/{plan.split}-{plan.index:05d}",
        audio=audio_name(plan),
        duration_s=round(plan.duration_s * sample_rate) / sample_rate,
        sample_rate=sample_rate,
        num_channels=1,
        captions=tuple(Caption(text, language) for language in languages for text in _captions(plan, seed, language)),
        labels=tuple(event.sound for event in plan.events),
        split=plan.split,
        source=" + ".join(f"{event.sound} {plan.split}-{event.voice}" for event in plan.events),
        extra={
            "composition": plan.composition,
            "events": [
                {
                    "class": event.sound,
                    "attributes": dict(event.attributes),
                    "voice": event.voice,
                    "start_s": event.start_s,
                    "end_s": event.end_s,
                }
                for event in plan.events
            ],
        },
    )
