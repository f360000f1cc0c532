from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from clapkit.data.dataset import TrainingBatches, Waveforms, identity_keys
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import RandomBatches
from clapkit.errors import ManifestError
from clapkit.types import AudioSpec, Caption, Clip

SPEC = AudioSpec(sample_rate=8000, window_s=1.0)


def batches(manifest: Manifest, *, seed: int = 0, workers: int = 2) -> TrainingBatches:
    sampler = RandomBatches(len(manifest), 4, seed=seed)
    return TrainingBatches(manifest, SPEC, sampler=sampler, positives="caption", seed=seed, workers=workers)


@pytest.fixture
def ramp(tmp_path: Path) -> Manifest:
    """Four clips of four seconds whose sample value is their time."""
    clips = []
    for number in range(4):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.arange(32000) / 32000, 8000, subtype="FLOAT")
        clips.append(Clip(str(number), path.name, 4.0, 8000, 1, captions=(Caption(f"clip {number}"),)))
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="ramp")


def test_long_clips_are_cropped_at_random_and_short_ones_padded(ramp: Manifest) -> None:
    source = batches(ramp)
    starts = [float(source.example(0, epoch).waveform[0]) * 4 for epoch in range(50)]  # seconds
    assert min(starts) < 0.5
    assert max(starts) > 2.5
    assert max(starts) <= 3.0
    example = source.example(0, 0)
    assert np.allclose(np.diff(example.waveform), 1 / 32000, atol=1e-6)
    assert example.num_samples == 8000


def test_an_example_does_not_depend_on_threads_or_on_what_came_before(ramp: Manifest) -> None:
    one = list(batches(ramp, workers=1).epoch(3))
    source = batches(ramp, workers=4)
    list(source.epoch(0))
    other = list(source.epoch(3))
    assert torch.equal(one[0].waveform, other[0].waveform)
    assert one[0].captions == other[0].captions
    assert torch.equal(one[0].index, other[0].index)


def test_an_epoch_can_be_taken_up_in_the_middle(tone_corpus: Callable[..., Path]) -> None:
    source = batches(Manifest.load(tone_corpus()).split("train"))
    whole, rest = list(source.epoch(1)), list(source.epoch(1, first=2))
    assert len(whole) == 4
    assert len(rest) == 2
    assert torch.equal(whole[2].waveform, rest[0].waveform)
    assert whole[3].captions == rest[1].captions


def test_every_caption_is_drawn_at_some_time(tone_corpus: Callable[..., Path]) -> None:
    source = batches(Manifest.load(tone_corpus()).split("train"))
    assert {source.example(0, epoch).caption for epoch in range(20)} == {0, 1}


def test_clips_that_do_not_fit_in_memory_give_the_same_samples(ramp: Manifest) -> None:
    kept, read = Waveforms(ramp, sample_rate=8000), Waveforms(ramp, sample_rate=8000, memory_bytes=0)
    for offset_s, length_s in ((0.0, 4.0), (1.25, 1.0), (3.5, 0.5)):
        a, b = (source.span(1, offset_s=offset_s, length_s=length_s) for source in (kept, read))
        assert np.array_equal(a, b)


def test_spans_start_where_the_manifest_says(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.arange(32000) / 32000, 8000, subtype="FLOAT")
    clip = Clip("a", "a.wav", 1.0, 8000, 1, captions=(Caption("x"),), start_s=2.0, end_s=3.0)
    manifest = Manifest.write(tmp_path / "manifest.jsonl", [clip], root=tmp_path, name="span")
    for memory_bytes in (0, 10**9):
        waveforms = Waveforms(manifest, sample_rate=8000, memory_bytes=memory_bytes)
        assert waveforms.span(0, offset_s=0.0, length_s=1.0)[[0, -1]].tolist() == pytest.approx([0.5, 0.75], abs=1e-4)
        assert waveforms.span(0, offset_s=0.5, length_s=0.25)[0] == pytest.approx(0.625, abs=1e-4)


def test_captions_are_the_same_when_case_blanks_and_full_stop_differ() -> None:
    clips = [
        Clip("a", "a", captions=(Caption("A dog  barks."), Caption("Woof"))),
        Clip("b", "b", captions=(Caption("a dog barks"),)),
    ]
    captions, clip_keys, _ = identity_keys(clips, "caption")
    assert captions[0][0] == captions[1][0]
    assert captions[0][0] in clip_keys[1]
    only_clips, clip_keys, _ = identity_keys(clips, "clip")
    assert only_clips == [[0, 0], [0]]
    assert len(set(clip_keys[:, 0].tolist())) == 2


def test_label_sets_are_keys_only_where_asked() -> None:
    clips = [Clip("a", "a", labels=("x", "y")), Clip("b", "b", labels=("y", "x")), Clip("c", "c")]
    _, clip_keys, labels = identity_keys(clips, "label")
    assert labels[0] == labels[1] != 0
    assert labels[2] == 0
    assert labels[0] in clip_keys[1]
    assert not identity_keys(clips, "caption")[2].any()


def test_batches_know_which_pairs_are_no_negatives(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    clips = [Clip(str(n), "a.wav", 1.0, 8000, 1, captions=(Caption("same" if n < 2 else f"other {n}"),)) for n in range(4)]
    manifest = Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="same")
    batch = next(iter(batches(manifest).epoch(0)))
    expected = torch.eye(4, dtype=torch.bool)
    same = [i for i in range(4) if batch.captions[i] == "same"]
    expected[same[0], same[1]] = expected[same[1], same[0]] = True
    assert torch.equal(batch.positives(), expected)


def test_a_clip_without_caption_is_named(tmp_path: Path) -> None:
    clips = [Clip(str(n), "a.wav", 1.0, 8000, 1) for n in range(4)]
    manifest = Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="mute")
    with pytest.raises(ManifestError, match="4 clips have no caption, first 0"):
        batches(manifest)
