import dataclasses
import threading
import time

import numpy as np
import pytest
import soundfile

from clapkit.data import audio
from clapkit.data.manifest import Manifest
from clapkit.data.streaming import read_content
from clapkit.steps import embed_windows
from clapkit.steps.embed_windows import ClipEnd, DecodedWindow, WindowsAhead
from clapkit.types import Clip

RATE = 8000


@pytest.fixture
def manifest(tmp_path):
    """Twelve files, number n of 0.1 * (n % 5 + 1) s of the value n."""
    clips = []
    for number in range(12):
        samples = np.full(RATE // 10 * (number % 5 + 1), number / 16, np.float32)
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE, subtype="FLOAT")
        clips.append(Clip(str(number), f"{number}.wav"))
    return Manifest(tuple(clips), root=tmp_path, name="toy", fingerprint="toy")


def start(manifest, *, threads=1, max_bytes=1 << 20, **options):
    settings = {"sample_rate": RATE, "window": 1600, "hop": 800}
    return WindowsAhead(manifest, **settings, threads=threads, max_bytes=max_bytes, **options)


def take_all(manifest, **options):
    with start(manifest, **options) as ahead:
        return list(ahead)


def summary(items):
    """(row, first sample of the window or end, value of the samples or reason)."""
    return [
        (row, item.start, float(item.samples[0]), len(item.samples)) if isinstance(item, DecodedWindow) else (row, item)
        for row, item in items
    ]


