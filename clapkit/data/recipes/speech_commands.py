"""Speech Commands: single words, said by thousands of people.

Origin: P. Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, arXiv 1804.03209.
Licence: CC BY 4.0.
Layout: ``{word}/{speaker}_nohash_{take}.wav``, ``validation_list.txt`` and ``testing_list.txt`` with lines such as
``right/a69b9b3e_nohash_0.wav``; what is in neither is trained on. ``_background_noise_`` holds long noises and is no word.
Counts: version 1: 64,721 clips of 30 words (51,088 train, 6,798 val, 6,835 test); version 2: 105,829 of 35 (84,843, 9,981,
11,005); about 1 s, 16 kHz mono. All clips of a speaker are in one split. The corpus holds no captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._class_names import VERSION, class_name
from clapkit.data.recipes._lists import read_lines
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

NEW_IN_V2 = ("backward", "follow", "forward", "learn", "visual")
WORDS = tuple(
    sorted(
        "bed bird cat dog down eight five four go happy house left marvin nine no off on one right seven sheila six stop three "
        "tree two up wow yes zero".split()
        + list(NEW_IN_V2)
    )
)
"""The words of both versions; the first has all but ``NEW_IN_V2``."""

OFFICIAL = {
    "v1": {"train": 51088, "val": 6798, "test": 6835},
    "v2": {"train": 84843, "val": 9981, "test": 11005},
}
"""Version -> split -> clips of the complete corpus."""

_LISTS = {"val": "validation_list.txt", "test": "testing_list.txt"}
_FILE = re.compile(r"([0-9a-f]+)_nohash_\d+")


def build() -> Recipe:
    """Speech Commands; it has no options."""
    return SpeechCommands()


class SpeechCommands:
    """Walks the folders of the words and reads the two lists."""

    needs_source = True
    makes_audio = False

    def __init__(self) -> None:
        self._words: list[str] = []
        self._list_sizes: dict[str, int] = {}

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, word by word, then what the lists name and is not there.

        Raises:
            ConfigError: if the audio is said to lie elsewhere.
            ManifestError: if the folder is no Speech Commands, lacks a list, or the lists contradict each other.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        if request.audio_dir is not None:
            raise ConfigError("--audio-dir: speech_commands finds its audio in the source folder; leave it out")
        split_of = _read_lists(request.source)
        self._list_sizes = {name: sum(split == name for split in split_of.values()) for name in _LISTS}
        folders = sorted(path for path in request.source.iterdir() if path.is_dir() and not path.name.startswith("."))
        self._words = [folder.name for folder in folders if folder.name in WORDS]
        found: set[str] = set()  # as the lists would name them
        for folder in folders:
            if folder.name.startswith("_"):
                yield from _no_words(folder)
            elif folder.name not in WORDS:
                yield Rejection(
                    folder.name, f"no word of Speech Commands, expected one of {', '.join(WORDS)}; remove the folder"
                )
            else:
                for item in _read_word(folder, split_of):
                    if isinstance(item, Clip):
                        found.add(f"{item.id.removeprefix('speech_commands/')}.wav")
                    yield item
        for path, split in split_of.items():
            if path not in found:
                reason = f"no such file below {request.source}, but {_LISTS[split]} names it; get the file"
                yield Rejection(f"speech_commands/{path.removesuffix('.wav')}", reason, "missing", split=split)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say which version this is and how many clips it should have."""
        version = self._version()
        expected = {name: OFFICIAL[version][name] for name in _LISTS}
        warnings = []
        if self._list_sizes != expected:
            found = " and ".join(f"{self._list_sizes.get(name, 0)} in {_LISTS[name]}" for name in _LISTS)
            official = " and ".join(str(expected[name]) for name in _LISTS)
            warnings.append(
                f"The lists name {found}, expected {official} in version {version}: they are not the official ones."
            )
        facts = {"class_names": VERSION, "version": version, "words": len(self._words)}
        return CorpusDescription(official=OFFICIAL[version], facts=facts, warnings=warnings)

    def _version(self) -> str:
        """By the lists, which are whole where audio is not; by the words where the lists are of neither version."""
        for version, sizes in OFFICIAL.items():
            if all(self._list_sizes.get(name) == sizes[name] for name in _LISTS):
                return version
        return "v2" if any(word in NEW_IN_V2 for word in self._words) else "v1"


def _read_lists(source: Path) -> dict[str, str]:
    """Path of a clip -> ``val`` or ``test``."""
    split_of: dict[str, str] = {}
    for split, name in _LISTS.items():
        path = source / name
        if not path.is_file():
            raise ManifestError(
                f"{source}: is no Speech Commands, no {name} found, expected it beside the folders of the words; "
                "name the folder that holds both lists"
            )
        for number, line in read_lines(path):
            word, slash, file = line.partition("/")
            if not slash or word not in WORDS or _FILE.fullmatch(file.removesuffix(".wav")) is None:
                raise ManifestError(
                    f"{path} line {number}: {line!r}, expected a clip such as right/a69b9b3e_nohash_0.wav; correct it"
                )
            if split_of.setdefault(line, split) != split:
                raise ManifestError(
                    f"{path} line {number}: {line} is also in {_LISTS[split_of[line]]}; expected one split; drop one"
                )
    return split_of


def _read_word(folder: Path, split_of: Mapping[str, str]) -> Iterator[Clip | Rejection]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in AUDIO_SUFFIXES or path.name.startswith("."):
            continue
        audio = f"{folder.name}/{path.name}"
        match = _FILE.fullmatch(path.stem)
        if match is None:
            reason = f"file name {path.stem!r}, expected speaker_nohash_take such as a69b9b3e_nohash_0; rename or remove it"
            yield Rejection(audio, reason)
            continue
        yield Clip(
            id=f"speech_commands/{folder.name}/{path.stem}",
            audio=audio,
            labels=(class_name(folder.name),),
            # Lists name the files as published; a copy may have converted them.
            split=split_of.get(f"{folder.name}/{path.stem}.wav", "train"),
            source=f"speech_commands/{match[1]}",
        )


def _no_words(folder: Path) -> Iterator[Rejection]:
    """Sounds in ``_background_noise_``, or ``_silence_`` and ``_unknown_`` of test archives."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."):
            reason = f"{folder.name} is no word; prepare the folder by itself if you want its sounds"
            yield Rejection(f"{folder.name}/{path.name}", reason, "excluded")
