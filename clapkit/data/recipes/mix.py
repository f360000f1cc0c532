"""Mixtures of the single sounds of another corpus: one alone, one after another, two at once, with captions that say which.

A model that only learns which sounds a clip holds cannot tell "A dog barks, then it rains." from "It rains, then a dog
barks."; this corpus shows whether it does, on real recordings.

Origin: any corpus prepared before whose clips have one label each, such as esc10; nothing but those recordings is used.
Licence: that of the corpus that is mixed, for every clip made of it.

Concepts: each label alone (``single``), each ordered pair of labels (``then``: the first ends at least 0.1 s before the
second starts) and each unordered pair (``while``: both throughout). Ten labels make 10 + 90 + 45 = 145.

Layout: ``audio/<split>/<index>.wav``, mono, 16 bit, all of ``clip_s`` seconds. Counts: ``num_clips`` in train (6,000, of
which 20 % single, 50 % then and 30 % while, concepts dealt evenly; 8.3 hours, 960 MB), and one clip of every concept in
val, in test and in each further gallery (``test-2``, ``test-3``, ...), so that each query has one right answer there. Four
captions a clip.

Splits: those of the source corpus; a recording of its train is only heard in train. Galleries of test share recordings but,
while there are enough of them, no concept sounds the same in two.

Sound: of each recording the part with the most energy is taken, without the silence around it, faded over 10 ms, and
brought to an RMS of -24 dBFS, 3 dB more or less. Events of ``while`` are repeated until the clip ends.

``extra`` holds ``composition`` and ``events`` (class, recording, start_s, end_s). On one machine, the same seed, source and
options give the same files, bit for bit, whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from clapkit.data.manifest import Manifest
from clapkit.data.recipes._mix_captions import captions, clause
from clapkit.data.recipes._mix_plan import MixPlan, Recording, caption_generator, fewest_clips, plan_gallery, plan_train
from clapkit.data.recipes._mix_render import Sound, Span, audio_name, find_problems, forget_recordings, write_clips
from clapkit.errors import AudioError, ConfigError, ManifestError
from clapkit.types import Caption, Clip, RecipeRequest, Rejection, Tracker

SPLITS = ("train", "val", "test")
_MIN_SAMPLE_RATE = 8000
_MIN_CLIP_S = 1.0  # then two events have half a second each
_CHUNK = 25
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_ByLabel = dict[str, dict[str, list[Recording]]]  # split -> label -> recordings


@dataclass(frozen=True, slots=True)
class Mix:
    """Makes the corpus; see the module, and ``build`` for the attributes."""

    num_clips: int
    clip_s: float
    sample_rate: int
    num_phrases: int
    galleries: int
    needs_source: bool = True
    makes_audio: bool = True

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Mix every clip below ``request.output_dir`` and yield it, in the order train, val, test, further galleries.

        Raises:
            ConfigError: if the audio is said to lie elsewhere, or there are fewer clips than concepts.
            ManifestError: if the source is no prepared corpus, a split is missing or holds fewer than two labels, or one
                recording is in two splits.
            AudioError: if a mixing process dies.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        if request.audio_dir is not None:
            raise ConfigError("--audio-dir: mix finds the audio by the manifest of its source; leave it out")
        source = request.source
        manifest = Manifest.load(source / "manifest.jsonl" if source.is_dir() else source)
        items = [_recording(manifest, clip, self.num_phrases) for clip in manifest]
        rejections = [item for item in items if isinstance(item, Rejection)]
        recordings = [item for item in items if isinstance(item, Recording)]
        _expect_whole_sources(source, recordings)
        self._by_label(source, recordings, rejections)  # tells what is missing before anything is decoded
        sound = Sound(self.clip_s, self.sample_rate)
        with _processes(request.workers) as map_chunks:
            with request.reporter.track("listening", len(recordings), "recordings") as tracker:
                heard = list(_with_results(map_chunks, partial(find_problems, sound=sound), recordings, tracker))
            rejections += [Rejection(recording.id, problem) for recording, problem in heard if problem is not None]
            yield from rejections
            usable = [recording for recording, problem in heard if problem is None]
            plans = self._plan(self._by_label(source, usable, rejections), request.seed)
            for split in dict.fromkeys(plan.split for plan in plans):
                (request.output_dir / "audio" / split).mkdir(parents=True, exist_ok=True)
            write = partial(write_clips, output_dir=request.output_dir, seed=request.seed, sound=sound)
            with request.reporter.track("mixing", len(plans), "clips") as tracker:
                for plan, spans in _with_results(map_chunks, write, plans, tracker):
                    yield self._clip(plan, spans, request.seed)

    def _by_label(self, source: Path, recordings: Sequence[Recording], rejections: Sequence[Rejection]) -> _ByLabel:
        """The recordings in order, labels sorted; refuses what no corpus can be made of."""
        found: _ByLabel = {split: defaultdict(list) for split in SPLITS}
        for recording in sorted(recordings, key=lambda recording: recording.label):
            found[recording.split][recording.label].append(recording)
        for split, by_label in found.items():
            if len(by_label) < 2:
                first = f", first: {rejections[0].item}: {rejections[0].reason}" if rejections else ""
                raise ManifestError(
                    f"{source}: labels found in split {split}: {', '.join(by_label) or 'none'}, expected at least 2 in each of "
                    f"{', '.join(SPLITS)}; name a corpus of clips with one label each ({len(rejections)} clips rejected{first})"
                )
        fewest = fewest_clips(len(found["train"]))
        if self.num_clips < fewest:
            raise ConfigError(
                f"option num_clips={self.num_clips}: expected at least {fewest}, so that train holds every concept of "
                f"{len(found['train'])} labels; pass -O num_clips={fewest} or more"
            )
        return found

    def _plan(self, by_label: _ByLabel, seed: int) -> list[MixPlan]:
        plans = plan_train(by_label["train"], seed=seed, num_clips=self.num_clips)
        plans += plan_gallery(by_label["val"], seed=seed, split="val")
        for gallery in range(self.galleries):
            name = f"test-{gallery + 1}" if gallery else "test"
            plans += plan_gallery(by_label["test"], seed=seed, split="test", gallery=gallery, name=name)
        return plans

    def _clip(self, plan: MixPlan, spans: Sequence[Span], seed: int) -> Clip:
        phrases = [recording.phrases for recording in plan.recordings]
        sentences = captions(plan.composition, phrases, rng=caption_generator(seed, plan))
        return Clip(
            id=f"mix/{plan.split}-{plan.index:05d}",
            audio=audio_name(plan),
            duration_s=round(self.clip_s * self.sample_rate) / self.sample_rate,
            sample_rate=self.sample_rate,
            num_channels=1,
            captions=tuple(Caption(sentence) for sentence in sentences),
            labels=tuple(recording.label for recording in plan.recordings),
            split=plan.split,
            source=" + ".join(recording.source for recording in plan.recordings),
            extra={
                "composition": plan.composition,
                "events": [
                    {"class": recording.label, "recording": recording.id, "start_s": start_s, "end_s": end_s}
                    for recording, (start_s, end_s) in zip(plan.recordings, spans, strict=True)
                ],
            },
        )


def build(
    num_clips: int = 6000, clip_s: float = 5.0, sample_rate: int = 16000, num_phrases: int = 2, galleries: int = 1
) -> Mix:
    """The recipe of the mixed corpus.

    Args:
        num_clips: in train, enough for every concept to occur.
        clip_s: length of every clip in seconds, at least 1.
        sample_rate: of the files in Hz, at least 8000.
        num_phrases: how many captions of each source clip, from the first on, are used as clauses.
        galleries: how many test splits are made: test, test-2, test-3 and so on.

    Raises:
        ConfigError: if an option is out of range.
    """
    for name, value, least in (
        ("num_clips", num_clips, 1),
        ("clip_s", clip_s, _MIN_CLIP_S),
        ("sample_rate", sample_rate, _MIN_SAMPLE_RATE),
        ("num_phrases", num_phrases, 1),
        ("galleries", galleries, 1),
    ):
        if not least <= value < float("inf"):
            raise ConfigError(f"option {name}={value}: expected at least {least}; pass -O {name}={least} or more")
    return Mix(num_clips, clip_s, sample_rate, num_phrases, galleries)


def _recording(manifest: Manifest, clip: Clip, num_phrases: int) -> Recording | Rejection:
    phrases = [clause(caption.text) for caption in clip.captions if caption.lang == "en"][:num_phrases]
    if len(clip.labels) != 1:
        found = f"{len(clip.labels)} labels ({', '.join(clip.labels)})" if clip.labels else "no label"
        return Rejection(clip.id, f"{found}, expected exactly one; a mixture has to know what it is made of")
    if clip.split not in SPLITS:
        return Rejection(clip.id, f"split {clip.split!r}, expected one of {', '.join(SPLITS)}; prepare the source with these")
    if not all(phrases) or not phrases:
        return Rejection(clip.id, f"{len(clip.captions)} captions, expected an English one in words; captions are made of it")
    return Recording(
        id=clip.id,
        source=clip.source or clip.id,
        label=clip.labels[0],
        split=clip.split,
        path=manifest.audio_path(clip),
        start_s=clip.start_s,
        end_s=clip.end_s,
        phrases=tuple(phrases),
    )


def _expect_whole_sources(source: Path, recordings: Sequence[Recording]) -> None:
    split_of: dict[str, str] = {}
    for recording in recordings:
        split = split_of.setdefault(recording.source, recording.split)
        if split != recording.split:
            raise ManifestError(
                f"{source}: clip {recording.id}: its recording {recording.source} is in {split} and in {recording.split}, "
                "expected one split; prepare the source with its own splits"
            )


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a ``map`` that runs in processes and keeps the order.

    The processes stay for several maps, because they keep the recordings that they have decoded.
    """
    if workers <= 1:
        try:
            yield map
        finally:
            forget_recordings()
        return
    # Spawned, not forked: the parent may hold threads of torch or BLAS, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    # Interrupts are the parent's business.
    pool = ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise AudioError("a mixing process died, expected it to finish; run with --workers 1, or with more memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _with_results(
    map_chunks: Callable[..., Iterator[Any]],
    function: Callable[[Sequence[_Item]], Sequence[_Result]],
    items: Sequence[_Item],
    tracker: Tracker,
) -> Iterator[tuple[_Item, _Result]]:
    """Each item with what the function, which takes chunks of items, gives for it."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    for chunk, results in zip(chunks, map_chunks(function, chunks), strict=True):
        tracker.advance(len(chunk))
        yield from zip(chunk, results, strict=True)
