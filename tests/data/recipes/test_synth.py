import numpy as np
import pytest
import soundfile

from clapkit import registry
from clapkit.data.recipes import synth
from clapkit.data.recipes._synth_plan import plan_split
from clapkit.data.recipes._synth_render import render
from clapkit.data.recipes._synth_signal import loudness
from clapkit.data.recipes._synth_sounds import SOUNDS
from clapkit.data.recipes.synth import build
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.types import Clip, RecipeRequest, SilentReporter


def request_for(folder, *, seed=0, workers=1):
    return RecipeRequest(None, None, folder, seed, workers, SilentReporter())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth")
    return folder, list(build(num_clips=60).clips(request_for(folder)))


@pytest.fixture(scope="module")
def corpus_of_two_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth2")
    return folder, list(build(num_clips=60).clips(request_for(folder, workers=2)))


def span(folder, clip, event):
    waveform, sample_rate = soundfile.read(folder / clip.audio)
    return waveform[round(event["start_s"] * sample_rate) : round(event["end_s"] * sample_rate)]


def test_it_needs_no_source_and_is_found_by_name():
    assert registry.build("recipe", "synth", {"num_clips": "60"}) == build(num_clips=60)
    assert build().needs_source is False


def test_unknown_options_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'num_clips'"):
        registry.build("recipe", "synth", {"num_clip": "60"})


def test_too_few_clips_are_refused():
    with pytest.raises(ConfigError, match="num_clips=10: expected at least 60"):
        build(num_clips=10)


def test_a_rate_below_the_pitch_of_birds_is_refused():
    with pytest.raises(ConfigError, match="sample_rate=8000: expected at least 16000 Hz.*pass -O sample_rate=16000"):
        build(sample_rate=8000)


def test_ids_count_within_each_split_and_files_match_their_headers(corpus):
    folder, clips = corpus
    assert all(isinstance(clip, Clip) for clip in clips)
    # 60 clips: 14 each for val and test, the fewest that hold every class; 32 are left.
    expected = [(split, i) for split, size in (("train", 32), ("val", 14), ("test", 14)) for i in range(size)]
    assert [clip.id for clip in clips] == [f"synth/{split}-{i:05d}" for split, i in expected]
    assert [clip.audio for clip in clips] == [f"audio/{split}/{i:05d}.wav" for split, i in expected]
    for clip in clips:
        info = soundfile.info(folder / clip.audio)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.frames / 16000 == clip.duration_s <= 5.0


def test_no_unfinished_files_are_left(corpus):
    folder, clips = corpus
    assert len([path for path in folder.rglob("*") if path.is_file()]) == len(clips)


def test_nothing_clips_and_nothing_is_silent(corpus):
    folder, clips = corpus
    for clip in clips:
        waveform, _ = soundfile.read(folder / clip.audio)
        assert 0.02 < np.abs(waveform).max() < 0.99
        assert abs(waveform.mean()) < 0.01
        assert abs(waveform[0]) < 0.002  # room noise only: no click at the start


def test_every_split_holds_every_class_and_no_source_is_in_two(corpus):
    _, clips = corpus
    sources = {}
    for split in ("train", "val", "test"):
        of_split = [clip for clip in clips if clip.split == split]
        assert {label for clip in of_split for label in clip.labels} == set(SOUNDS)
        sources[split] = {part for clip in of_split for part in clip.source.split(" + ")}
    assert not sources["train"] & sources["val"]
    assert not sources["test"] & (sources["train"] | sources["val"])


def test_labels_and_extra_tell_the_same(corpus):
    _, clips = corpus
    for clip in clips:
        assert clip.labels == tuple(event["class"] for event in clip.extra["events"])
        assert (clip.extra["composition"] == "single") == (len(clip.labels) == 1)
        assert len({caption.text for caption in clip.captions}) == 5


def test_then_is_heard_as_two_sounds_with_a_silence_between(corpus):
    folder, clips = corpus
    then = [clip for clip in clips if clip.extra["composition"] == "then"]
    assert len(then) >= 20
    for clip in then:
        first, second = clip.extra["events"]
        gap = span(folder, clip, {"start_s": first["end_s"], "end_s": second["start_s"]})
        # Only the room: 0.0003 RMS, where the softest event has 0.02 less one decibel.
        assert np.sqrt(np.mean(gap**2)) < 0.001
        assert all(loudness(span(folder, clip, event), 16000) > 0.01 for event in (first, second))


def test_loud_events_are_louder_than_quiet_ones(corpus):
    folder, clips = corpus
    levels = {"loud": [], "quiet": []}
    for clip in clips:
        for event in clip.extra["events"]:
            if "loudness" in event["attributes"]:
                levels[event["attributes"]["loudness"]].append(loudness(span(folder, clip, event), 16000))
    assert min(levels["loud"]) > 4 * max(levels["quiet"])


def test_two_workers_make_what_one_makes_bit_for_bit(corpus, corpus_of_two_workers):
    (folder, clips), (other_folder, other_clips) = corpus, corpus_of_two_workers
    assert other_clips == clips
    for clip in clips:
        assert (other_folder / clip.audio).read_bytes() == (folder / clip.audio).read_bytes()


def captions_of(monkeypatch, folder, languages):
    """The captions of the smallest corpus, clip by clip, without its sound."""
    monkeypatch.setattr(synth, "write_clips", lambda chunk, **options: None)
    return [clip.captions for clip in build(num_clips=60, languages=languages).clips(request_for(folder))]


def test_further_languages_add_two_captions_each_and_change_no_english_one(corpus, monkeypatch, tmp_path):
    english = [clip.captions for clip in corpus[1]]
    assert {caption.lang for captions in english for caption in captions} == {"en"}
    of_four = captions_of(monkeypatch, tmp_path, "en,de,fr,es")
    assert [captions[:5] for captions in of_four] == english
    for captions in of_four:
        assert [caption.lang for caption in captions[5:]] == ["de", "de", "fr", "fr", "es", "es"]
        assert len({caption.text for caption in captions}) == 11


def test_english_may_be_left_out_and_words_do_not_depend_on_the_other_languages(monkeypatch, tmp_path):
    spanish = captions_of(monkeypatch, tmp_path, "es")
    assert {len(captions) for captions in spanish} == {2}
    assert [captions[:2] for captions in captions_of(monkeypatch, tmp_path, "es,de,en")] == spanish


def test_languages_do_not_change_the_sound(corpus, tmp_path):
    folder, clips = corpus
    first = next(iter(build(num_clips=60, languages="de").clips(request_for(tmp_path))))
    assert (tmp_path / first.audio).read_bytes() == (folder / clips[0].audio).read_bytes()
    assert (first.labels, first.extra) == (clips[0].labels, clips[0].extra)


def test_unknown_languages_are_refused_by_the_recipe():
    with pytest.raises(ConfigError, match="languages=en,xx: unknown language 'xx'; known: en, de, es, fr"):
        registry.build("recipe", "synth", {"languages": "en,xx"})


def test_another_seed_makes_another_sound_of_the_same_plan():
    plan = plan_split(0, "val", 14)[0]
    assert not np.array_equal(render(plan, seed=0, sample_rate=16000), render(plan, seed=1, sample_rate=16000))
