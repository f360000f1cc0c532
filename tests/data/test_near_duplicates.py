import io
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from clapkit.data import near_duplicates
from clapkit.data.acoustic import Listener, frequencies, unpack
from clapkit.data.near_duplicates import find_matches

SAMPLE_RATE = 16_000
Sound = tuple[np.ndarray, int]


def sound(seed: int, *, duration_s: float = 4.0) -> np.ndarray:
    """Decaying tones, a chirp and bursts of noise at random times."""
    draw = np.random.default_rng(seed)
    waveform = 0.002 * draw.standard_normal(round(duration_s * SAMPLE_RATE))
    time_s = np.arange(round(0.3 * SAMPLE_RATE)) / SAMPLE_RATE
    for _ in range(round(8 * duration_s)):
        start = draw.integers(0, len(waveform) - len(time_s))
        frequency, sweep, decay_s = draw.uniform(250, 1600), draw.uniform(-1000, 1000), draw.uniform(0.03, 0.1)
        burst = np.sin(2 * np.pi * (frequency + sweep / 2 * time_s) * time_s) + 0.3 * draw.standard_normal(len(time_s))
        waveform[start : start + len(time_s)] += 0.15 * burst * np.exp(-time_s / decay_s)
    return waveform.astype(np.float32)


def listen(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    listener = Listener(sample_rate)
    listener.hear(waveform.astype(np.float32))
    return listener.landmarks()


def packed(rows: list[tuple[int, int]]) -> bytes:
    """Landmarks (hash, frame) as a listener packs them."""
    return np.array(sorted(rows), "<u4").tobytes()


def coded(waveform: np.ndarray, rate: int, fmt: str, subtype: str) -> Sound:
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, 1, format=fmt, subtype=subtype) as file:
        for start in range(0, len(waveform), rate):
            file.write(waveform[start : start + rate])
    stream.seek(0)
    return soundfile.read(stream, dtype="float32")


def noisy(waveform: np.ndarray, rate: int) -> Sound:
    noise = np.random.default_rng(0).standard_normal(len(waveform))
    return waveform + 0.1 * np.sqrt(np.mean(waveform**2)) * noise, rate


