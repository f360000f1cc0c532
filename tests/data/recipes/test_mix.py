from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from clapkit import registry
from clapkit.data.manifest import Manifest
from clapkit.data.recipes.mix import build
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.types import Caption, Clip, RecipeRequest, Rejection, SilentReporter

RATE = 8000
# Label -> pitch in Hz and what the source corpus says.
TONES = {
    "high": (2200, ("A high tone sounds.", "A high tone rings.", "high")),
    "low": (400, ("A low tone sounds.", "A low tone rings.", "low")),
    "middle": (1000, ("A middle tone sounds.", "A middle tone rings.", "middle")),
}
OPTIONS = {"num_clips": 40, "clip_s": 1.0, "sample_rate": RATE}
NUM_CONCEPTS = 3 + 6 + 3


def tone(pitch: float, duration_s: float = 1.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(duration_s * RATE)) / RATE)


def tone_clip(folder: Path, split: str, label: str, number: int) -> Clip:
    """One recording: even numbers fill a second, odd ones are 0.3 s within two seconds of digital silence."""
    pitch, captions = TONES[label]
    name = f"{split}-{label}-{number}"
    waveform = tone(pitch) if number % 2 == 0 else np.concatenate([np.zeros(RATE), tone(pitch, 0.3), np.zeros(RATE)])
    soundfile.write(folder / f"{name}.wav", waveform, RATE, subtype="PCM_16")
    return Clip(
        id=name,
        audio=f"{name}.wav",
        duration_s=len(waveform) / RATE,
        captions=tuple(Caption(text) for text in captions),
        labels=(label,),
        split=split,
        source=f"tape {name}" if split == "train" else None,
    )


def write_source(folder: Path, *extra: Clip, splits: tuple[str, ...] = ("train", "val", "test"), labels=tuple(TONES)) -> Path:
    folder.mkdir(exist_ok=True)
    clips = [tone_clip(folder, split, label, number) for split in splits for label in labels for number in range(3)]
    Manifest.write(folder / "manifest.jsonl", [*clips, *extra], root=folder, name="tones")
    return folder


def read(source: Path, output_dir: Path, *, seed: int = 0, workers: int = 1, **options: Any) -> list[Clip | Rejection]:
    output_dir.mkdir(exist_ok=True)
    request = RecipeRequest(source, None, output_dir, seed, workers, SilentReporter())
    return list(build(**OPTIONS | options).clips(request))


