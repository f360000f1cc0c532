from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import AudioError, ManifestError
from clapkit.steps.validation import RETRIEVAL_METRICS, Validator
from clapkit.types import Caption


def test_a_whole_split_gives_every_metric(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    validate = Validator(tiny_encoder, split, workers=1, precision="fp32")
    metrics = validate()
    assert metrics.keys() == set(RETRIEVAL_METRICS)
    assert metrics["t2a_R@10"] == 1.0  # six clips
    assert validate() == metrics


def test_a_clip_that_cannot_be_decoded_stops_validation(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    split.audio_path(split.clips[2]).write_bytes(b"gone")
    with pytest.raises(AudioError, match="validation split: 1 clips cannot be decoded, first val-2"):
        Validator(tiny_encoder, split, workers=1, precision="fp32")()


def test_a_split_without_captions_is_refused(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    path = tone_corpus()
    clips = [replace(clip, captions=()) for clip in Manifest.load(path).split("val")]
    silent = Manifest.write(path.with_name("mute.jsonl"), clips, root=path.parent, name="mute")
    with pytest.raises(ManifestError, match="validation split: no clip has a caption"):
        Validator(tiny_encoder, silent, workers=1, precision="fp32")


class _Told(Exception):
    """Carries what a process would send to the others."""


class _Share:
    """One of several processes that are run one after the other: first what each sends, then what one receives."""

    def __init__(self, rank: int, size: int, told: list[Any] | None = None) -> None:
        self.rank, self.size, self.is_first = rank, size, rank == 0
        self._told = told

    def gather_values(self, value: Any) -> list[Any]:
        if self._told is None:
            raise _Told(value)
        return self._told


def on_processes(size: int, encoder: Any, split: Manifest) -> dict[str, float]:
    told = []
    for rank in range(size):
        with pytest.raises(_Told) as sent:
            Validator(encoder, split, workers=1, precision="fp32", processes=cast(Any, _Share(rank, size)))()
        told.append(sent.value.args[0])
    shared = [
        Validator(encoder, split, workers=1, precision="fp32", processes=cast(Any, _Share(r, size, told)))()
        for r in (0, size - 1)
    ]
    assert shared[0] == shared[1]
    return shared[0]


@pytest.mark.parametrize("size", [2, 4, 9])  # of 9 processes some have no clip: there are 6
def test_shared_over_processes_the_metrics_are_those_of_one(
    size: int, tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder
) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    assert on_processes(size, tiny_encoder, split) == Validator(tiny_encoder, split, workers=1, precision="fp32")()


def test_a_bad_clip_of_one_process_stops_validation_on_all(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    split.audio_path(split.clips[5]).write_bytes(b"gone")
    with pytest.raises(AudioError, match="validation split: 1 clips cannot be decoded, first val-5"):
        on_processes(2, tiny_encoder, split)


def test_captions_are_read_in_their_languages(polyglot: Any, corpus: Manifest) -> None:
    clips = tuple(replace(clip, captions=(Caption("rain"), Caption("rain", "de"))) for clip in corpus.clips)
    Validator(polyglot, replace(corpus, clips=clips), workers=1, precision="fp32")()
    assert set(polyglot.text_tower.seen) == {("rain", "en"), ("rain", "de")}
