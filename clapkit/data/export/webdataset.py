"""Shards of audio and JSON, as LAION, open_clip and ``webdataset`` read them.

``<split>/000000.tar`` holds ``<key>.json`` and ``<key>.flac`` (or wav, mp3, ogg) for every clip, and
``<split>/sizes.json`` says how many. The JSON gives the captions under ``text``, the labels under ``tag``,
the manifest line under ``clapkit``, and its place in the manifest under ``clapkit_row``.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

from clapkit.data.export._samples import Sample, Tally, by_split, new_folder, open_sample
from clapkit.data.manifest import Manifest
from clapkit.data.safe_paths import safe_part, short_hash
from clapkit.errors import AudioError, ConfigError
from clapkit.types import Clip, Tracker

_MAX_KEY_LENGTH = 80


def write_shards(manifest: Manifest, folder: Path, *, samples_per_shard: int = 1000, tracker: Tracker) -> dict[str, Any]:
    """Write a manifest and its audio as shards.

    Equal input gives equal bytes: members have no time and no owner. A shard appears under its name when it is complete.

    Args:
        manifest: of the clips.
        folder: to write to, new or empty.
        samples_per_shard: how many clips go into one tar.
        tracker: moved on by one for each clip.

    Returns:
        ``num_clips``, ``num_files``, ``splits`` (clips and shards of each), how many files were ``copied``, ``cut`` and
        ``encoded`` (and from what to what), ``num_renamed`` audio paths, ``num_without_captions``, ``failed`` clips with their
        reasons, and the ``paths`` of the shards relative to the folder.

    Raises:
        ConfigError: if the folder is not empty or the size is no positive number.
    """
    if samples_per_shard < 1:
        raise ConfigError(f"--shard-size {samples_per_shard}: expected at least 1")
    new_folder(folder)
    tally = Tally()
    for split, clips in by_split(manifest).items():
        split_folder = folder / safe_part(split)
        split_folder.mkdir(exist_ok=True)
        keys: set[str] = set()
        sizes: dict[str, int] = {}
        waiting = iter(clips)
        done = False
        while not done:
            name = f"{len(sizes):06d}.tar"
            temporary = split_folder / f".{name}.tmp"
            num_samples = 0
            try:
                with tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as archive:
                    while num_samples < samples_per_shard:
                        row, clip = next(waiting, (0, None))
                        if clip is None:
                            done = True
                            break
                        num_samples += _add(archive, manifest, clip, row, keys, split_folder, tally)
                        tracker.advance()
                if num_samples:
                    temporary.replace(split_folder / name)
                    sizes[name] = num_samples
                    tally.paths.append(f"{split_folder.name}/{name}")
            finally:
                temporary.unlink(missing_ok=True)
        _write_sizes(split_folder / "sizes.json", sizes)
        tally.splits[split] = {"num_clips": sum(sizes.values()), "num_files": len(sizes)}
    return {"format": "webdataset"} | tally.summary()


def _add(
    archive: tarfile.TarFile, manifest: Manifest, clip: Clip, row: int, keys: set[str], workspace: Path, tally: Tally
) -> bool:
    """Add a clip to a shard; False, and counted, if it cannot be."""
    try:
        with open_sample(manifest, clip, workspace) as sample, sample.open() as stream:
            key = _key(clip.id, keys)
            content = _to_json(sample, row)
            # The JSON comes first, so that whoever unpacks knows the name of the sound before its bytes.
            archive.addfile(_header(f"{key}.json", len(content)), io.BytesIO(content))
            archive.addfile(_header(f"{key}.{sample.suffix}", sample.num_bytes), stream)
            tally.add(clip, sample)
    except AudioError as error:
        tally.fail(clip, str(error))
        return False
    return True


def _key(id: str, keys: set[str]) -> str:
    """A name for a clip: its id without dots and slashes, which readers of shards take for suffixes and folders."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", id).strip("_-")[:_MAX_KEY_LENGTH] or "clip"
    if name in keys:
        name = f"{name}-{short_hash(id)}"
    keys.add(name)
    return name


def _to_json(sample: Sample, row: int) -> bytes:
    record = {"text": [caption.text for caption in sample.clip.captions], "tag": list(sample.clip.labels)}
    return json.dumps(record | {"clapkit": sample.record, "clapkit_row": row}, ensure_ascii=False).encode()


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)  # time 0, owner 0, no names
    header.size, header.mode = size, 0o644
    return header


def _write_sizes(path: Path, sizes: dict[str, int]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
