from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import AudioError, ManifestError
from clapkit.steps.validation import RETRIEVAL_METRICS, Validator


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
