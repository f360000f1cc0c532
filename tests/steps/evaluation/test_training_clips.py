import numpy as np

from clapkit.steps.evaluation.training_clips import held_out_clips, leaked_clips
from clapkit.types import Clip


def clips_of(*, classes=3, recordings=10, takes=2):
    return [
        Clip(id=f"{c}-{r}-{t}", audio="x.wav", labels=(f"class{c}",), source=f"{c}-{r}")
        for c in range(classes)
        for r in range(recordings)
        for t in range(takes)
    ]


def test_a_fifth_of_the_recordings_of_each_class_is_held_out_whole():
    clips = clips_of()
    held = held_out_clips(clips, seed=0)
    assert held.sum() == 3 * 2 * 2
    for c in range(3):
        assert len({clip.source for clip, out in zip(clips, held, strict=True) if out and clip.labels == (f"class{c}",)}) == 2
    out = {clip.source for clip, out in zip(clips, held, strict=True) if out}
    assert not out & {clip.source for clip, out in zip(clips, held, strict=True) if not out}


def test_the_choice_follows_the_seed_and_not_the_order():
    clips = clips_of()
    order = np.random.default_rng(0).permutation(len(clips))
    held = held_out_clips(clips, seed=0)
    np.testing.assert_array_equal(held_out_clips([clips[n] for n in order], seed=0), held[order])
    assert (held_out_clips(clips, seed=1) != held).any()


def test_the_only_recording_of_a_class_stays_and_of_two_one_is_held_out():
    assert not held_out_clips(clips_of(recordings=1), seed=0).any()
    assert held_out_clips(clips_of(recordings=2, takes=1), seed=0).sum() == 3


def test_a_recording_with_several_classes_counts_once():
    clips = [Clip(id=str(n), audio="x.wav", labels=("b", "a") if n % 2 else ("c",), source=str(n // 2)) for n in range(10)]
    assert held_out_clips(clips, seed=0).sum() == 2  # five recordings, all of them of class a: one of them


def test_clips_of_known_recordings_are_found():
    training = [Clip(id="a", audio="x.wav", source="s"), Clip(id="b", audio="x.wav")]
    judged = [Clip(id="c", audio="x.wav", source="s"), Clip(id="d", audio="x.wav", source="t"), Clip(id="b", audio="x.wav")]
    assert [clip.id for clip in leaked_clips(judged, training)] == ["c", "b"]
