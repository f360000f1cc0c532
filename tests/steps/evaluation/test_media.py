import io

import pytest
import soundfile

from clapkit.report.sound import SAMPLE_RATE
from clapkit.steps.evaluation.evidence import ClipSource
from clapkit.steps.evaluation.media import make_media


@pytest.fixture
def sources(corpus):
    return {row: ClipSource(corpus.audio_path(clip), None, None) for row, clip in enumerate(corpus)}


def test_clips_get_a_picture_and_a_sound(sources):
    media = make_media(sources)
    assert set(media.thumbnails) == set(media.sounds) == set(sources)
    assert all(png.startswith(b"\x89PNG") for png in media.thumbnails.values())
    assert media.note == "Sounds are mono MP3 at 24 kHz."


def test_the_first_get_the_sounds_that_there_is_room_for(sources):
    media = make_media(sources, max_sounds=2)
    assert list(media.sounds) == [0, 1]
    assert len(media.thumbnails) == 6
    assert "2 of the 6 clips have one" in media.note


def test_sounds_stay_within_their_bytes(sources):
    media = make_media(sources, max_bytes=10_000)
    assert 0 < sum(map(len, media.sounds.values())) <= 10_000
    assert len(media.sounds) < 6


def test_a_long_clip_is_cut_and_a_span_is_one(tmp_path):
    soundfile.write(tmp_path / "long.wav", [0.1] * (8000 * 12), 8000)
    media = make_media({0: ClipSource(tmp_path / "long.wav", None, None), 1: ClipSource(tmp_path / "long.wav", 3.0, 4.0)})
    lengths = [soundfile.info(io.BytesIO(media.sounds[row])).frames / SAMPLE_RATE for row in (0, 1)]
    assert lengths == pytest.approx([10, 1], abs=0.15)
    assert "1 longer than 10 s are cut there" in media.note


def test_a_file_that_is_gone_is_told(sources, tmp_path):
    media = make_media(sources | {9: ClipSource(tmp_path / "gone.wav", None, None)})
    assert 9 not in media.thumbnails
    assert "1 cannot be decoded" in media.note