TRANSFORMATIONS: dict[str, Callable[[np.ndarray, int], Sound]] = {
    "8 kHz": lambda waveform, rate: (soxr.resample(waveform, rate, 8000), 8000),
    "16 kHz": lambda waveform, rate: (soxr.resample(waveform, rate, 16_000), 16_000),
    "22.05 kHz": lambda waveform, rate: (soxr.resample(waveform, rate, 22_050), 22_050),
    "48 kHz": lambda waveform, rate: (soxr.resample(waveform, rate, 48_000), 48_000),
    "mp3": lambda waveform, rate: coded(waveform, rate, "MP3", "MPEG_LAYER_III"),
    "ogg": lambda waveform, rate: coded(waveform, rate, "OGG", "VORBIS"),
    "-20 dB": lambda waveform, rate: (np.round(waveform * 3277) / 32768, rate),
    "+6 dB": lambda waveform, rate: (np.clip(2 * waveform, -1, 1), rate),
    "start cut off": lambda waveform, rate: (waveform[rate // 2 :], rate),
    "silence in front": lambda waveform, rate: (np.concatenate([np.zeros(rate // 2), waveform]), rate),
    "noise at 20 dB": noisy,
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformed_sound_is_found_and_no_other(name: str) -> None:
    sounds = [sound(seed) for seed in range(6)]
    transformed = [listen(*TRANSFORMATIONS[name](waveform, SAMPLE_RATE)) for waveform in sounds]
    matches = find_matches([listen(waveform) for waveform in sounds], transformed)
    assert [(match.first, match.second) for match in matches] == [(place, place) for place in range(6)]
    shift_s = {"start cut off": -0.5, "silence in front": 0.5}.get(name, 0.0)
    assert [match.offset_s for match in matches] == pytest.approx([shift_s] * 6, abs=0.05)


def test_a_clip_cut_out_of_a_longer_file_is_found_with_its_place() -> None:
    whole = sound(0, duration_s=20)
    part = whole[round(7.3 * SAMPLE_RATE) : round(11.3 * SAMPLE_RATE)]
    (match,) = find_matches([listen(part), listen(whole), listen(sound(1))])
    assert (match.first, match.second) == (0, 1)
    assert match.offset_s == pytest.approx(7.3, abs=0.05)
    assert match.share > 0.3


def steady(frequency: float, seed: int) -> np.ndarray:
    time_s = np.arange(4 * SAMPLE_RATE) / SAMPLE_RATE
    return 0.3 * np.sin(2 * np.pi * frequency * time_s + np.random.default_rng(seed).uniform(0, 6))


def clicks(seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    waveform = np.zeros(4 * SAMPLE_RATE)
    for start in draw.integers(0, 60_000, 5):
        waveform[start : start + 2000] += np.exp(-np.arange(2000) / 200) * draw.standard_normal(2000)
    return waveform


def test_sounds_of_one_kind_are_no_duplicates() -> None:
    noises = [0.1 * np.random.default_rng(seed).standard_normal(4 * SAMPLE_RATE) for seed in range(10)]
    hums = [sum(steady(100 * harmonic, 20 * seed + harmonic) for harmonic in range(1, 17)) / 16 for seed in range(5)]
    tones = [steady(frequency, seed) for seed, frequency in enumerate([440, 440, 440, 445, 880])]
    sounds = [*noises, *hums, *tones, *map(clicks, range(10)), np.zeros(4 * SAMPLE_RATE)]
    assert find_matches([listen(np.asarray(waveform)) for waveform in sounds]) == []


def some_landmarks(count: int, *, seed: int = 0) -> list[tuple[int, int]]:
    hashes = unpack(listen(sound(seed, duration_s=12)))[0][:count]
    assert len(hashes) == count
    return [(int(value), 10 * place) for place, value in enumerate(hashes)]


def test_votes_share_and_offset_are_counted_by_hand() -> None:
    rows = some_landmarks(60)
    # 40 of 60 landmarks recur 25 frames of 20 ms later, ten of them one frame later still; the rest disagree.
    moved = [(value, frame + 25 + (place < 10)) for place, (value, frame) in enumerate(rows[:40])]
    moved += [(value, frame + 1000 + 7 * place) for place, (value, frame) in enumerate(rows[40:])]
    (match,) = find_matches([packed(rows), packed(moved)])
    assert (match.first, match.second, match.votes) == (0, 1, 40)
    assert match.share == pytest.approx(40 / 60)
    assert match.offset_s == pytest.approx((30 * 25 + 10 * 26) / 40 * 0.02)


def test_too_few_votes_are_no_match() -> None:
    rows = some_landmarks(60)
    least = near_duplicates.MIN_VOTES
    spread = rows[:: 60 // least][:least]  # over all frequencies
    rest = [(value + 1, frame) for value, frame in some_landmarks(60, seed=1)]
    assert [match.votes for match in find_matches([packed(rows), packed(spread)])] == [least]
    assert find_matches([packed(rows), packed(spread[1:])]) == []
    assert find_matches([packed(rows), packed(spread[1:] + rest)]) == []


def test_landmarks_on_few_frequencies_are_no_match() -> None:
    draw = np.random.default_rng(0)
    # Three frequencies, bins 40, 44 and 49, with thirty different waits between them.
    hums = {40 << 24 | (31 + 4) << 18 | (31 + 9) << 12 | int(wait) << 6 | int(wait) for wait in draw.permutation(31)[:30]}
    assert frequencies(np.array(sorted(hums), np.uint32))[:, 0].tolist() == [40, 44, 49]
    rows = [(value, place) for place, value in enumerate(sorted(hums))]
    assert find_matches([packed(rows), packed(rows)]) == []


def naive_pairs(files: list[bytes]) -> dict[tuple[int, int], int]:
    found = {}
    rows = [dict(zip(*map(np.ndarray.tolist, unpack(file)), strict=True)) for file in files]
    for second in range(len(files)):
        for first in range(second):
            shared = rows[first].keys() & rows[second].keys()
            lags = Counter(rows[second][value] - rows[first][value] for value in shared)
            votes = max((count + lags.get(lag + 1, 0) for lag, count in lags.items()), default=0)
            if votes >= near_duplicates.MIN_VOTES:
                found[first, second] = votes
    return found


def overlapping_files() -> list[bytes]:
    """Files with many common landmarks, at offsets that agree for some."""
    draw = np.random.default_rng(0)
    pool = some_landmarks(300)
    files = []
    for place in range(12):
        chosen = [pool[index] for index in draw.permutation(300)[:200]]
        scatter = draw.integers(0, 3 + place % 4, 200)
        files.append(packed([(value, frame + int(late) + place) for (value, frame), late in zip(chosen, scatter, strict=True)]))
    return files


@pytest.mark.parametrize("votes_at_once", [1, 1000, 1 << 25])
def test_the_search_agrees_with_comparing_every_two_files(monkeypatch: pytest.MonkeyPatch, votes_at_once: int) -> None:
    monkeypatch.setattr(near_duplicates, "_MAX_VOTES_AT_ONCE", votes_at_once)
    files = overlapping_files()
    matches = find_matches(files)
    assert {(match.first, match.second): match.votes for match in matches} == naive_pairs(files)
    assert [(match.first, match.second) for match in matches] == sorted((match.first, match.second) for match in matches)


def test_two_corpora_give_the_pairs_of_their_union_that_cross() -> None:
    files = overlapping_files()
    union = {(match.first, match.second - 5): match for match in find_matches(files) if match.first < 5 <= match.second}
    across = {(match.first, match.second): match for match in find_matches(files[:5], files[5:])}
    assert across.keys() == union.keys()
    assert [(match.votes, match.share, match.offset_s) for match in across.values()] == [
        (match.votes, match.share, match.offset_s) for match in union.values()
    ]


def test_a_landmark_of_many_files_is_compared_with_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_MAX_PARTNERS", 3)
    copies = [packed(some_landmarks(60))] * 10
    pairs = {(match.first, match.second) for match in find_matches(copies)}
    assert pairs == {(first, first + lag) for first in range(10) for lag in (1, 2, 3) if first + lag < 10}


@pytest.mark.parametrize("others", [None, [], [b"", b""]])
@pytest.mark.parametrize("files", [[], [b""], [b"", packed([(1, 1)])]])
def test_nothing_to_compare_gives_nothing(files: list[bytes], others: list[bytes] | None) -> None:
    assert find_matches(files, others) == []


def test_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_CLIP_BITS", 2)
    with pytest.raises(ValueError, match="4 files to compare, expected fewer than 4"):
        find_matches([b""] * 4)


@pytest.mark.skipif("CLAPKIT_ESC10" not in os.environ, reason="CLAPKIT_ESC10 does not name a copy of ESC-10")
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_recall_on_real_recordings(name: str) -> None:
    paths = sorted(Path(os.environ["CLAPKIT_ESC10"]).rglob("*.ogg"))[::6]
    sources = [re.match(r"\d+-\d+", path.name)[0] for path in paths]
    sounds = [soundfile.read(path, dtype="float32") for path in paths]
    transformed = [listen(*TRANSFORMATIONS[name](*original)) for original in sounds]
    matches = find_matches([listen(*original) for original in sounds], transformed)
    assert sum(match.first == match.second for match in matches) >= 0.95 * len(paths)
    known = {"2-28314", "2-30322"}  # one recording that was uploaded twice
    assert [
        match
        for match in matches
        if sources[match.first] != sources[match.second] and {sources[match.first], sources[match.second]} != known
    ] == []
