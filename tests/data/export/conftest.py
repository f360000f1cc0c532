"""A small manifest with sound in every form that an export treats differently."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit import registry
from clapkit.data.manifest import Manifest
from clapkit.types import Caption, Clip, RecipeRequest, Rejection, SilentReporter

RATE = 8000


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Whole files in four formats, a span of each kind, files that are encoded again, and one outside of the root."""
    root = tmp_path / "corpus"
    (root / "a").mkdir(parents=True)
    generator = np.random.default_rng(0)
    files = [
        ("a/0.wav", "WAV", "PCM_16", 1),
        ("a/1.flac", "FLAC", "PCM_24", 2),
        ("a/2.ogg", "OGG", "VORBIS", 1),
        ("a/3.opus", "OGG", "OPUS", 1),
        ("a/4.aiff", "AIFF", "PCM_24", 2),
        ("a/5.au", "AU", "FLOAT", 1),
        ("../outside.wav", "WAV", "FLOAT", 1),
    ]
    clips = []
    for number, (name, kind, subtype, channels) in enumerate(files):
        samples = generator.uniform(-0.5, 0.5, (RATE, channels))
        soundfile.write(root / name, samples, RATE, format=kind, subtype=subtype)
        clips.append(
            Clip(
                id=f"corpus/{number}.x",
                audio=str(tmp_path / "outside.wav") if number == 6 else name,
                duration_s=1.0,
                sample_rate=RATE,
                num_channels=channels,
                captions=(Caption("Ein Hund bellt.", "de"), Caption(f"A dog {number}.")),
                labels=("dog", "speech, male"),
                split=("train", "val")[number % 2],
                fold=number + 1,
                source=f"freesound/{number}",
                extra={"tags": [1, None, {"ü": "\u2028"}]},
            )
        )
    for number in range(3):
        span = {"start_s": 0.25, "end_s": 0.5, "duration_s": 0.25}
        clips.append(Clip(id=f"span {number}", audio=files[number][0], sample_rate=RATE, split="train", **span))
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=root, name="corpus")


@pytest.fixture
def read_back(tmp_path: Path) -> Callable[[str, Path], tuple[dict[str, Clip], Path]]:
    """Reads an export with the recipe of that name; gives the clips by id and the root of their audio."""

    def read(recipe: str, source: Path) -> tuple[dict[str, Clip], Path]:
        output = tmp_path / f"read-{recipe}"
        request = RecipeRequest(source=source, audio_dir=None, output_dir=output, seed=0, workers=1, reporter=SilentReporter())
        built = registry.build("recipe", recipe)
        items = list(built.clips(request))
        assert not [item for item in items if isinstance(item, Rejection)]
        return {item.id: item for item in items if isinstance(item, Clip)}, output / built.root_name

    return read
