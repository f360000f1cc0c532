import dataclasses

import numpy as np
import pytest
import soundfile

from clapkit.config import PrepareConfig
from clapkit.data import inspection
from clapkit.data.audio import AudioInfo, load
from clapkit.data.file_table import read
from clapkit.data.inspection import Inspection
from clapkit.errors import ConfigError, ManifestError
from clapkit.steps import prepare_inspect
from clapkit.types import Clip, Rejection

JOURNAL = ".inspections.jsonl"


@pytest.fixture
def sounds(tmp_path, write_melody):
    """Four good files, one of them stereo, and a broken one."""
    for key in range(3):
        write_melody(tmp_path / "sounds" / "notes" / f"{key}.wav", key)
    write_melody(tmp_path / "sounds" / "notes" / "stereo.wav", 3, num_channels=2, sample_rate=12000)
    (tmp_path / "sounds" / "notes" / "broken.wav").write_bytes(b"no sound")
    return tmp_path / "sounds"


@pytest.fixture
def count_decodes(monkeypatch):
    """The files that were decoded, in a list that grows."""
    decoded, examine = [], inspection.examine

    def count(path, **options):
        decoded.append(path.name)
        return examine(path, **options)

    monkeypatch.setattr(inspection, "examine", count)
    return decoded


# Decoded copies ---------------------------------------------------------------------------------------------------------


