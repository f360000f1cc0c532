import numpy as np

from clapkit.data.acoustic import Listener
from clapkit.data.file_table import FileRecord
from clapkit.data.overlap import Overlap, find_overlaps
from clapkit.types import Clip


def record(audio: str, content: str | None = None, landmarks: bytes | None = None) -> FileRecord:
    return FileRecord(audio, 100, content, landmarks)


def song(seed: int, *, gain: float = 1.0) -> bytes:
    """Landmarks of a few seconds of random notes."""
    generator = np.random.default_rng(seed)
    time = np.arange(8000 * 4) / 8000
    tones = generator.uniform((200, 1), (3000, 7), (12, 2))
    notes = [np.sin(2 * np.pi * pitch * time) * (np.sin(2 * np.pi * beat * time) > 0) for pitch, beat in tones]
    listener = Listener(8000)
    listener.hear((gain * sum(notes) / 12).astype(np.float32))
    return listener.landmarks()


def test_same_bytes_win_over_same_recording_and_that_over_same_sound() -> None:
    clips = [Clip("a", "a.wav", source="youtube/x"), Clip("b", "b.wav", source="youtube/y"), Clip("c", "c.wav")]
    others = [Clip("A", "A.wav", source="youtube/x", split="test"), Clip("B", "B.wav", source="youtube/y"), Clip("C", "C.wav")]
    files = {
        "a.wav": record("a.wav", "1", song(1)),
        "b.wav": record("b.wav", "2", song(2)),
        "c.wav": record("c.wav", "3", song(3)),
    }
    other_files = {
        "A.wav": record("A.wav", "1", song(1)),
        "B.wav": record("B.wav", "9", song(2)),
        "C.wav": record("C.wav", "8", song(3, gain=0.5)),
    }
    found = find_overlaps(clips, files, others, other_files)
    assert found[:2] == [Overlap("a", "A", "test", "same bytes"), Overlap("b", "B", None, "same recording youtube/y")]
    assert (found[2].id, found[2].other) == ("c", "C")
    assert found[2].reason.startswith("same sound, +0.0")
    assert len(found) == 3


def test_spans_of_one_file_that_only_touch_share_nothing() -> None:
    clips = [Clip("a", "x.wav", start_s=0.0, end_s=1.0), Clip("b", "x.wav", start_s=1.0, end_s=2.0)]
    others = [Clip("B", "y.wav", start_s=1.0, end_s=2.0)]
    found = find_overlaps(clips, {"x.wav": record("x.wav", "1", song(1))}, others, {"y.wav": record("y.wav", "1", song(1))})
    assert found == [Overlap("b", "B", None, "same bytes")]


def test_spans_of_one_file_share_bytes_with_the_whole_file_and_with_spans_that_they_overlap() -> None:
    clips = [Clip("a", "x.wav", start_s=0.0, end_s=1.0), Clip("b", "x.wav", start_s=2.0)]
    others = [Clip("A", "y.wav"), Clip("B", "y.wav", start_s=0.9, end_s=2.1), Clip("C", "y.wav", end_s=0.5)]
    found = find_overlaps(clips, {"x.wav": record("x.wav", "1")}, others, {"y.wav": record("y.wav", "1")})
    assert [(pair.id, pair.other) for pair in found] == [("a", "A"), ("a", "B"), ("a", "C"), ("b", "A"), ("b", "B")]
    assert {pair.reason for pair in found} == {"same bytes"}


def test_the_path_of_a_copied_or_exported_file_is_no_name_of_a_recording() -> None:
    clips = [Clip("a", "d/a.wav.flac", source="d/a.wav", start_s=0.0, end_s=1.0)]
    others = [Clip("A", "d/a.wav@0.0-1.0.wav", source="d/a.wav")]
    assert find_overlaps(clips, {}, others, {}) == []


def test_a_source_that_is_no_place_in_the_world_proves_nothing() -> None:
    clips = [Clip("a", "d/a.wav", source="take 1"), Clip("b", "d/b.wav", source="d/b.wav")]
    others = [Clip("A", "e/a.wav", source="take 1"), Clip("B", "d/b.wav", source="d/b.wav")]
    assert find_overlaps(clips, {}, others, {}) == []


def test_runs_that_were_not_listened_to_compare_by_recording() -> None:
    clips, others = [Clip("a", "a.wav", source="freesound/7")], [Clip("A", "A.flac", source="freesound/7", split="val")]
    assert find_overlaps(clips, {}, others, {}) == [Overlap("a", "A", "val", "same recording freesound/7")]


def test_silence_matches_nothing() -> None:
    clips, others = [Clip("a", "a.wav")], [Clip("A", "A.wav")]
    assert find_overlaps(clips, {"a.wav": record("a.wav", "1", b"")}, others, {"A.wav": record("A.wav", "2", b"")}) == []
