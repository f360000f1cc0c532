from dataclasses import replace

import pytest

from clapkit.data import audit
from clapkit.data.audio import AUDIO_SUFFIXES, AudioInfo, AudioStatistics
from clapkit.data.findings import CHECKS, USUAL_SAMPLE_RATES, Finding
from clapkit.data.inspection import Inspection
from clapkit.types import Caption, Clip, Rejection

RATE = 8000


def inspection(content: str = "", rms: float = 0.1, clipped_share: float = 0.0) -> Inspection:
    return Inspection(AudioInfo(RATE, RATE, 1), AudioStatistics(1.0, rms, 0.0, clipped_share), content)


def test_a_summary_counts_clips_captions_labels_and_hours() -> None:
    clips = [
        Clip("a", "a.wav", 1800.0, 8000, 1, (Caption("x"), Caption("y", "de")), ("dog",), "train"),
        Clip("b", "b.wav", 3600.0, 8000, 2, (Caption("z  z z"),), ("dog", "cat"), "test"),
        Clip("c", "c.wav", 1800.0, 44100, 1, split="train"),
    ]
    wav = AudioInfo(RATE, RATE, 1, "WAV", "PCM_16")
    found = {
        "a.wav": replace(inspection("1"), info=wav),
        "b.wav": inspection("2", rms=0.0),
        "c.wav": inspection("3", clipped_share=0.5),
    }
    assert audit.summarise(clips, found) == {
        "num_clips": 3,
        "num_captions": 3,
        "hours": 2.0,
        "sample_rates": {"44100": 1, "8000": 2},
        "channels": {"1": 2, "2": 1},
        "languages": {"de": 1, "en": 2},
        "labels": {"cat": 1, "dog": 2},
        "splits": {"test": {"num_clips": 1, "hours": 1.0}, "train": {"num_clips": 2, "hours": 1.0}},
        "duplicates": {"num_groups": 0, "num_groups_across_splits": 0, "groups": []},
        "formats": {"": 2, "WAV PCM_16": 1},
        "captions": {
            "num_distinct": 3,
            "num_shared": 0,
            "num_shared_across_splits": 0,
            "words": {"min": 1, "median": 1, "max": 3},
        },
        "durations_s": {"min": 1800.0, "mean": 2400.0, "median": 1800.0, "max": 3600.0},
        "silent": {"num_clips": 1, "ids": ["b"]},
        "clipped": {"num_clips": 1, "ids": ["c"]},
    }


def test_duplicates_have_the_same_bytes_and_the_same_span() -> None:
    clips = [
        Clip("a", "a.wav", 1.0, split="train"),
        Clip("copy", "b.wav", 1.0, split="test"),
        Clip("first half", "c.wav", 0.5, split="train", end_s=0.5),
        Clip("second half", "c.wav", 0.5, split="train", start_s=0.5),
        Clip("again", "d.wav", 0.5, split="train", end_s=0.5),
    ]
    found = {"a.wav": inspection("1"), "b.wav": inspection("1"), "c.wav": inspection("2"), "d.wav": inspection("2")}
    assert audit.summarise(clips, found)["duplicates"] == {
        "num_groups": 2,
        "num_groups_across_splits": 1,
        "groups": [["a", "copy"], ["first half", "again"]],
    }


def test_what_was_not_decoded_is_not_known() -> None:
    report = audit.summarise([Clip("a", "a.wav", 1.0)], {"a.wav": Inspection(info=AudioInfo(RATE, RATE, 1))})
    assert [report[key] for key in ("duplicates", "silent", "clipped")] == [None, None, None]


def test_captions_that_several_clips_share_are_counted_once_each() -> None:
    rain, wind, dog = Caption("Rain"), Caption("Wind"), Caption("Dog")
    clips = [
        Clip("a", "a.wav", 1.0, captions=(rain, rain, wind), split="train"),
        Clip("b", "a.wav", 1.0, captions=(rain,), split="train"),
        Clip("c", "a.wav", 1.0, captions=(wind, dog), split="test"),
        Clip("d", "a.wav", 1.0, split="test"),
    ]
    report = audit.summarise(clips, {"a.wav": inspection()})
    counts = {key: report["captions"][key] for key in ("num_distinct", "num_shared", "num_shared_across_splits")}
    assert counts == {"num_distinct": 3, "num_shared": 2, "num_shared_across_splits": 1}


def test_a_corpus_without_captions_and_durations_has_no_statistics_of_them() -> None:
    report = audit.summarise([Clip("a", "a.wav")], {"a.wav": inspection()})
    assert report["captions"]["words"] is None
    assert report["durations_s"] is None


# Findings ---------------------------------------------------------------------------------------------------------------


def statistics(**changes: object) -> AudioStatistics:
    return replace(AudioStatistics(0.5, 0.1, 0.0, 0.0, (0.1, 0.1), (0.0, 0.0)), **changes)