def decoding_threads():
    """Names of the threads that decode just now."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("window")]


def test_windows_come_in_order_with_an_end_behind_each_clip(manifest):
    items = take_all(manifest)
    expected = []
    for row in range(12):
        spans = audio.span_windows(800 * (row % 5 + 1), window=1600, hop=800)
        expected += [(row, first, row / 16, last - first) for first, last in spans]
        expected.append((row, ClipEnd()))
    assert summary(items) == expected


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("max_bytes", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("with_content", [False, True])
def test_neither_threads_nor_room_nor_hashing_change_what_comes(manifest, threads, max_bytes, with_content):
    found = take_all(manifest, threads=threads, max_bytes=max_bytes, with_content=with_content, clips_ahead=threads)
    plain = [(row, item if isinstance(item, DecodedWindow) else ClipEnd()) for row, item in found]
    assert summary(plain) == summary(take_all(manifest))


@pytest.mark.parametrize("max_bytes", [1, 1 << 30])
@pytest.mark.parametrize("with_content", [False, True])
def test_spare_threads_change_nothing_and_can_do_all_the_work(manifest, max_bytes, with_content):
    options = {"max_bytes": max_bytes, "with_content": with_content}
    expected = summary(take_all(manifest, with_content=with_content))
    assert summary(take_all(manifest, threads=0, spare_threads=1, **options)) == expected
    assert summary(take_all(manifest, threads=1, spare_threads=2, **options)) == expected


def test_a_spare_thread_decodes_only_while_windows_are_waited_for(manifest, monkeypatch):
    waited = []

    def stream_and_look(*arguments, **options):
        for block in audio_blocks(*arguments, **options):
            with ahead._changed:
                waited.append(ahead._is_starved())
            yield block

    audio_blocks = embed_windows.stream_samples
    monkeypatch.setattr(embed_windows, "stream_samples", stream_and_look)
    with start(manifest, threads=0, spare_threads=1) as ahead:
        for _ in ahead:
            with ahead._changed:
                assert not ahead._is_starved()
            time.sleep(0.001)  # the model
    # One thread, and one block a file: nothing else could have ended the wait while it was decoded.
    assert waited == [True] * 12


def test_a_spare_thread_finishes_the_clip_that_it_has_begun(manifest):
    # What comes behind it would have to wait for it, whatever other threads have ready.
    last = dataclasses.replace(manifest, clips=manifest.clips[4:5])  # 0.5 s: windows at 0, 800, 1600 and 2400
    with start(last, threads=0, spare_threads=1) as ahead:
        next(iter(ahead))
        with ahead._changed:
            assert ahead._changed.wait_for(lambda: len(ahead._entries[0].items) == 4, timeout=60)  # and the end
            assert not ahead._is_starved()


def test_ends_carry_the_hash_of_the_file(manifest):
    ends = [item for _, item in take_all(manifest, with_content=True) if isinstance(item, ClipEnd)]
    assert [end.content for end in ends] == [read_content(manifest.audio_path(clip)).hash for clip in manifest]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_waits_is_bounded_in_bytes(manifest, threads):
    with start(manifest, threads=threads, max_bytes=16_000) as ahead:
        most = 0
        for _ in ahead:
            time.sleep(0.002)  # the model
            with ahead._changed:
                # Once it takes long enough for the threads to get as far as they may, on any machine.
                assert most > 7424 or ahead._changed.wait_for(lambda: ahead._num_bytes > 7424, timeout=60)
                held = sum(embed_windows._num_bytes(item) for entry in ahead._entries for item in entry.items)
                assert held == ahead._num_bytes
            most = max(most, held)
    # A window of 1,600 samples takes 6,400 bytes and its record 1,024: two fit, and one more where a clip is awaited.
    assert 7424 < most <= 16_000 + 7424


def test_files_that_cannot_be_decoded_wait_in_bounded_number_too(tmp_path):
    clips = tuple(Clip(str(number), "nowhere.wav") for number in range(200))
    nothing = Manifest(clips, root=tmp_path, name="nothing", fingerprint="nothing")
    with start(nothing, max_bytes=8 * 1024) as ahead:
        stream = iter(ahead)
        next(stream)
        time.sleep(0.05)
        assert len(ahead._entries) <= 8
        assert len(list(stream)) == 199


def test_a_file_that_cannot_be_decoded_says_why_in_its_place(manifest):
    bad = manifest.root / "3.wav"
    bad.write_bytes(bad.read_bytes()[:1500])
    for options in ({}, {"with_content": True}):
        ends = [(row, item.reason) for row, item in take_all(manifest, **options) if isinstance(item, ClipEnd)]
        assert [row for row, _ in ends] == list(range(12))
        assert [row for row, reason in ends if reason] == [3]
        assert "3.wav: truncated" in ends[3][1]


def test_a_file_that_is_not_there_is_found_when_it_is_hashed(manifest):
    (manifest.root / "3.wav").unlink()
    ends = [item for _, item in take_all(manifest, with_content=True) if isinstance(item, ClipEnd)]
    assert "3.wav: cannot be opened (No such file or directory)" in ends[3].reason
    assert ends[3].content is None


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("max_bytes", [1, 1 << 30])
def test_known_clips_are_not_decoded(manifest, threads, max_bytes, monkeypatch):
    decoded = []
    stream_samples = embed_windows.stream_samples

    def recording(path, **options):
        decoded.append(path.name)
        return stream_samples(path, **options)

    monkeypatch.setattr(embed_windows, "stream_samples", recording)
    asked = []

    def known(clip, content):
        asked.append((clip.id, content, threading.current_thread() is threading.main_thread()))
        return f"answer {clip.id}" if int(clip.id) % 3 else None

    items = take_all(manifest, threads=threads, max_bytes=max_bytes, with_content=True, known=known, clips_ahead=4)
    assert sorted(decoded) == ["0.wav", "3.wav", "6.wav", "9.wav"]
    hashes = {clip.id: read_content(manifest.audio_path(clip)).hash for clip in manifest}
    assert sorted(asked) == sorted((id, content, True) for id, content in hashes.items())
    ends = [item for _, item in items if isinstance(item, ClipEnd)]
    assert [end.answer for end in ends] == [f"answer {row}" if row % 3 else None for row in range(12)]
    assert [end.content for end in ends] == list(hashes.values())


def test_answers_are_asked_for_ahead_of_the_turn_of_a_clip(manifest):
    asked = []
    with start(manifest, with_content=True, known=lambda clip, content: asked.append(clip.id), clips_ahead=5) as ahead:
        next(iter(ahead))
        assert len(asked) >= 5


def test_a_file_that_is_written_meanwhile_is_refused(manifest):
    def known(clip, content):
        if clip.id == "4":
            soundfile.write(manifest.root / "4.wav", np.zeros(99, np.float32), RATE)

    ends = [item for _, item in take_all(manifest, with_content=True, known=known) if isinstance(item, ClipEnd)]
    assert [row for row, end in enumerate(ends) if end.reason] == [4]
    assert "was written while it was read" in ends[4].reason


def test_spans_of_one_file_are_cut(manifest):
    clip = dataclasses.replace(manifest.clips[4], start_s=0.1, end_s=0.35)
    items = take_all(dataclasses.replace(manifest, clips=(clip, clip)))
    # 0.25 s are 2,000 samples: a window at 0, the next moved back to end with the span.
    assert [(row, item.start) for row, item in items if isinstance(item, DecodedWindow)] == [(0, 0), (0, 400), (1, 0), (1, 400)]


def test_no_thread_is_left_when_the_stream_is_given_up(manifest):
    with start(manifest, threads=3, max_bytes=1) as ahead:
        next(iter(ahead))
        assert decoding_threads()
    assert not decoding_threads()


def test_a_mistake_in_a_thread_reaches_the_one_who_takes(manifest, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(embed_windows, "stream_samples", broken)
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        take_all(manifest)
    assert not decoding_threads()


def test_an_error_of_known_ends_the_stream(manifest):
    def known(clip, content):
        raise LookupError("a damaged cache")

    with pytest.raises(LookupError, match="a damaged cache"):
        take_all(manifest, with_content=True, known=known)
    assert not decoding_threads()


def test_no_clips_give_nothing(manifest):
    assert take_all(dataclasses.replace(manifest, clips=())) == []


def test_what_is_known_needs_hashes(manifest):
    with pytest.raises(AssertionError, match="hash of the file"):
        start(manifest, known=lambda clip, content: None)
