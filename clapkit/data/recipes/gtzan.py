"""GTZAN: 1,000 excerpts of music in ten genres.

Origin: G. Tzanetakis and P. Cook, Musical Genre Classification of Audio Signals, IEEE TSAP 2002.
Licence: none was stated; the excerpts are of commercial recordings, use them for research only.
Layout: ``genres/{genre}/{genre}.000NN.wav`` (or ``.au``; some copies call the folder ``genres_original``), 100 for each genre.
``jazz.00054`` is corrupt in the common copy and is rejected when it is decoded. Lists of a split that avoids repeated
artists and copies may lie beside it: ``train_filtered.txt``, ``valid_filtered.txt`` and ``test_filtered.txt`` with lines such
as ``blues/blues.00029.wav``.
Counts: 1,000 clips of 30 s, 22.05 kHz mono; 443, 197 and 290 of them in the filtered lists. Repeated excerpts and wrong
genres are known. The corpus holds no captions and has no official split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._class_names import VERSION, Names, spell
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import read_lines
from clapkit.data.splits import Shares, read_shares
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")

WORDS = {"hiphop": "hip hop"}
"""Genres that do not read well as they stand -> words."""

FILTERED = {"train": 443, "val": 197, "test": 290}
"""Split -> clips in the filtered lists."""

_NUM_PER_GENRE = 100
_LISTS = {"train": "train_filtered.txt", "val": "valid_filtered.txt", "test": "test_filtered.txt"}
_FOLDERS = ("genres", "genres_original", "Data/genres_original", ".")
_STEM = re.compile(r"([a-z]+)\.(\d{5})")

_Splits = Literal["auto", "filtered", "none"]


def build(
    splits: _Splits = "auto", names: Names = "words", val_share: float | None = None, test_share: float | None = None
) -> Recipe:
    """GTZAN.

    Args:
        splits: ``filtered``: those of the three lists, and clips in none of them are left out; ``none``: drawn; ``auto``:
            filtered where the lists are there.
        names: how genres are spelled: ``words`` (``hip hop``), ``blanks`` or ``raw`` (both ``hiphop``).
        val_share: share of the clips for ``val``, where splits are drawn. Default: 0.1.
        test_share: share of the clips for ``test``, where splits are drawn. Default: 0.1.

    Raises:
        ConfigError: if the shares leave nothing to train.
    """
    return Gtzan(splits=splits, names=names, shares=read_shares(val_share, test_share))


class Gtzan:
    """Looks for the 1,000 files; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, splits: _Splits, names: Names, shares: Shares) -> None:
        self.splits, self.names, self.shares = splits, names, shares
        self._is_filtered = False

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, genre by genre, by their number.

        Raises:
            ConfigError: if the audio is said to lie elsewhere.
            ManifestError: if the folder is no GTZAN, or lists are wanted and not there, or contradict each other.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        if request.audio_dir is not None:
            raise ConfigError("--audio-dir: gtzan finds its audio in the source folder; leave it out")
        folder = _find_genres(request.source)
        split_of = self._read_lists(request.source, folder)
        self._is_filtered = split_of is not None
        files = AudioFiles.scan(request.source)
        for genre in GENRES:
            for number in range(_NUM_PER_GENRE):
                yield self._look_for(f"{genre}.{number:05d}", genre, files, folder, split_of)
            yield from _strangers(folder / genre, request.source)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how many clips there should be, and whose split this is."""
        facts = {
            "class_names": VERSION,
            "names": self.names,
            "splits": "filtered" if self._is_filtered else "drawn",
            "official_clips": sum(FILTERED.values()) if self._is_filtered else len(GENRES) * _NUM_PER_GENRE,
        }
        return CorpusDescription(official=FILTERED if self._is_filtered else {}, facts=facts)

    def _read_lists(self, source: Path, folder: Path) -> dict[str, str] | None:
        """Stem -> split, from the filtered lists; None if splits are to be drawn."""
        if self.splits == "none":
            return None
        places = list(dict.fromkeys((source, folder, folder.parent)))
        found = {split: path for split, name in _LISTS.items() for path in _existing(places, name)}
        if len(found) < len(_LISTS):
            if found or self.splits == "filtered":
                missing = next(name for split, name in _LISTS.items() if split not in found)
                raise ManifestError(
                    f"{source}: no {missing} found, expected {', '.join(_LISTS.values())} beside the genres; get all three, or "
                    "pass -O splits=none"
                )
            return None
        split_of: dict[str, str] = {}
        for split, path in found.items():
            for stem in _read_list(path):
                if split_of.setdefault(stem, split) != split:
                    raise ManifestError(
                        f"{path}: {stem} is also in {_LISTS[split_of[stem]]}, expected it in one list; correct the lists"
                    )
        return split_of

    def _look_for(
        self, stem: str, genre: str, files: AudioFiles, folder: Path, split_of: Mapping[str, str] | None
    ) -> Clip | Rejection:
        id = f"gtzan/{stem}"
        split = None if split_of is None else split_of.get(stem)
        if split_of is not None and split is None:
            return Rejection(id, "in none of the filtered lists; pass -O splits=none to have it", "excluded")
        names = [f"{genre}/{stem}.wav"]
        audio = files.find(names, folders=[folder.name])
        if audio is None:
            return files.missing(id, names, split=split)
        return Clip(id, audio, labels=(spell(genre, self.names, WORDS),), split=split, source=id, extra={"genre": genre})


def _find_genres(source: Path) -> Path:
    """The folder that holds the folders of the genres."""
    for name in _FOLDERS:
        if any((source / name / genre).is_dir() for genre in GENRES):
            return source / name
    raise ManifestError(
        f"{source}: is no GTZAN, no genres/blues or another genre found, expected genres/{{genre}}/{{genre}}.000NN.wav; "
        "name the folder that holds genres"
    )


def _existing(places: Sequence[Path], name: str) -> list[Path]:
    """The first of some folders that holds a file, as a list of one path or none."""
    return [place / name for place in places if (place / name).is_file()][:1]


def _read_list(path: Path) -> Iterator[str]:
    """Stems in a list such as ``blues/blues.00029.wav``."""
    for number, line in read_lines(path):
        name = PurePosixPath(line).name
        stem = PurePosixPath(name).stem if PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES else name
        if not _is_of_gtzan(stem):
            raise ManifestError(f"{path} line {number}: {line!r}, expected a clip such as blues/blues.00029.wav; correct it")
        yield stem


def _is_of_gtzan(stem: str) -> bool:
    match = _STEM.fullmatch(stem)
    return match is not None and match[1] in GENRES and int(match[2]) < _NUM_PER_GENRE


def _strangers(folder: Path, source: Path) -> Iterator[Rejection]:
    """Sounds in the folder of a genre that are none of its clips."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."):
            if not (_is_of_gtzan(path.stem) and path.stem.startswith(f"{folder.name}.")):
                place = path.relative_to(source).as_posix()
                yield Rejection(place, f"no clip of GTZAN, expected {folder.name}.00000 to {folder.name}.00099; remove it")