def found_in(
    clip: Clip | None = None, samples: AudioStatistics | None = None, info: AudioInfo | None = None
) -> list[tuple[str, str]]:
    clip = clip or Clip("a", "a.wav", 1.0, 8000, 2)
    info = info or AudioInfo(RATE, RATE, 2, "WAV", "PCM_16")
    findings = audit.find([clip], {clip.audio: Inspection(info, samples or statistics(), "1")}, near_duplicates=None)
    return [(finding.check, finding.detail) for finding in findings]


def test_nothing_is_wrong_with_a_good_clip() -> None:
    assert found_in() == []


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (statistics(rms=9e-5), ("silent", "RMS 9e-05")),
        (
            statistics(peak=0.2, rms=0.0, dc_offset=0.2, channel_dc_offsets=(0.2, 0.2), is_constant=True),
            ("constant", "all samples are 0.2"),
        ),
        (statistics(clipped_share=0.0125), ("clipped", "1.25% of the samples")),
        (statistics(dc_offset=0.0, channel_dc_offsets=(0.021, -0.05)), ("dc_offset", "-0.05 of full scale")),
        (statistics(channel_rms=(0.1, 9e-5)), ("dead_channel", "channel 2 of 2")),
    ],
)
def test_samples_that_look_wrong_are_found(samples: AudioStatistics, expected: tuple[str, str]) -> None:
    assert found_in(samples=samples) == [expected]


@pytest.mark.parametrize(
    "samples",
    [
        statistics(rms=1e-4, channel_rms=(1e-4, 1e-4)),
        statistics(clipped_share=1e-3),
        statistics(channel_dc_offsets=(0.02, -0.02)),
        statistics(channel_rms=(9e-5, 9.9e-4)),
        statistics(channel_rms=(0.1,), channel_dc_offsets=(0.0,)),
    ],
)
def test_samples_at_a_threshold_are_let_pass(samples: AudioStatistics) -> None:
    assert found_in(samples=samples) == []


def test_digital_silence_is_silent_and_not_constant() -> None:
    zeros = AudioStatistics(0.0, 0.0, 0.0, 0.0, (0.0,), (0.0,), is_constant=True)
    assert [check for check, _ in found_in(samples=zeros)] == ["silent"]


@pytest.mark.parametrize(("duration_s", "expected"), [(0.099, [("too_short", "0.099 s")]), (0.1, [])])
def test_a_tenth_of_a_second_is_long_enough(duration_s: float, expected: list[tuple[str, str]]) -> None:
    assert found_in(Clip("a", "a.wav", duration_s, 8000)) == expected


@pytest.mark.parametrize("sample_rate", USUAL_SAMPLE_RATES)
def test_usual_sample_rates_are_let_pass(sample_rate: int) -> None:
    assert found_in(Clip("a", "a.wav", 1.0, sample_rate)) == []


def test_a_sample_rate_that_nobody_uses_is_found() -> None:
    assert found_in(Clip("a", "a.wav", 1.0, 44056)) == [("odd_sample_rate", "44056 Hz")]


@pytest.mark.parametrize(
    ("name", "file_format", "subtype", "expected"),
    [
        ("a.wav", "MP3", "MPEG_LAYER_III", "named .wav, holds MP3"),
        ("a.MP3", "WAV", "PCM_16", "named .mp3, holds WAV"),
        ("a.opus", "OGG", "VORBIS", "named .opus, holds VORBIS"),
        ("a.wav", "RF64", "PCM_16", None),
        ("a.wav", "WAVEX", "PCM_24", None),
        ("a.ogg", "OGG", "OPUS", None),
        ("a.xyz", "WAV", "PCM_16", None),
        ("a", "WAV", "PCM_16", None),
    ],
)
def test_a_suffix_that_is_not_that_of_the_format_is_found(
    name: str, file_format: str, subtype: str, expected: str | None
) -> None:
    found = found_in(Clip("a", name, 1.0, 8000), info=AudioInfo(RATE, RATE, 1, file_format, subtype))
    assert found == ([("wrong_header", expected)] if expected else [])


def test_a_length_that_the_header_does_not_tell_is_found() -> None:
    assert found_in(info=AudioInfo(RATE, RATE, 1, "WAV", "PCM_16", "its header lies")) == [("wrong_header", "its header lies")]


def test_every_suffix_with_a_format_is_one_of_audio() -> None:
    assert set(audit._FORMATS_OF_SUFFIX) == AUDIO_SUFFIXES


def test_copies_are_found_behind_the_first_and_worst_across_splits() -> None:
    clips = [
        Clip(name, f"{name}.wav", 1.0, 8000, split=split)
        for name, split in zip("abcd", ["train", "train", "test", "test"], strict=True)
    ]
    found = {clip.audio: inspection("same" if clip.id != "b" else "other") for clip in clips}
    findings = audit.find(clips, found, near_duplicates=[])
    assert [(f.check, f.item, f.detail) for f in findings] == [
        ("duplicate", "c", "the same file as a (train, this is test)"),
        ("duplicate", "d", "the same file as a (train, this is test)"),
    ]


