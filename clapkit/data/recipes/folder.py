"""A folder of sounds: class folders, or loose files whose names say what they are.

Origin and licence: the user's. Layout: ``dog bark/01.wav`` (the folder is label and caption), ``a_dog_barks.wav`` (the file
name is the caption), either of them below ``train/``, ``val/`` and ``test/`` if those are all that there is at the top.
Counts: whatever is there. Folders of any depth are read; the innermost one names the label.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.splits import Shares, read_shares
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Caption, Clip, Recipe, RecipeRequest, Rejection

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Top-level folder name, in lower case -> split."""

# Sound that libsndfile cannot decode: refused aloud, where a text file is merely passed over.
_FOREIGN_SUFFIXES = frozenset(".m4a .aac .wma .wv .ape .ac3 .amr .mka .weba .spx .tta .raw".split())

_Captions = Literal["auto", "folder", "filename", "none"]


def build(
    captions: _Captions = "auto",
    template: str = "{}",
    language: str = "en",
    val_share: float | None = None,
    test_share: float | None = None,
) -> Recipe:
    """A folder of sounds.

    Args:
        captions: what becomes the caption: the name of the ``folder``, the ``filename``, ``none``, or ``auto``: the folder
            where there is one, the file name for loose files.
        template: sentence around the name, with ``{}`` where it goes.
        language: of the captions.
        val_share: share of the clips for ``val``, where folders do not say. Default: 0.1.
        test_share: share of the clips for ``test``, where folders do not say. Default: 0.1.

    Raises:
        ConfigError: if the template has no place for the name, or the shares leave nothing to train.
    """
    if "{}" not in template:
        raise ConfigError(f"option template={template}: no place for the name, expected {{}} in it")
    return Folder(captions=captions, template=template, language=language, shares=read_shares(val_share, test_share))


class Folder:
    """Walks the folder; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, captions: _Captions, template: str, language: str, shares: Shares) -> None:
        self.captions, self.template, self.language, self.shares = captions, template, language, shares

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield a clip for every sound, sorted by path.

        Raises:
            ConfigError: if the audio is said to lie elsewhere.
            ManifestError: if the folder, or one in it, cannot be read, or holds no sound.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        if request.audio_dir is not None:
            raise ConfigError("--audio-dir: folder finds its audio in the source folder; leave it out")
        if not request.source.is_dir():
            raise ManifestError(f"{request.source}: is no folder, expected one with sounds; name a folder")
        files = list(_walk(request.source))
        parts = list(_split_suffixes(files))
        sounds = [(path, stem) for path, stem, suffix in parts if suffix in AUDIO_SUFFIXES]
        has_splits = _names_splits([path for path, _ in sounds])
        stems = Counter(stem for _, stem in sounds)
        yield from (item for item in files if isinstance(item, Rejection))
        num_ignored = 0
        for path, stem, suffix in parts:
            if suffix in _FOREIGN_SUFFIXES:
                yield Rejection(path, f"{suffix} cannot be decoded, expected wav, flac, ogg or mp3; convert it")
            elif suffix not in AUDIO_SUFFIXES:
                num_ignored += 1
            elif not _is_utf8(path):
                yield Rejection(ascii(path), "the path is not valid UTF-8, expected readable names; rename it")
            else:
                yield self._clip(path, stem, has_splits=has_splits, is_unique=stems[stem] == 1)
        if num_ignored:
            request.reporter.say(f"{request.source}: files ignored because they are no audio: {num_ignored}")

    def _clip(self, path: str, stem: str, *, has_splits: bool, is_unique: bool) -> Clip:
        *folders, name = stem.split("/")
        split = SPLIT_FOLDERS[folders.pop(0).lower()] if has_splits else None
        label = _phrase(folders[-1]) or folders[-1] if folders else ""
        text = self._text(label, name)
        return Clip(
            id=stem if is_unique else path,
            audio=path,
            captions=(Caption(self.template.replace("{}", text), self.language),) if text else (),
            labels=(label,) if label else (),
            split=split,
        )

    def _text(self, label: str, stem: str) -> str:
        """What goes into the template; empty if the clip gets no caption."""
        if self.captions == "folder" or (self.captions == "auto" and label):
            return label
        return "" if self.captions == "none" else clean_name(stem)


def clean_name(name: str) -> str:
    """A file or folder name as a phrase: underscores and hyphens become blanks, numbering at either end goes.

    Empty if nothing but a number is left. Numbers that belong to the name (``808 kick``, ``Boeing 747``) stay, because only
    a separator, brackets or a leading zero marks a number as numbering.
    """
    name = re.sub(r"^\d+\s*[-_.)]+\s*", "", name.strip())
    name = re.sub(r"\s*(?:[-_#.]+\s*\d+|\(\d+\)|\[\d+\]|\s0\d+)$", "", name)
    name = re.sub(r"[\s_-]+", " ", name).strip()
    return "" if name.isdigit() else name


# A folder names thousands of files.
_phrase = functools.lru_cache(maxsize=1024)(clean_name)


def _split_suffixes(files: Iterable[str | Rejection]) -> Iterator[tuple[str, str, str]]:
    """Path, path without suffix, and suffix in lower case, of every file."""
    for path in files:
        if isinstance(path, str):
            stem, suffix = os.path.splitext(path)
            yield path, stem, suffix.lower()


def _walk(folder: Path) -> Iterator[str | Rejection]:
    """Paths of all visible files below a folder, relative to it, sorted."""
    root = os.path.realpath(folder)
    waiting = _entries(folder, "")
    while waiting:  # no recursion: folders may lie a thousand deep
        path, entry = waiting.pop()
        # An entry that links to itself cannot be asked whether it is a folder.
        is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
        if entry.is_symlink() and (is_folder or not Path(os.path.realpath(entry.path)).is_relative_to(root)):
            # A linked folder could be the corpus itself, and a file outside would not travel with it.
            yield Rejection(path, "a link to a folder or out of the corpus is not followed; copy what it points to")
        elif is_folder:
            waiting += _entries(entry.path, f"{path}/")
        else:
            yield path


def _entries(folder: str | Path, prefix: str) -> list[tuple[str, os.DirEntry[str]]]:
    """What is visible in a folder, with its path, the last one first."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be read ({error.strerror}); make it readable or name another folder") from error
    return [(prefix + entry.name, entry) for entry in entries if not entry.name.startswith(".")]


def _names_splits(sounds: list[str]) -> bool:
    """Whether every sound lies below a folder called like a split.

    Only all of them count: among ``car`` and ``dog``, ``train`` is a vehicle.
    """
    return bool(sounds) and all("/" in path and path.partition("/")[0].lower() in SPLIT_FOLDERS for path in sounds)


def _is_utf8(path: str) -> bool:
    return path.isascii() or not any("\ud800" <= character <= "\udfff" for character in path)
