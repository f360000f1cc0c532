from dataclasses import replace

import torch

from clapkit.types import Batch, Caption, Clip, SilentReporter


def batch(text_keys: list[list[int]], clip_keys: list[list[int]]) -> Batch:
    count = len(text_keys)
    return Batch(
        waveform=torch.zeros(count, 1),
        num_samples=torch.ones(count, dtype=torch.int64),
        captions=[""] * count,
        index=torch.arange(count),
        text_keys=torch.tensor(text_keys),
        clip_keys=torch.tensor(clip_keys),
        audio_row=torch.arange(count),
    )


def test_a_caption_that_is_true_of_another_clip_is_no_negative() -> None:
    # Clip 1 has keys 11, 12; clip 2 has 12, 13; clip 3 has 14. Drawn: 11, 12, 14. Caption 12 is also true of clip 1.
    positives = batch([[1, 11], [2, 12], [3, 14]], [[1, 11, 12], [2, 12, 13], [3, 14, 0]]).positives()
    assert positives.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_padding_is_nobodys_key() -> None:
    positives = batch([[1, 0], [2, 0]], [[1, 0, 0], [2, 0, 0]]).positives()
    assert positives.tolist() == [[True, False], [False, True]]


def test_one_clip_twice_in_a_batch_is_no_negative_of_itself() -> None:
    positives = batch([[1, 11], [1, 12]], [[1, 0], [1, 0]]).positives()
    assert positives.all()


def test_the_silent_reporter_takes_everything() -> None:
    reporter = SilentReporter()
    reporter.say("a")
    reporter.warn("b")
    with reporter.track("c", 3, "clips") as tracker:
        tracker.advance(2, loss="0.1")


def test_a_clip_changes_nothing_but_what_is_asked() -> None:
    clip = Clip("a", "a.wav", 1.0, 8000, 1, (Caption("x"),), ("l",), "train", 2, "s", 0.5, 1.5, {"k": 1})
    assert clip.in_split("test") == replace(clip, split="test")
    assert clip.in_split(None) == replace(clip, split=None)
    assert clip.measured(2.0, 44100, 2) == replace(clip, duration_s=2.0, sample_rate=44100, num_channels=2)
