"""ESC-10 in its old layout: 400 short recordings of ten kinds of sound, with five folds.

Origin: K. J. Piczak, ESC: Dataset for Environmental Sound Classification, ACM Multimedia 2015; recordings from Freesound.
Licence: CC BY 3.0, attributions in the README.txt of the corpus.
Layout: ten folders ``NNN - Class name`` with 40 Ogg Vorbis files each, ``{fold}-{clip id}-{take}.ogg``; takes of one
recording share its clip id, the id of the sound on Freesound, and lie in one fold.
Counts: 400 clips, about 5 s each, 44.1 kHz mono; 80 per fold; 304 recordings. The corpus holds no captions: each clip gets
the sentences below, the same for the whole class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._folds import check_val_share, split_by_fold
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Caption, Clip, Recipe, RecipeRequest, Rejection

# Class name of the folder -> label, and what people might say.
CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Dog bark": (
        "dog barking",
        ("A dog is barking.", "A dog barks.", "The sound of a dog barking.", "Somewhere a dog barks loudly.", "dog barking"),
    ),
    "Rain": (
        "rain",
        ("Rain is falling.", "It is raining.", "The sound of rain on the ground.", "Steady rain outside.", "rain"),
    ),
    "Sea waves": (
        "sea waves",
        (
            "Waves break on the shore.",
            "The sea is rolling in.",
            "The sound of sea waves on a beach.",
            "Surf rushes up and draws back.",
            "sea waves",
        ),
    ),
    "Baby cry": (
        "baby crying",
        ("A baby is crying.", "A baby cries.", "An infant wails.", "The sound of a baby crying.", "baby crying"),
    ),
    "Clock tick": (
        "clock ticking",
        ("A clock is ticking.", "A clock ticks.", "The sound of a clock ticking.", "Tick, tock.", "clock ticking"),
    ),
    "Person sneeze": (
        "person sneezing",
        (
            "A person is sneezing.",
            "Someone sneezes.",
            "The sound of a person sneezing.",
            "A person has to sneeze.",
            "person sneezing",
        ),
    ),
    "Helicopter": (
        "helicopter",
        (
            "A helicopter is flying.",
            "A helicopter flies overhead.",
            "The rotor of a helicopter chops the air.",
            "The sound of a helicopter.",
            "helicopter",
        ),
    ),
    "Chainsaw": (
        "chainsaw",
        (
            "A chainsaw is running.",
            "Someone cuts wood with a chainsaw.",
            "A chainsaw revs up.",
            "The sound of a chainsaw.",
            "chainsaw",
        ),
    ),
    "Rooster": (
        "rooster crowing",
        ("A rooster is crowing.", "A rooster crows.", "A cock crows.", "The sound of a rooster crowing.", "rooster crowing"),
    ),
    "Fire crackling": (
        "fire crackling",
        (
            "A fire is crackling.",
            "A fire crackles.",
            "Wood burns and pops.",
            "The sound of a fire crackling.",
            "fire crackling",
        ),
    ),
}

_FOLDER = re.compile(r"\d{3} - (.+)")
_FILE = re.compile(r"([1-9]\d*)-([^-]+)-([A-Z]+)")


def build(test_fold: int | None = None, val_share: float = 0.5) -> Recipe:
    """ESC-10, old layout.

    Args:
        test_fold: fold that becomes ``test``; None is the last one.
        val_share: share of the fold before it (before the first comes the last) that becomes ``val``, class by class, whole
            recordings; the rest of that fold is trained on.

    Raises:
        ConfigError: if the share is not between 0 and 1.
    """
    check_val_share(val_share)
    return Esc10(test_fold=test_fold, val_share=val_share)


class Esc10:
    """Reads the folders; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, test_fold: int | None, val_share: float) -> None:
        self.test_fold, self.val_share = test_fold, val_share

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, class by class.

        Raises:
            ConfigError: if the audio is said to lie elsewhere.
            ManifestError: if the folder is no ESC-10 or lacks the fold.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        if request.audio_dir is not None:
            raise ConfigError("--audio-dir: esc10 finds its audio in the source folder; leave it out")
        if not request.source.is_dir():
            raise ManifestError(f"{request.source}: is no folder, expected the one with '001 - Dog bark'; name a folder")
        items = list(_read(request.source))
        clips = split_by_fold(
            [item for item in items if isinstance(item, Clip)],
            test_fold=self.test_fold,
            val_share=self.val_share,
            seed=request.seed,
            corpus=request.source,
        )
        in_order = iter(clips)
        for item in items:
            yield next(in_order) if isinstance(item, Clip) else item


def _read(source: Path) -> Iterator[Clip | Rejection]:
    folders = sorted(path for path in source.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name))
    if not folders:
        raise ManifestError(
            f"{source}: is no ESC-10, no folder such as '001 - Dog bark' found, expected ten; name the folder that holds them"
        )
    for folder in folders:
        match = _FOLDER.fullmatch(folder.name)
        if match is None or match[1] not in CLASSES:
            yield Rejection(folder.name, f"no class of ESC-10, expected one of {', '.join(CLASSES)}; remove the folder")
            continue
        label, sentences = CLASSES[match[1]]
        captions = tuple(Caption(sentence) for sentence in sentences)
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."):
                yield _read_file(f"{folder.name}/{path.name}", path.stem, label, captions)


def _read_file(audio: str, stem: str, label: str, captions: tuple[Caption, ...]) -> Clip | Rejection:
    match = _FILE.fullmatch(stem)
    if match is None:
        return Rejection(audio, f"file name {stem!r}, expected fold-clip_id-take such as 1-100032-A; rename or remove it")
    return Clip(
        id=f"esc10/{stem}",
        audio=audio,
        captions=captions,
        labels=(label,),
        fold=int(match[1]),
        source=f"freesound/{match[2]}",
    )
