"""What ``clapkit embed`` is asked to embed: a prepare run, a manifest, audio files, folders, or a file of captions."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clapkit.config import EmbedConfig
from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.language_tags import normal_tag
from clapkit.data.manifest import Manifest, fingerprint
from clapkit.data.members import audio_sizes
from clapkit.errors import ConfigError, ManifestError, RunDirError
from clapkit.files import file_fingerprint
from clapkit.steps import inputs
from clapkit.types import Caption, Clip

Modality = Literal["audio", "text", "both"]
STDIN = "-"
_SHOWN_ADDRESSES = 8
_NO_TEXT = "the name is no UTF-8 text without zero bytes, expected a name that can be kept; rename it"


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """What is to be embedded.

    Attributes:
        manifest: clips with their audio or captions.
        has_audio: False for a text file of captions.
        source: the file or folder it came from, if there is one.
        rejections: ``item`` and ``reason`` of every file that cannot be a clip.
    """

    manifest: Manifest
    has_audio: bool
    source: Path | None
    rejections: tuple[dict[str, str], ...] = ()


def is_foreign(config: EmbedConfig) -> bool:
    """Whether the input are vectors that something else has made."""
    return bool(config.inputs) and config.inputs[0].lower().endswith(".npy")


def resolve_input(config: EmbedConfig, *, model: inputs.ModelSource, folder: Path | None = None) -> EmbedInput:
    """Find what is to be embedded.

    Args:
        config: of the command.
        model: whose data are the default.
        folder: that relative paths start from, by default the working directory. Ids do not depend on it: they are the
            paths as they were given.

    Raises:
        ConfigError: if inputs of different kinds are mixed, or a split is asked of plain files.
        ManifestError: if a manifest cannot be used or there is no audio.
        RunDirError: if an input is neither a file, a folder nor a run.
    """
    given = config.inputs
    folder = folder or Path()
    if config.lang is not None and not (len(given) == 1 and given[0].endswith(".txt")):
        raise ConfigError(
            f"--lang {config.lang}: belongs to a text file of captions; data say the language of theirs themselves"
        )
    if not given or _is_data(_place(given[0], folder), runs_root=config.runs_root):
        if len(given) > 1:
            raise ConfigError(f"inputs {', '.join(given)}: a prepare run or manifest stands alone; embed one by one")
        data = inputs.resolve_data(_place(given[0], folder) if given else None, model=model, runs_root=config.runs_root)
        manifest = data.manifest if config.split is None else data.manifest.split(config.split)
        return EmbedInput(manifest, has_audio=True, source=data.path)
    if config.split is not None:
        raise ConfigError(f"--split {config.split}: plain files have no splits; name a prepare run or drop --split")
    captions = folder / given[0]
    if given[0].endswith(".txt") and captions.is_file():
        if len(given) > 1:
            raise ConfigError(f"inputs {', '.join(given)}: a text file of captions stands alone; embed them one by one")
        return EmbedInput(_caption_file(captions, normal_tag(config.lang or "en")), has_audio=False, source=captions)
    return _audio_files(given, folder=folder, runs_root=config.runs_root)


def choose_modality(asked: Modality | None, given: EmbedInput) -> Modality:
    """What to embed: as asked, else whatever there is.

    Args:
        asked: ``--modality``.
        given: the input.

    Raises:
        ConfigError: if the input has no audio or no captions to embed.
    """
    has_captions = any(clip.captions for clip in given.manifest)
    if asked in ("audio", "both") and not given.has_audio:
        raise ConfigError(f"--modality {asked}: {given.manifest.name} holds captions only; use --modality text")
    if asked in ("text", "both") and not has_captions:
        raise ConfigError(f"--modality {asked}: {given.manifest.name} has no captions; use --modality audio")
    if asked is not None:
        return asked
    if not given.has_audio:
        return "text"
    return "both" if has_captions else "audio"


def _place(address: str, folder: Path) -> str:
    """Where an address lies; runs that are called by their names, and standard input, are nowhere."""
    path = folder / address
    return os.fspath(path) if address != STDIN and path.exists() else address


def _is_data(address: str, *, runs_root: Path) -> bool:
    """Whether an input is a prepare run or a manifest rather than plain files."""
    path = Path(address)
    if path.is_dir():
        return (path / inputs.MANIFEST).is_file()
    if path.exists() or address == STDIN:
        return path.suffix == ".jsonl"
    return any((place / "run.json").is_file() for place in (runs_root / "prepare" / address, runs_root / address))


def _caption_file(path: Path, language: str) -> Manifest:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); name a readable file, one caption per line") from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: cannot be read as UTF-8 (byte {error.start}), expected text with one caption per line; convert it"
        ) from error
    clips = tuple(
        Clip(id=f"{path.name}:{number}", audio=path.name, captions=(Caption(line.strip(), language),))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    if not clips:
        raise ManifestError(f"{path}: holds no caption; expected one per line")
    return Manifest(clips, root=path.parent, name=path.name, fingerprint=file_fingerprint(path))


def _audio_files(addresses: Sequence[str], *, folder: Path, runs_root: Path) -> EmbedInput:
    """Plain files; one that comes twice is taken once, by the name that it comes with first."""
    names: dict[Path, str] = {}
    rejected: dict[str, None] = {}
    for address in addresses:
        for name in _expand(address, folder=folder, runs_root=runs_root):
            if _is_text(os.fspath(name)):
                names.setdefault((folder / name).absolute(), name.as_posix())
            else:
                rejected[ascii(os.fspath(name))] = None
    rejections = tuple({"item": item, "reason": f"{item}: {_NO_TEXT}"} for item in rejected)
    if rejections and not names:
        raise ManifestError(f"none of {len(rejections)} files can be embedded; the first reason: {rejections[0]['reason']}")
    if not names:
        if tuple(addresses) == (STDIN,):
            raise ManifestError("standard input: is empty, expected paths of audio files, one per line")
        endings = " ".join(sorted(AUDIO_SUFFIXES))
        raise ManifestError(f"{', '.join(addresses)}: no audio files; looked for names that end in {endings}")
    clips = tuple(Clip(id=name, audio=os.fspath(path)) for path, name in names.items())
    manifest = Manifest(clips, root=Path(), name=_title(addresses), fingerprint=_content_fingerprint(clips))
    return EmbedInput(manifest, has_audio=True, source=None, rejections=rejections)


def _is_text(name: str) -> bool:
    """Whether a name can be an id; ids are kept as UTF-8."""
    return "\0" not in name and not any("\ud800" <= character <= "\udfff" for character in name)


def _title(addresses: Sequence[str]) -> str:
    shown = ", ".join(addresses[:_SHOWN_ADDRESSES])
    more = len(addresses) - _SHOWN_ADDRESSES
    return f"{shown} and {more} more" if more > 0 else shown


def _content_fingerprint(clips: Sequence[Clip]) -> str:
    """Hash of the names and sizes of files; their content is not read twice for it."""
    digest = hashlib.sha256(fingerprint(clips).encode())
    for size in audio_sizes(clip.audio for clip in clips):
        digest.update(f"{size}\n".encode())
    return digest.hexdigest()


def _expand(address: str, *, folder: Path, runs_root: Path) -> Iterator[Path]:
    """The files that an address means, as they are to be called."""
    if address == STDIN:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a name that is no text is refused like any other bad file
        yield from (Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip())
        return
    path = folder / address
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
        yield from (Path(address) / p.relative_to(path) for p in found)
    elif path.is_file():
        yield Path(address)
    elif _is_data(address, runs_root=runs_root):
        raise RunDirError(f"input {address}: a prepare run cannot be mixed with files; embed them one by one")
    else:
        raise RunDirError(
            f"input {address}: no such file or folder, and no prepare run: looked for run.json in "
            f"{runs_root / 'prepare' / address}, {runs_root / address}; name a file, a folder or a run"
        )
