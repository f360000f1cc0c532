"""Every check of ``prepare`` finds what was planted for it, and nothing on good files."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from clapkit.data import audit
from clapkit.data.findings import CHECKS
from clapkit.data.inspection import Inspection, Job, inspect_files
from clapkit.data.near_duplicates import find_matches
from clapkit.types import Caption, Clip, Rejection

RATES = (8000, 11025, 12000, 16000)
# (suffix, subtype): what corpora come in.
FORMATS = (
    (".wav", "PCM_16"), (".wav", "PCM_24"), (".wav", "FLOAT"), (".wav", "IMA_ADPCM"), (".flac", "PCM_16"), (".ogg", "VORBIS"),
    (".mp3", None), (".aiff", "PCM_16"), (".au", "PCM_16"), (".caf", "PCM_16"), (".w64", "PCM_16"), (".rf64", "PCM_16"),
)  # fmt: skip
# Recipes refuse empty captions themselves.
# Recipes refuse empty captions; an odd duration needs a corpus in which nearly all have the same (tests of the audit).
WITHOUT_FILES = {"empty_caption", "odd_duration"}

GOOD_CAPTIONS = (
    ("en", "{n} dogs bark while rain falls on a tin roof"),
    ("en", "Birds chirping, then traffic number {n}"),
    ("de", "{n} Hunde bellen, während es draußen regnet"),
    ("fr", "Un chien aboie {n} fois à côté d'une forêt"),
    ("es", "El niño ríe {n} veces y el perro ladra"),
    ("it", "Il cane abbaia {n} volte, poi c'è silenzio"),
    ("zh", "狗叫了{n}次，雨声很大"),
    ("ja", "犬が{n}回吠えている"),
    ("ko", "개가 {n}번 짖는다"),
    ("ru", "Собака лает {n} раз под дождём"),
)
WRONG_LANGUAGE = (
    ("en", "Ein Hund bellt und eine Frau spricht, Nummer {n}"),
    ("de", "A dog is barking and the rain falls on number {n}"),
    ("zh", "A dog barks {n} times"),
    ("ru", "A dog barks {n} times"),
    ("eng_Latn", "A dog barks {n} times"),
    ("en", "狗叫了{n}次，雨声很大"),
)


@dataclass
class Corpus:
    """Clips whose files were written, and what must be found on which."""

    root: Path
    generator: np.random.Generator
    clips: list[Clip] = field(default_factory=list)
    planted: dict[str, set[str]] = field(default_factory=dict)

    def noise(
        self, *, seconds: float | None = None, rate: int = 8000, channels: int = 1, level: float | None = None
    ) -> np.ndarray:
        """Noise with a slow envelope, never near full scale."""
        draw = self.generator
        num_frames = round((draw.uniform(0.25, 1.0) if seconds is None else seconds) * rate)
        level = 10 ** draw.uniform(-2.0, -0.2) if level is None else level
        envelope = 1 + 0.5 * np.sin(np.arange(num_frames) / num_frames * draw.uniform(3, 30))
        samples = draw.uniform(-0.6, 0.6, (num_frames, channels)) * envelope[:, None] * level
        return samples - samples.mean(axis=0)

    def captions(self) -> tuple[Caption, ...]:
        count = int(self.generator.integers(1, 4))
        chosen = self.generator.choice(len(GOOD_CAPTIONS), count, replace=False)
        return tuple(Caption(GOOD_CAPTIONS[i][1].format(n=len(self.clips)), GOOD_CAPTIONS[i][0]) for i in chosen)

    def add(
        self,
        check: str | None,
        samples: np.ndarray | None,
        *,
        suffix: str = ".wav",
        subtype: str | None = "PCM_16",
        rate: int = 8000,
    ) -> Path:
        """Write one clip; without samples the caller writes the file."""
        number = len(self.clips)
        path = self.root / f"{number}{suffix}"
        clip = Clip(f"{check or 'good'}/{number}", path.name, captions=self.captions(), split=("train", "test")[number % 2])
        self.clips.append(clip)
        if check is not None:
            self.planted.setdefault(check, set()).add(clip.id)
        if samples is not None:
            soundfile.write(path, samples, rate, subtype=subtype)
        return path

    def caption(self, check: str, captions: tuple[Caption, ...], number: int | None) -> None:
        """Put captions on a new good file; ``number`` is that of the bad one, None if the clip is."""
        self.add(None, self.noise())
        clip = replace(self.clips[-1], captions=captions, id=f"{check}/{len(self.clips)}")
        self.clips[-1] = clip
        self.planted.setdefault(check, set()).add(clip.id if number is None else f"{clip.id} caption {number}")


def plant_good(corpus: Corpus, k: int) -> None:
    suffix, subtype = FORMATS[k % len(FORMATS)]
    rate = RATES[k // len(FORMATS) % len(RATES)]
    corpus.add(None, corpus.noise(rate=rate, channels=1 + k % 2), suffix=suffix, subtype=subtype, rate=rate)


def plant_unreadable(corpus: Corpus, k: int) -> None:
    path = corpus.add(
        "unreadable", corpus.noise() if k % 4 > 1 else None, suffix=(".wav", ".mp3")[k % 2] if k % 4 < 2 else ".wav"
    )
    if k % 4 == 0:
        path.write_text("<html>404 not found</html>\n" * (k + 1))
    elif k % 4 == 1:
        path.write_bytes(bytes(1000 + k))
    else:
        content = bytearray(path.read_bytes())
        if k % 4 == 2:
            content[24:28] = struct.pack("<I", 1 + k)  # sample rate
        else:
            content[22:24] = struct.pack("<H", 10_000 + k)  # channels
        path.write_bytes(content)


def plant_empty(corpus: Corpus, k: int) -> None:
    path = corpus.add(
        "empty", np.zeros((0, 1)) if k % 2 else None, suffix=(".wav", ".flac", ".mp3", ".wav")[k % 4 if k % 2 == 0 else 3]
    )
    if k % 2 == 0:
        path.write_bytes(b"")


def plant_truncated(corpus: Corpus, k: int) -> None:
    suffix, subtype = FORMATS[k % len(FORMATS)]
    path = corpus.add("truncated", corpus.noise(seconds=1.0, rate=16000), suffix=suffix, subtype=subtype, rate=16000)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * corpus.generator.uniform(0.5, 0.8))])


def plant_not_finite(corpus: Corpus, k: int) -> None:
    samples = corpus.noise(channels=1 + k % 2)
    samples[corpus.generator.integers(len(samples)), -1] = (np.nan, np.inf, -np.inf)[k % 3]
    corpus.add("not_finite", samples, subtype="FLOAT")


def plant_too_short(corpus: Corpus, k: int) -> None:
    corpus.add("too_short", corpus.noise(seconds=0.005 + 0.09 * k / 20))


def plant_silent(corpus: Corpus, k: int) -> None:
    corpus.add("silent", corpus.noise(level=k / 20 * 1e-4), subtype="FLOAT")


def plant_constant(corpus: Corpus, k: int) -> None:
    corpus.add("constant", np.full((4000 + k, 1 + k % 2), (-1) ** k * (k + 1) / 64), subtype=("FLOAT", "PCM_16")[k % 2])


def plant_clipped(corpus: Corpus, k: int) -> None:
    corpus.add("clipped", np.clip(corpus.noise(level=1.0) * (3 + k), -1, 1), subtype=("FLOAT", "PCM_16", "PCM_24")[k % 3])


def plant_dc_offset(corpus: Corpus, k: int) -> None:
    samples = corpus.noise(channels=1 + k % 2, level=0.3)
    samples[:, -1] += (-1) ** k * (0.03 + 0.02 * k)
    corpus.add("dc_offset", samples)


def plant_dead_channel(corpus: Corpus, k: int) -> None:
    samples = corpus.noise(channels=2 + k % 3)
    samples[:, k % samples.shape[1]] *= 1e-6 * (k % 2)
    corpus.add("dead_channel", samples, subtype="FLOAT")


def plant_wrong_header(corpus: Corpus, k: int) -> None:
    if k % 4 == 0:
        path = corpus.add("wrong_header", None, suffix=".wav")
        soundfile.write(path, corpus.noise(), 8000, format="MP3")
    elif k % 4 == 1:
        path = corpus.add("wrong_header", None, suffix=(".mp3", ".flac", ".ogg")[k % 3])
        soundfile.write(path, corpus.noise(), 8000, format="WAV")
    else:
        path = corpus.add("wrong_header", corpus.noise(seconds=0.8))
        content = bytearray(path.read_bytes())
        content[40:44] = struct.pack("<I", 0xFFFFFFFF if k % 4 == 2 else 8000)  # length of the audio
        path.write_bytes(content)


def plant_odd_sample_rate(corpus: Corpus, k: int) -> None:
    corpus.add("odd_sample_rate", corpus.noise(seconds=1.0), rate=(44056, 8001, 47999, 5000, 37800)[k % 5] + k)


def plant_duplicate(corpus: Corpus, k: int) -> None:
    first = corpus.root / corpus.clips[k].audio  # a good one
    corpus.add("duplicate", None, suffix=first.suffix).write_bytes(first.read_bytes())


def plant_near_duplicate(corpus: Corpus, k: int) -> None:
    rate, generator = 16000, corpus.generator
    tones = generator.uniform(200, 3000, (16, 3))
    # Notes of a quarter of a second: 4 s that no other clip has.
    frequency = np.repeat(tones, rate // 4, axis=0)
    samples = np.sin(2 * np.pi * np.cumsum(frequency, axis=0) / rate).sum(axis=1, keepdims=True) * 0.1
    samples += generator.normal(0, 1e-3, samples.shape)
    corpus.add(None, samples, rate=rate)
    other_rate = (rate, 11025, 44100, 22050)[k % 4]
    copy = soxr.resample(samples * (0.25 + 0.02 * k), rate, other_rate)
    corpus.add("near_duplicate", copy, rate=other_rate, suffix=(".wav", ".flac", ".aiff")[k % 3])


def plant_no_caption(corpus: Corpus, k: int) -> None:
    corpus.caption("no_caption", (), None)


def plant_duplicate_caption(corpus: Corpus, k: int) -> None:
    text = f"A dog barks {k} times"
    corpus.caption(
        "duplicate_caption", (Caption(text), Caption("Rain falls"), Caption((text, text.upper(), text + ".")[k % 3])), 3
    )


def plant_long_caption(corpus: Corpus, k: int) -> None:
    captions = (Caption("the rain " * (31 + k)), Caption("犬が吠える" * (21 + k), "ja"))
    corpus.caption("long_caption", (Caption("Rain falls"), captions[k % 2]), 2)


def plant_wrong_language(corpus: Corpus, k: int) -> None:
    lang, text = WRONG_LANGUAGE[k % len(WRONG_LANGUAGE)]
    corpus.caption("wrong_language", (Caption(text.format(n=k), lang), Caption("Rain falls")), 1)


def plant_mojibake(corpus: Corpus, k: int) -> None:
    text = ("Ein Café öffnet", "A man’s voice “loud”", "Собака лает", "a caf\ufffd")[k % 4] + f" {k}"
    broken = text if "\ufffd" in text else text.encode().decode("latin-1")
    corpus.caption("mojibake", (Caption(broken, "de" if k % 4 == 0 else "en"),), 1)


def plant_html_entity(corpus: Corpus, k: int) -> None:
    corpus.caption("html_entity", (Caption(f"Rain {('&amp;', '&#39;', '&quot;', '&#x27;', '&lt;')[k % 5]} wind {k}"),), 1)


PLANTERS: dict[str, Callable[[Corpus, int], None]] = {
    name.removeprefix("plant_"): planter for name, planter in list(globals().items()) if name.startswith("plant_")
}
GOOD = PLANTERS.pop("good")


def make(root: Path, *, num_good: int, num_each: int) -> Corpus:
    corpus = Corpus(root, np.random.default_rng(0))
    for k in range(num_good):
        GOOD(corpus, k)
    for planter in PLANTERS.values():
        for k in range(num_each):
            planter(corpus, k)
    assert {check: len(items) for check, items in corpus.planted.items()} == dict.fromkeys(PLANTERS, num_each)
    return corpus


def audited(corpus: Corpus, workers: int) -> tuple[dict[str, set[str]], dict[str, dict[str, object]]]:
    """What the audit says: check -> items, and its counts."""
    jobs = [Job(str(corpus.root / clip.audio)) for clip in corpus.clips]
    found = dict(zip((clip.audio for clip in corpus.clips), inspect_files(jobs, decode=True, workers=workers), strict=True))
    clips, rejections = [], []
    for clip in corpus.clips:
        inspection = found[clip.audio]
        if inspection.info is None:
            rejections.append(Rejection(clip.id, inspection.problem or "", check=inspection.check))
        else:
            info = inspection.info
            clips.append(
                replace(clip, duration_s=info.duration_s, sample_rate=info.sample_rate, num_channels=info.num_channels)
            )
    findings = audit.find(clips, found, near_duplicates=list(pairs(clips, found)))
    items: dict[str, set[str]] = {}
    for check, item in [(r.check, r.item) for r in rejections] + [(f.check, f.item) for f in findings]:
        items.setdefault(str(check), set()).add(item)
    return items, audit.count(findings, rejections)


def pairs(clips: list[Clip], found: dict[str, Inspection]) -> Iterator[tuple[str, str, str]]:
    for match in find_matches([found[clip.audio].landmarks or b"" for clip in clips]):
        yield clips[match.first].id, clips[match.second].id, ""


def test_every_check_has_something_planted() -> None:
    assert set(PLANTERS) == set(CHECKS) - WITHOUT_FILES


@pytest.mark.parametrize(("num_good", "num_each", "workers"), [(60, 3, 1), pytest.param(2000, 20, 2, marks=pytest.mark.slow)])
def test_all_that_was_planted_is_found_and_nothing_else(tmp_path: Path, num_good: int, num_each: int, workers: int) -> None:
    corpus = make(tmp_path, num_good=num_good, num_each=num_each)
    items, counts = audited(corpus, workers)
    assert items == corpus.planted
    assert {name: entry["num_items"] for name, entry in counts.items() if entry["num_items"]} == dict.fromkeys(
        (name for name in CHECKS if name in corpus.planted), num_each
    )