def test_the_manifest_names_the_copies(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test", cache_audio="flac", cache_rate=4000)
    assert done.manifest.root == done.path / "decoded"
    assert [clip.audio for clip in done.manifest] == [f"notes/{name}.wav.flac" for name in ("0", "1", "2", "stereo")]
    for clip in done.manifest:
        assert (clip.sample_rate, clip.num_channels, clip.duration_s) == (4000, 1, 4.0)
        info = soundfile.info(done.manifest.audio_path(clip))
        assert (info.samplerate, info.channels, info.format, info.frames) == (4000, 1, "FLAC", 16000)
    assert done.ids == ["notes/0", "notes/1", "notes/2", "notes/stereo"]
    assert sorted(path.name for path in (done.path / "decoded" / "notes").iterdir()) == [
        "0.wav.flac",
        "1.wav.flac",
        "2.wav.flac",
        "stereo.wav.flac",
    ]


def test_a_copy_sounds_like_what_training_would_have_heard(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test", cache_audio="wav", cache_rate=4000)
    for clip in done.manifest:
        original = sounds / "notes" / clip.audio.removeprefix("notes/").removesuffix(".wav")
        heard = load(done.manifest.audio_path(clip), sample_rate=4000)
        np.testing.assert_allclose(heard, load(original, sample_rate=4000), atol=1e-6)


def test_without_a_rate_copies_keep_that_of_their_file(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test", cache_audio="wav")
    assert [clip.sample_rate for clip in done.manifest] == [8000, 8000, 8000, 12000]
    heard = load(done.manifest.audio_path(done.manifest.clips[0]), sample_rate=8000)
    np.testing.assert_array_equal(heard, load(sounds / "notes" / "0.wav", sample_rate=8000))


def test_the_table_of_files_knows_the_original_bytes_and_the_size_of_the_copy(call_prepare, sounds):
    plain = call_prepare(name="plain", recipe=str(sounds), split="test")
    done = call_prepare(recipe=str(sounds), split="test", cache_audio="flac", cache_rate=4000)
    originals, copies = read(plain.path / "files.parquet"), read(done.path / "files.parquet")
    assert list(copies) == [clip.audio for clip in done.manifest]
    for audio, copy in copies.items():
        original = originals[audio.removesuffix(".flac")]
        assert (copy.content, copy.landmarks) == (original.content, original.landmarks)
        assert copy.num_bytes == (done.manifest.root / audio).stat().st_size != original.num_bytes


def test_what_is_counted_is_said_of_the_originals(call_prepare, sounds):
    plain = call_prepare(name="plain", recipe=str(sounds), split="test")
    done = call_prepare(recipe=str(sounds), split="test", cache_audio="flac", cache_rate=4000)
    fingerprints = {plain.report.pop("fingerprint"), done.report.pop("fingerprint")}
    assert len(fingerprints) == 2
    assert plain.report | {"fingerprint": ""} == done.report | {"fingerprint": ""}
    assert plain.inputs == done.inputs


def test_clips_that_are_left_out_leave_no_copy(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test", cache_audio="wav", where="id != 'notes/1'")
    assert done.ids == ["notes/0", "notes/2", "notes/stereo"]
    assert sorted(path.name for path in (done.path / "decoded" / "notes").iterdir()) == [
        "0.wav.wav",
        "2.wav.wav",
        "stereo.wav.wav",
    ]


def test_spans_stay_spans_of_one_copy(tmp_path, call_prepare, write_melody):
    write_melody(tmp_path / "a.wav", 1)
    (tmp_path / "t.csv").write_text("audio,start_s,end_s\na.wav,0.5,1.5\na.wav,3,4\na.wav,1,\n")
    done = call_prepare(recipe=str(tmp_path / "t.csv"), split="test", cache_audio="flac", cache_rate=3001)
    assert [clip.audio for clip in done.manifest] == ["a.wav.flac"] * 3
    assert [(clip.start_s, clip.end_s) for clip in done.manifest] == [(0.5, 1.5), (3.0, 4.0), (1.0, None)]
    assert [clip.duration_s for clip in done.manifest] == [1.0, 1.0, 3.0]
    for clip in done.manifest:
        waveform = load(done.manifest.audio_path(clip), sample_rate=8000, start_s=clip.start_s, end_s=clip.end_s)
        assert len(waveform) == pytest.approx(clip.duration_s * 8000, abs=4)


def test_a_span_does_not_end_behind_a_copy_that_rounding_made_shorter():
    # 10,001 frames at 8 kHz are 1.250125 s; at 3 kHz 3750.375 frames, of which 3750 are kept: 1.25 s.
    clip = Clip("a", "a.wav", start_s=1.0, end_s=1.250125, duration_s=0.250125, sample_rate=8000, num_channels=2)
    found = {"a.wav": Inspection(info=AudioInfo(8000, 10_001, 2), copy=AudioInfo(3000, 3750, 1))}
    policy = prepare_inspect.CopyPolicy("flac", 3000)
    (copied,) = prepare_inspect.use_copies([clip], found, policy)
    assert copied == dataclasses.replace(
        clip, audio="a.wav.flac", end_s=1.25, duration_s=0.25, sample_rate=3000, num_channels=1
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache_rate": 16000}, "--cache-rate 16000: no copies are kept; add --cache-audio flac or wav"),
        ({"cache_audio": "wav", "check": "header"}, "--cache-audio: copies are decoded, but --check header decodes nothing"),
        ({"cache_audio": "flac", "cache_rate": 0}, "--cache-rate 0: expected a sample rate in Hz, for example 16000"),
    ],
)
def test_options_of_copies_that_contradict_each_other_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        prepare_inspect.copy_policy(PrepareConfig(**given))


def test_a_rate_that_no_flac_has_rejects_every_file_with_the_way_out(call_prepare, sounds):
    with pytest.raises(ManifestError, match=r"no usable clip.*the copy cannot be written at 9999999 Hz.*choose --cache-rate"):
        call_prepare(recipe=str(sounds), cache_audio="flac", cache_rate=9999999)


# Filling in -------------------------------------------------------------------------------------------------------------


def test_a_span_that_ends_with_the_last_sample_is_inside():
    info = AudioInfo(44100, 44101, 1)
    clip = Clip("a", "a.wav", start_s=0.5, end_s=44101 / 44100)
    filled = prepare_inspect.fill(clip, Inspection(info=info))
    assert isinstance(filled, Clip)
    assert filled.duration_s == pytest.approx(0.5 + 1 / 44100)
    beyond = prepare_inspect.fill(dataclasses.replace(clip, end_s=44102 / 44100), Inspection(info=info))
    assert isinstance(beyond, Rejection)
    assert "expected it inside the 1.00002 s of a.wav" in beyond.reason


def test_a_span_of_less_than_a_sample_is_refused():
    clip = Clip("a", "a.wav", start_s=0.50000, end_s=0.50001, split="val")
    refused = prepare_inspect.fill(clip, Inspection(info=AudioInfo(8000, 8000, 1)))
    assert isinstance(refused, Rejection)
    assert (refused.item, refused.split) == ("a", "val")


def test_a_bad_file_gives_its_reason_check_and_split():
    found = Inspection(problem="x: is empty", check="empty")
    assert prepare_inspect.fill(Clip("a", "x", split="val"), found) == Rejection("a", "x: is empty", check="empty", split="val")


# Going on ---------------------------------------------------------------------------------------------------------------


def test_a_file_of_many_spans_is_decoded_once(tmp_path, call_prepare, write_melody, count_decodes):
    write_melody(tmp_path / "a.wav", 1)
    (tmp_path / "t.csv").write_text("audio,start_s,end_s\na.wav,0.5,1.5\na.wav,3,4\na.wav,1,\n")
    call_prepare(recipe=str(tmp_path / "t.csv"), split="test")
    assert count_decodes == ["a.wav"]


@pytest.mark.parametrize("copies", [{}, {"cache_audio": "flac", "cache_rate": 4000}])
def test_resuming_decodes_only_what_is_left_and_ends_the_same(call_prepare, sounds, count_decodes, monkeypatch, copies):
    given = {"recipe": str(sounds), "split": "test"} | copies
    whole = call_prepare(name="whole", **given)
    del count_decodes[:]
    look = inspection.inspect

    def interrupted(job, **options):
        if job.path.endswith("2.wav"):
            raise KeyboardInterrupt
        return look(job, **options)

    monkeypatch.setattr(inspection, "inspect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call_prepare(**given)
    monkeypatch.setattr(inspection, "inspect", look)
    del count_decodes[:]
    done = call_prepare(**given, resume=True)
    assert count_decodes == ["2.wav", "broken.wav", "stereo.wav"]
    assert "files looked at before: 2 of 5" in done.reporter.said
    assert done.result == whole.result
    for name in ("report.json", "rejected.jsonl", "files.parquet", "report.html"):
        expected = (whole.path / name).read_bytes()
        assert (done.path / name).read_bytes() == expected, name
    assert list(done.manifest) == list(whole.manifest)
    assert not (done.path / JOURNAL).exists()


def test_nothing_is_left_of_the_journal_after_success_or_refusal(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test")
    assert not (done.path / JOURNAL).exists()
    with pytest.raises(ManifestError, match="--strict: 1 of 5 items rejected"):
        call_prepare(name="strict", recipe=str(sounds), strict=True)
    assert not (done.path.parent / "strict" / JOURNAL).exists()


def test_a_copy_that_vanished_is_made_again_when_resuming(call_prepare, sounds, count_decodes, monkeypatch):
    given = {"recipe": str(sounds), "split": "test", "cache_audio": "wav"}

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_inspect.InspectionJournal, "discard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call_prepare(**given)
    monkeypatch.undo()
    run = sounds.parent / "runs" / "prepare" / "run"
    (run / "decoded" / "notes" / "1.wav.wav").unlink()
    done = call_prepare(**given, resume=True)
    assert (done.path / "decoded" / "notes" / "1.wav.wav").is_file()
    assert "files looked at before: 4 of 5" in done.reporter.said


def test_an_input_is_recorded_once_however_often_a_run_went_on(call_prepare, sounds, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    given = {"recipe": str(sounds), "split": "test"}
    with monkeypatch.context() as patch:
        patch.setattr(prepare_inspect.InspectionJournal, "discard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call_prepare(**given)
    assert [entry["path"] for entry in call_prepare(**given, resume=True).inputs] == [str(sounds)]