def heard(folder: Path, clip: Clip, start_s: float = 0.0, end_s: float = 1.0) -> set[str]:
    """Labels whose pitch stands out in a span of a clip."""
    waveform, _ = soundfile.read(folder / clip.audio)
    spectrum = np.abs(np.fft.rfft(waveform[round(start_s * RATE) : round(end_s * RATE)], RATE))  # 1 Hz a bin
    return {label for label, (pitch, _) in TONES.items() if spectrum[pitch - 5 : pitch + 6].max() > 0.2 * spectrum.max()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def corpus(source, tmp_path_factory) -> tuple[Path, list[Clip]]:
    folder = tmp_path_factory.mktemp("mix")
    return folder, read(source, folder, galleries=2)


def composed(corpus: tuple[Path, list[Clip]], composition: str) -> list[Clip]:
    return [clip for clip in corpus[1] if clip.extra["composition"] == composition]


def test_it_reads_a_source_makes_sound_and_is_found_by_name():
    recipe = registry.build("recipe", "mix", {"num_clips": "180"})
    assert recipe == build(num_clips=180)
    assert (recipe.needs_source, recipe.makes_audio) == (True, True)


def test_unknown_options_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'galleries'"):
        registry.build("recipe", "mix", {"gallery": "2"})


def test_ids_count_within_each_split_and_files_have_the_exact_length(corpus):
    folder, clips = corpus
    assert all(isinstance(clip, Clip) for clip in clips)
    sizes = {"train": 40, "val": NUM_CONCEPTS, "test": NUM_CONCEPTS, "test-2": NUM_CONCEPTS}
    expected = [(split, number) for split, size in sizes.items() for number in range(size)]
    assert [clip.id for clip in clips] == [f"mix/{split}-{number:05d}" for split, number in expected]
    assert [clip.audio for clip in clips] == [f"audio/{split}/{number:05d}.wav" for split, number in expected]
    assert set(contents(folder)) == {clip.audio for clip in clips}
    for clip in clips:
        info = soundfile.info(folder / clip.audio)
        assert (info.samplerate, info.channels, info.subtype, info.frames) == (RATE, 1, "PCM_16", RATE)
        assert (clip.duration_s, clip.sample_rate, clip.num_channels) == (1.0, RATE, 1)


def test_clips_without_a_source_of_their_own_name_themselves(corpus):
    for clip in corpus[1]:
        recordings = [event["recording"] for event in clip.extra["events"]]
        assert clip.source == " + ".join(f"tape {id}" if clip.split == "train" else id for id in recordings)


def test_no_recording_crosses_splits_and_all_are_used(corpus):
    splits: dict[str, set[str]] = {}
    for clip in corpus[1]:
        for event in clip.extra["events"]:
            splits.setdefault(event["recording"], set()).add(clip.split.removesuffix("-2"))
    assert all(found == {recording.split("-")[0]} for recording, found in splits.items())
    assert len([recording for recording in splits if recording.startswith("train")]) == 9


@pytest.mark.parametrize("split", ["val", "test", "test-2"])
def test_a_gallery_holds_every_concept_once(corpus, split):
    found = Counter((clip.extra["composition"], clip.labels) for clip in corpus[1] if clip.split == split)
    low, middle, high = ("low",), ("middle",), ("high",)
    expected = [("single", label) for label in (low, middle, high)]
    expected += [("then", a + b) for a in (low, middle, high) for b in (low, middle, high) if a != b]
    expected += [("while", high + low), ("while", high + middle), ("while", low + middle)]
    assert found == Counter(expected)


def test_captions_of_a_gallery_name_one_clip_only(corpus):
    texts = Counter(caption.text.lower() for clip in corpus[1] if clip.split == "test" for caption in clip.captions)
    assert set(texts.values()) == {1}


def test_no_concept_of_test_sounds_the_same_in_two_galleries(corpus):
    used = Counter(
        (clip.extra["composition"], *(event["recording"] for event in clip.extra["events"]))
        for clip in corpus[1]
        if clip.split.startswith("test")
    )
    assert len(used) == 2 * NUM_CONCEPTS
    assert set(used.values()) == {1}


def test_train_holds_every_concept_as_often_as_dealing_evenly_can(corpus):
    found = Counter((clip.extra["composition"], clip.labels) for clip in corpus[1] if clip.split == "train")
    assert len(found) == NUM_CONCEPTS
    # 40 clips: 8 single of 3 labels, 20 then of 6 ordered pairs, 12 while of 3 pairs.
    assert {count for (composition, _), count in found.items() if composition == "single"} == {2, 3}
    assert {count for (composition, _), count in found.items() if composition == "then"} == {3, 4}
    assert {count for (composition, _), count in found.items() if composition == "while"} == {4}


def test_labels_are_the_classes_of_the_events(corpus):
    for clip in corpus[1]:
        assert clip.labels == tuple(event["class"] for event in clip.extra["events"])
        assert all(event["recording"].split("-")[1] == event["class"] for event in clip.extra["events"])


def test_a_single_event_is_heard_alone(corpus):
    assert all(heard(corpus[0], clip) == set(clip.labels) for clip in composed(corpus, "single"))


def test_the_first_event_ends_before_the_second_starts_and_the_sound_agrees(corpus):
    for clip in composed(corpus, "then"):
        first, second = clip.extra["events"]
        assert first["end_s"] + 0.0999 <= second["start_s"] < second["end_s"] <= 1.0
        assert heard(corpus[0], clip, end_s=first["end_s"]) == {first["class"]}
        assert heard(corpus[0], clip, start_s=second["start_s"]) == {second["class"]}
        waveform, _ = soundfile.read(corpus[0] / clip.audio)
        assert not waveform[round(first["end_s"] * RATE) : round(second["start_s"] * RATE)].any()


def test_events_at_once_are_both_heard_throughout_even_if_their_recordings_are_short(corpus):
    assert any(event["recording"].endswith("-1") for clip in composed(corpus, "while") for event in clip.extra["events"])
    for clip in composed(corpus, "while"):
        assert all(0 <= event["start_s"] <= 0.3 and event["end_s"] == 1.0 for event in clip.extra["events"])
        # An event of 0.3 s comes again every 0.5 s: any window of 0.5 s holds some of it.
        for start_s in (0.25, 0.5):
            assert heard(corpus[0], clip, start_s, start_s + 0.5) == set(clip.labels)


def test_the_silence_around_a_recording_is_left_out(corpus):
    padded = [clip for clip in composed(corpus, "single") if clip.extra["events"][0]["recording"].endswith("-1")]
    assert padded
    for clip in padded:
        event = clip.extra["events"][0]
        # 0.3 s of tone, found to a frame of 10 ms at either end.
        assert event["start_s"] == 0.0
        assert 0.3 <= event["end_s"] <= 0.32
        waveform, _ = soundfile.read(corpus[0] / clip.audio)
        assert np.sqrt(np.mean(waveform[: round(0.3 * RATE)] ** 2)) > 0.03


def test_levels_lie_within_three_decibels_of_24_below_full_scale(corpus):
    levels = []
    for clip in composed(corpus, "single"):
        waveform, _ = soundfile.read(corpus[0] / clip.audio)
        event = waveform[: round(clip.extra["events"][0]["end_s"] * RATE)]
        levels.append(20 * np.log10(np.sqrt(np.mean(event**2))))
    assert min(levels) > -27.6  # fades and the edges of frames cost a little
    assert max(levels) < -20.9
    assert max(levels) - min(levels) > 1


def test_captions_name_the_events_in_their_order(corpus):
    for clip in composed(corpus, "then"):
        first, second = clip.labels
        for text in (caption.text for caption in clip.captions):
            is_turned = " after " in text
            assert (text.lower().index(first) < text.lower().index(second)) != is_turned
        assert any(" after " in caption.text for caption in clip.captions)


def test_every_clip_has_four_different_captions_made_of_the_first_phrases(corpus):
    for clip in corpus[1]:
        texts = [caption.text for caption in clip.captions]
        assert len(set(texts)) == 4
        assert all(text[0].isupper() and text.endswith(".") and ".." not in text for text in texts)
        for text in texts:
            assert text.lower().count("tone sounds") + text.lower().count("tone rings") == len(clip.labels)


def test_one_phrase_leaves_the_others_out(source, tmp_path):
    texts = [caption.text for clip in read(source, tmp_path, num_phrases=1) for caption in clip.captions]
    assert not any("rings" in text for text in texts)


def test_workers_do_not_matter(source, corpus, tmp_path):
    assert read(source, tmp_path, galleries=2, workers=2) == corpus[1]
    assert contents(tmp_path) == contents(corpus[0])


def test_the_same_seed_gives_the_same_files_and_another_seed_does_not(source, corpus, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    assert read(source / "manifest.jsonl", same, galleries=2) == corpus[1]
    assert contents(same) == contents(corpus[0])
    read(source, other, galleries=2, seed=1)
    assert contents(other).keys() == contents(same).keys()
    assert not set(contents(other).values()) & set(contents(same).values())


def test_more_galleries_leave_the_others_as_they_are(source, corpus, tmp_path):
    read(source, tmp_path, galleries=1)
    expected = {name: data for name, data in contents(corpus[0]).items() if not name.startswith("audio/test-2")}
    assert contents(tmp_path) == expected


def test_spans_of_one_file_are_events_of_their_own(tmp_path):
    folder = tmp_path / "tones"
    write_source(folder)
    clips = list(Manifest.load(folder / "manifest.jsonl"))
    soundfile.write(folder / "tape.wav", np.concatenate([tone(400), tone(2200)]), RATE, subtype="PCM_16")
    cut = {"test-low-0": (0.0, 1.0), "test-high-0": (1.0, 2.0)}
    kept = [clip for clip in clips if clip.split != "test" or clip.labels[0] == "middle" or clip.id in cut]
    spans = [
        replace(clip, audio="tape.wav", start_s=cut[clip.id][0], end_s=cut[clip.id][1]) if clip.id in cut else clip
        for clip in kept
    ]
    Manifest.write(folder / "manifest.jsonl", spans, root=folder, name="tones")
    found = [clip for clip in read(folder, tmp_path / "mix") if clip.split == "test" and len(clip.labels) == 1]
    assert [heard(tmp_path / "mix", clip) for clip in found] == [{"high"}, {"low"}, {"middle"}]


def test_what_cannot_be_mixed_is_rejected_with_the_reason(tmp_path):
    folder = tmp_path / "tones"
    folder.mkdir()
    good = tone_clip(folder, "train", "low", 0)
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE, subtype="PCM_16")
    bad = [
        replace(good, id="two", labels=("low", "high")),
        replace(good, id="none", labels=()),
        replace(good, id="elsewhere", split="dev"),
        replace(good, id="speechless", captions=()),
        replace(good, id="foreign", captions=(Caption("Ein tiefer Ton.", "de"),)),
        replace(good, id="silent", audio="silent.wav"),
        replace(good, id="gone", audio="gone.wav"),
    ]
    write_source(folder, *bad)
    items = read(folder, tmp_path / "mix")
    found = {item.item: item.reason for item in items if isinstance(item, Rejection)}
    assert list(found) == [clip.id for clip in bad]
    assert "2 labels (low, high), expected exactly one" in found["two"]
    assert "no label, expected exactly one" in found["none"]
    assert "split 'dev', expected one of train, val, test" in found["elsewhere"]
    assert "0 captions, expected an English one" in found["speechless"]
    assert "1 captions, expected an English one" in found["foreign"]
    assert "silent.wav: is silent (RMS 0)" in found["silent"]
    assert "gone.wav: cannot be opened" in found["gone"]
    used = {event["recording"] for item in items if isinstance(item, Clip) for event in item.extra["events"]}
    assert not used & found.keys()


def test_a_source_that_lacks_a_split_is_refused(tmp_path):
    folder = write_source(tmp_path / "tones", splits=("train", "test"))
    with pytest.raises(ManifestError, match="labels found in split val: none, expected at least 2 in each of train, val, test"):
        read(folder, tmp_path / "mix")


def test_a_source_of_one_label_is_refused(tmp_path):
    folder = write_source(tmp_path / "tones", labels=("low",))
    with pytest.raises(ManifestError, match="labels found in split train: low, expected at least 2"):
        read(folder, tmp_path / "mix")


def test_a_source_without_labels_is_refused_with_the_first_reason(tone_corpus, tmp_path):
    manifest = Manifest.load(tone_corpus())
    clips = [replace(clip, labels=()) for clip in manifest]
    Manifest.write(tmp_path / "manifest.jsonl", clips, root=manifest.root, name="tones")
    with pytest.raises(ManifestError, match=r"train: none, .*\(28 clips rejected, first: train-0: no label"):
        read(tmp_path, tmp_path / "mix")


def test_a_split_whose_recordings_are_all_silent_is_refused(tmp_path):
    folder = write_source(tmp_path / "tones")
    for path in folder.glob("val-*.wav"):
        soundfile.write(path, np.zeros(RATE), RATE, subtype="PCM_16")
    with pytest.raises(ManifestError, match=r"in split val: none, .*9 clips rejected, first: val-high-0: .*is silent"):
        read(folder, tmp_path / "mix")


def test_a_recording_in_two_splits_is_refused(tmp_path):
    folder = tmp_path / "tones"
    folder.mkdir()
    leak = replace(tone_clip(folder, "train", "low", 0), id="leak", split="test")
    write_source(folder, leak)
    with pytest.raises(ManifestError, match="clip leak: its recording tape train-low-0 is in train and in test, expected one"):
        read(folder, tmp_path / "mix")


def test_fewer_clips_than_hold_every_concept_are_refused(source, tmp_path):
    # Of 12 clips only 2 would be single (2.4 rounded), and there are 3 labels.
    with pytest.raises(ConfigError, match="num_clips=12: expected at least 13, .* of 3 labels; pass -O num_clips=13"):
        read(source, tmp_path, num_clips=12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("num_clips", 0, "1"),
        ("clip_s", 0.5, "1.0"),
        ("clip_s", float("nan"), "1.0"),
        ("clip_s", float("inf"), "1.0"),
        ("sample_rate", 4000, "8000"),
        ("num_phrases", 0, "1"),
        ("galleries", 0, "1"),
    ],
)
def test_options_out_of_range_are_refused(option, value, least):
    with pytest.raises(ConfigError, match=f"option {option}={value}: expected .*{least}"):
        build(**{option: value})


def test_a_folder_for_the_audio_is_refused(source, tmp_path):
    request = RecipeRequest(source, tmp_path, tmp_path, 0, 1, SilentReporter())
    with pytest.raises(ConfigError, match="--audio-dir: mix finds the audio"):
        list(build().clips(request))


def test_a_source_that_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="manifest.jsonl: cannot be read"):
        read(tmp_path, tmp_path / "mix")
