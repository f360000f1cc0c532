"""What ``clapkit embed`` is asked to embed: a prepare run, a manifest, audio files, folders, or a file of captions."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clapkit.config import EmbedConfig
from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.manifest import Manifest, fingerprint
from clapkit.errors import ConfigError, ManifestError, RunDirError
from clapkit.files import file_fingerprint
from clapkit.steps import inputs
from clapkit.types import Caption, Clip

Modality = Literal["audio", "text", "both"]
STDIN = "-"


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """What is to be embedded.

    Attributes:
        manifest: clips with their audio or captions.
        has_audio: False for a text file of captions.
        source: the file or folder it came from, if there is one.
    """

    manifest: Manifest
    has_audio: bool
    source: Path | None


def resolve_input(config: EmbedConfig, *, model: inputs.ModelSource) -> EmbedInput:
    """Find what is to be embedded.

    Args:
        config: of the command.
        model: whose data are the default.

    Raises:
        ConfigError: if inputs of different kinds are mixed, or a split is asked of plain files.
        ManifestError: if a manifest cannot be used or there is no audio.
        RunDirError: if an input is neither a file, a folder nor a run.
    """
    given = config.inputs
    if config.lang is not None and not (len(given) == 1 and given[0].endswith(".txt")):
        raise ConfigError(
            f"--lang {config.lang}: belongs to a text file of captions; data say the language of theirs themselves"
        )
    if not given or _is_data(given[0], runs_root=config.runs_root):
        if len(given) > 1:
            raise ConfigError(f"inputs {', '.join(given)}: a prepare run or manifest stands alone; embed one by one")
        data = inputs.resolve_data(given[0] if given else None, model=model, runs_root=config.runs_root)
        manifest = data.manifest if config.split is None else data.manifest.split(config.split)
        return EmbedInput(manifest, has_audio=True, source=data.path)
    if config.split is not None:
        raise ConfigError(f"--split {config.split}: plain files have no splits; name a prepare run or drop --split")
    if given[0].endswith(".txt") and Path(given[0]).is_file():
        if len(given) > 1:
            raise ConfigError(f"inputs {', '.join(given)}: a text file of captions stands alone; embed them one by one")
        return EmbedInput(_caption_file(Path(given[0]), config.lang or "en"), has_audio=False, source=Path(given[0]))
    return EmbedInput(_audio_files(given, runs_root=config.runs_root), has_audio=True, source=None)


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


def _audio_files(addresses: Sequence[str], *, runs_root: Path) -> Manifest:
    """A manifest of plain files; a file that comes twice is taken once."""
    named = [path for address in addresses for path in _expand(address, runs_root=runs_root)]
    unique = {path.absolute(): path for path in reversed(named)}
    paths = sorted(unique.values(), key=named.index)
    if not paths:
        if addresses == (STDIN,):
            raise ManifestError("standard input: is empty, expected paths of audio files, one per line")
        endings = " ".join(sorted(AUDIO_SUFFIXES))
        raise ManifestError(f"{', '.join(addresses)}: no audio files; looked for names that end in {endings}")
    clips = tuple(Clip(id=path.as_posix(), audio=os.fspath(path.absolute())) for path in paths)
    return Manifest(clips, root=Path(), name=", ".join(addresses), fingerprint=_content_fingerprint(clips, paths))


def _content_fingerprint(clips: Iterable[Clip], paths: Iterable[Path]) -> str:
    """Hash of the names and sizes of files; their content is not read twice for it."""
    digest = hashlib.sha256(fingerprint(clips).encode())
    for path in paths:
        digest.update(f"{path.stat().st_size if path.is_file() else None}\n".encode())
    return digest.hexdigest()


def _expand(address: str, *, runs_root: Path) -> list[Path]:
    if address == STDIN:
        return [Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip()]
    path = Path(address)
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
    if path.is_file():
        return [path]
    if _is_data(address, runs_root=runs_root):
        raise RunDirError(f"input {address}: a prepare run cannot be mixed with files; embed them one by one")
    raise RunDirError(
        f"input {address}: no such file or folder, and no prepare run: looked for run.json in "
        f"{runs_root / 'prepare' / address}, {runs_root / address}; name a file, a folder or a run"
    )
