"""A folder that ``datasets.load_dataset`` reads and the Hugging Face hub shows: Parquet files with an audio column.

``data/<split>-00000-of-00002.parquet`` with the stored bytes of every sound, the columns of the manifest and its line as JSON
under ``clapkit``, and a ``README.md`` that names the splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from clapkit.data.export._samples import Sample, Tally, by_split, new_folder, open_sample
from clapkit.data.manifest import Manifest, to_line
from clapkit.data.safe_paths import short_hash
from clapkit.errors import AudioError, ConfigError
from clapkit.types import Clip, Tracker

# Rows are written when either is reached: readers take a group at once.
_GROUP_ROWS = 100
_GROUP_BYTES = 32 << 20
_MAX_AUDIO_BYTES = (1 << 31) - 1

_TEXT, _TEXTS = pyarrow.string(), pyarrow.list_(pyarrow.string())
_SCHEMA = pyarrow.schema(
    {
        "id": _TEXT,
        "audio": pyarrow.struct({"bytes": pyarrow.binary(), "path": _TEXT}),
        "captions": _TEXTS,
        "languages": _TEXTS,
        "labels": _TEXTS,
        "split": _TEXT,
        "fold": pyarrow.int64(),
        "source": _TEXT,
        "duration_s": pyarrow.float64(),
        "sample_rate": pyarrow.int64(),
        "num_channels": pyarrow.int64(),
        "clapkit": _TEXT,
        "clapkit_row": pyarrow.int64(),
    }
)


def write_hub(manifest: Manifest, folder: Path, *, rows_per_file: int = 1000, tracker: Tracker) -> dict[str, Any]:
    """Write a manifest and its audio as a Hugging Face data set.

    Args:
        manifest: of the clips.
        folder: to write to, new or empty.
        rows_per_file: how many clips go into one Parquet file.
        tracker: moved on by one for each clip.

    Returns:
        As ``clapkit.data.export.webdataset.write_shards``; ``splits`` has the names of the manifest.

    Raises:
        ConfigError: if the folder is not empty or the size is no positive number.
    """
    if rows_per_file < 1:
        raise ConfigError(f"--shard-size {rows_per_file}: expected at least 1")
    data = new_folder(folder) / "data"
    data.mkdir()
    tally = Tally()
    splits = by_split(manifest)
    names = _split_names(list(splits))
    for split, clips in splits.items():
        num_files = -(-len(clips) // rows_per_file)
        num_clips = 0
        for number in range(num_files):
            path = data / f"{names[split]}-{number:05d}-of-{num_files:05d}.parquet"
            part = clips[number * rows_per_file : (number + 1) * rows_per_file]
            num_clips += _write_file(manifest, part, path, tally, tracker)
            tally.paths.append(f"data/{path.name}")
        tally.splits[split] = {"num_clips": num_clips, "num_files": num_files}
    _write_text(folder / "README.md", _readme(manifest.name, {names[split]: tally.splits[split] for split in splits}))
    return {"format": "hf"} | tally.summary()


def _write_file(manifest: Manifest, clips: Sequence[tuple[int, Clip]], path: Path, tally: Tally, tracker: Tracker) -> int:
    """Write one file; gives the number of its rows."""
    temporary = path.with_name(f".{path.name}.tmp")
    schema = _SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": _features()}})})
    num_rows = num_bytes = 0
    rows: list[dict[str, Any]] = []
    try:
        # Audio does not repeat itself: looking for that would cost memory and gain nothing.
        with parquet.ParquetWriter(temporary, schema, use_dictionary=False) as writer:
            for place, clip in clips:
                try:
                    row = _row(manifest, clip, path.parent, tally) | {"clapkit_row": place}
                    rows.append(row)
                    num_bytes += len(row["audio"]["bytes"])
                except AudioError as error:
                    tally.fail(clip, str(error))
                if len(rows) >= _GROUP_ROWS or num_bytes >= _GROUP_BYTES:
                    num_rows += _flush(writer, schema, rows)
                    num_bytes = 0
                tracker.advance()
            num_rows += _flush(writer, schema, rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return num_rows


def _row(manifest: Manifest, clip: Clip, workspace: Path, tally: Tally) -> dict[str, Any]:
    with open_sample(manifest, clip, workspace) as sample:
        size = sample.num_bytes
        if size > _MAX_AUDIO_BYTES:
            raise AudioError(f"{sample.path}: {size} bytes, expected less than 2 GiB in a row; cut it into spans")
        tally.add(clip, sample)
        with sample.open() as stream:
            return _cells(sample, stream.read())


def _cells(sample: Sample, content: bytes) -> dict[str, Any]:
    clip = sample.clip
    # Readers look at the suffix: .opus and .wave are known to fewer of them than .ogg and .wav.
    name = f"{clip.audio.rpartition('/')[2].rpartition('.')[0]}.{sample.suffix}"
    return {
        "id": clip.id,
        "audio": {"bytes": content, "path": name},
        "captions": [caption.text for caption in clip.captions],
        "languages": [caption.lang for caption in clip.captions],
        "labels": list(clip.labels),
        "split": clip.split,
        "fold": clip.fold,
        "source": clip.source,
        "duration_s": clip.duration_s,
        "sample_rate": clip.sample_rate,
        "num_channels": clip.num_channels,
        "clapkit": to_line(clip),
    }


def _flush(writer: parquet.ParquetWriter, schema: pyarrow.Schema, rows: list[dict[str, Any]]) -> int:
    """Write rows as one group and forget them."""
    num_rows = len(rows)
    if rows:
        writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema), row_group_size=num_rows)
        rows.clear()
    return num_rows


def _features() -> dict[str, Any]:
    """The columns in the words of ``datasets``."""
    features: dict[str, Any] = {}
    for column in _SCHEMA:
        if column.name == "audio":
            features[column.name] = {"_type": "Audio"}
        elif column.type == _TEXTS:
            # Read by all versions of datasets; the newer ones call it List.
            features[column.name] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"}
        else:
            dtype = {"double": "float64"}.get(str(column.type), str(column.type))
            features[column.name] = {"dtype": dtype, "_type": "Value"}
    return features


def _split_names(splits: Sequence[str]) -> dict[str, str]:
    """Split -> name that the hub allows: letters, digits and underscores."""
    names: dict[str, str] = {}
    for split in splits:
        name = re.sub(r"\W+", "_", split, flags=re.ASCII).strip("_") or "split"
        names[split] = name if name not in names.values() else f"{name}_{short_hash(split)}"
    return names


def _readme(name: str, splits: Mapping[str, Mapping[str, int]]) -> str:
    lines = ["---", f"pretty_name: {json.dumps(name)}", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    lines += ["---", "", f"# {name}", "", "Written by `clapkit prepare --export hf`.", "", "| Split | Clips |", "|---|---|"]
    lines += [f"| {split} | {counts['num_clips']} |" for split, counts in splits.items()]
    lines += ["", "The column `clapkit` holds the manifest line of each clip; `clapkit prepare hf` reads it back.", ""]
    return "\n".join(lines)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
