"""``files.parquet``: what ``prepare`` found in every audio file, so that later steps and other corpora can compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapkit.errors import ManifestError

if TYPE_CHECKING:
    from clapkit.data.inspection import Inspection  # which decodes audio: a tenth of a second that reading a table can spare

_FORMAT_VERSION = b"1"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One audio file.

    Attributes:
        audio: as the manifest names it.
        num_bytes: size of the file.
        content: hash of its bytes, of the original where a decoded copy is kept; None if it was not read.
        landmarks: what it sounds like (``clapkit.data.acoustic``); None if it was not listened to.
    """

    audio: str
    num_bytes: int
    content: str | None
    landmarks: bytes | None


def write(path: Path, found: Iterable[tuple[str, Inspection]], *, sizes: Mapping[str, int]) -> None:
    """Write the table.

    Args:
        path: of the file.
        found: audio as the manifest names it, and what was found in the file.
        sizes: of the files that the manifest names, where these are copies; bytes.
    """
    import pyarrow  # here, because it takes a third of a second
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {name: [] for name in _schema().names}
    for audio, inspection in found:
        info, statistics = inspection.info, inspection.statistics
        assert info is not None, f"{audio} was rejected"
        columns["audio"].append(audio)
        columns["num_bytes"].append(sizes.get(audio, inspection.num_bytes))
        columns["content"].append(inspection.content)
        columns["format"].append(info.format)
        columns["subtype"].append(info.subtype)
        columns["sample_rate"].append(info.sample_rate)
        columns["num_channels"].append(info.num_channels)
        columns["num_frames"].append(info.num_frames)
        columns["peak"].append(None if statistics is None else statistics.peak)
        columns["rms"].append(None if statistics is None else statistics.rms)
        columns["dc_offset"].append(None if statistics is None else statistics.dc_offset)
        columns["clipped_share"].append(None if statistics is None else statistics.clipped_share)
        columns["landmarks"].append(inspection.landmarks)
    table = pyarrow.table(columns, schema=_schema().with_metadata({b"clapkit_files": _FORMAT_VERSION}))
    parquet.write_table(table, path, compression="zstd")


def read(path: Path) -> dict[str, FileRecord]:
    """Read the table of a prepare run.

    Args:
        path: of the file.

    Returns:
        Audio as the manifest names it -> what is known of the file.

    Raises:
        ManifestError: if the file is missing or damaged.
    """
    columns = _columns(path, ("audio", "num_bytes", "content", "landmarks"))
    return {audio: FileRecord(audio, *values) for audio, *values in zip(*columns, strict=True)}


def read_sizes(path: Path) -> dict[str, int]:
    """Only the sizes of the files, by audio.

    Raises:
        ManifestError: if the file is missing or damaged.
    """
    return dict(zip(*_columns(path, ("audio", "num_bytes")), strict=True))


def _columns(path: Path, names: Sequence[str]) -> list[list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            missing = set(names) - set(file.schema_arrow.names)
            if missing:
                raise ManifestError(f"{path}: no column {min(missing)!r}, expected what prepare writes; run prepare again")
            table = file.read(columns=list(names))
    except (OSError, pyarrow.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{path}: cannot be read ({reason}); run prepare again") from error
    return [table.column(name).to_pylist() for name in names]


def _schema() -> Any:
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    return pyarrow.schema(
        [
            ("audio", text),
            ("num_bytes", pyarrow.int64()),
            ("content", text),
            ("format", text),
            ("subtype", text),
            ("sample_rate", pyarrow.int64()),
            ("num_channels", pyarrow.int32()),
            ("num_frames", pyarrow.int64()),
            ("peak", number),
            ("rms", number),
            ("dc_offset", number),
            ("clipped_share", number),
            ("landmarks", pyarrow.binary()),
        ]
    )