def test_near_copies_are_found_once_behind_the_first_and_not_where_the_bytes_are_equal() -> None:
    clips = [Clip(name, f"{name}.wav", 1.0, 8000, split="train") for name in "abc"]
    found = {"a.wav": inspection("1"), "b.wav": inspection("2"), "c.wav": inspection("1")}
    pairs = [("b", "a", "at +0.1 s"), ("c", "a", ""), ("c", "b", ""), ("b", "a", "again")]
    findings = audit.find(clips, found, near_duplicates=pairs)
    assert [(f.check, f.item, f.detail) for f in findings] == [
        ("duplicate", "c", "the same file as a"),
        ("near_duplicate", "b", "sounds like a: at +0.1 s"),
        ("near_duplicate", "c", "sounds like b"),
    ]


def test_findings_come_in_the_order_of_the_checks_the_worst_first() -> None:
    shares = {"a": 0.1, "b": 0.3, "c": 0.2}
    clips = [Clip(name, f"{name}.wav", 0.05, 8000) for name in shares]
    found = {
        f"{name}.wav": Inspection(AudioInfo(RATE, 400, 1), statistics(clipped_share=share), name)
        for name, share in shares.items()
    }
    findings = audit.find(clips, found, near_duplicates=None)
    assert [(f.check, f.item) for f in findings][3:] == [("clipped", "b"), ("clipped", "c"), ("clipped", "a")]
    assert [f.check for f in findings][:3] == ["too_short"] * 3


def test_captions_are_judged_together_with_the_sound() -> None:
    assert found_in(Clip("a", "a.wav", 1.0, 8000, captions=(Caption("Rain &amp; wind"),))) == [
        ("html_entity", "'&amp;' stands for '&'")
    ]


# Counts -----------------------------------------------------------------------------------------------------------------


def test_findings_and_rejections_are_counted_in_the_order_of_the_checks() -> None:
    findings = [Finding("mojibake", "a caption 1", ""), Finding("clipped", "a", ""), Finding("clipped", "a", "")]
    rejections = [
        Rejection("x", "is empty", check="empty"),
        Rejection("y", "no audio", kind="missing"),
        Rejection("z", "odd", check="of the recipe"),
    ]
    report = audit.count(findings, rejections)
    assert list(report) == [*CHECKS, "of the recipe"]
    assert {name: entry["items"] for name, entry in report.items() if entry["num_items"]} == {
        "empty": ["x"],
        "clipped": ["a"],
        "mojibake": ["a caption 1"],
        "of the recipe": ["z"],
    }
    assert report["empty"]["about"] == CHECKS["empty"].about
    assert report["empty"]["effect"] == "rejects"


def test_no_more_than_a_hundred_items_are_listed() -> None:
    entry = audit.count([Finding("silent", str(number), "") for number in range(150)], [])["silent"]
    assert entry["num_items"] == 150
    assert entry["items"] == [str(number) for number in range(100)]


def test_checks_that_were_not_made_are_absent() -> None:
    header = {"a.wav": Inspection(info=AudioInfo(RATE, RATE, 1))}
    made = audit.looked_for(header, near_duplicates=False)
    absent = set(CHECKS) - set(made)
    assert absent == {"not_finite", "silent", "constant", "clipped", "dc_offset", "dead_channel", "duplicate", "near_duplicate"}
    assert list(audit.count([], [], made=made)) == made
    assert set(audit.looked_for({"a.wav": inspection()}, near_duplicates=True)) == set(CHECKS)
    assert set(CHECKS) - set(audit.looked_for({"a.wav": inspection()}, near_duplicates=False)) == {"near_duplicate"}


def test_a_bad_file_does_not_hide_that_the_others_were_decoded() -> None:
    found = {"a.wav": inspection(), "b.wav": Inspection(problem="is empty", check="empty")}
    assert "silent" in audit.looked_for(found, near_duplicates=False)


def of_lengths(*durations_s: float) -> list[Finding]:
    clips = [Clip(f"{n}", f"{n}.wav", duration_s, RATE, 1) for n, duration_s in enumerate(durations_s)]
    files = {clip.audio: inspection(content=clip.id) for clip in clips}
    return [finding for finding in audit.find(clips, files, near_duplicates=None) if finding.check == "odd_duration"]


def test_clips_of_another_length_than_nearly_all_are_said_the_oddest_first() -> None:
    found = of_lengths(*[5.0] * 17, 5.0005, 3.6, 7.24)  # 17 of 20 is 85 %; half a millisecond is nothing
    assert [finding.detail for finding in found] == ["7.24 s, others 5 s", "3.6 s, others 5 s"]


def test_where_lengths_vary_none_is_odd() -> None:
    assert of_lengths(*[5.0] * 15, 1.0, 2.0, 3.0, 4.0) == []  # 15 of 19 is 79 %
    assert of_lengths(*[5.0] * 9, 1.0) == []  # nine clips are no rule
