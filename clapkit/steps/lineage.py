"""What a model was trained and selected on, clip by clip, so that an evaluation can tell whether it saw the test clips.

``lineage.parquet`` lies beside the weights and travels with them. It names no clip: every recording, and the bytes of every
whole file where ``prepare`` read them, is one 64-bit hash, so that a million clips take eight megabytes. The lineage of
the weights that a run starts from is part of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clapkit.data import file_table
from clapkit.data.file_table import FileRecord
from clapkit.data.manifest import Manifest
from clapkit.data.recordings import recording
from clapkit.errors import CheckpointError, ClapkitError
from clapkit.files import atomic_path
from clapkit.run_dir import RunDir
from clapkit.steps.inputs import FILES, DataSource
from clapkit.types import Clip

FILE = "lineage.parquet"
Role = Literal["trained", "selected"]
Keys = npt.NDArray[np.uint64]
_FORMAT = b"1"
_SCHEMA = pa.schema([("role", pa.dictionary(pa.int8(), pa.string())), ("key", pa.uint64())])


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where weights come from.

    Attributes:
        keys: role -> sorted hashes of the recordings and files.
        data: role -> what the clips are called, ``name (split)``, in the order of training.
        unknown: weights that it goes back to whose training data are not known.
    """

    keys: Mapping[Role, Keys]
    data: Mapping[Role, tuple[str, ...]]
    unknown: tuple[str, ...] = ()

    def joined(self, earlier: Lineage) -> Lineage:
        """This lineage with what came before it."""
        roles: tuple[Role, ...] = ("trained", "selected")
        return Lineage(
            {role: np.union1d(earlier.keys[role], self.keys[role]) for role in roles},
            {role: tuple(dict.fromkeys((*earlier.data[role], *self.data[role]))) for role in roles},
            tuple(dict.fromkeys((*earlier.unknown, *self.unknown))),
        )


def unknown_lineage(name: str) -> Lineage:
    """Of weights that came without one."""
    none = np.empty(0, dtype=np.uint64)
    return Lineage({"trained": none, "selected": none}, {"trained": (), "selected": ()}, (name,))


def lineage_of(sources: Sequence[DataSource], *, train_split: str, val_split: str) -> Lineage:
    """The lineage of a training that starts from nothing.

    Args:
        sources: what it is trained on, and what selects the best weights; one source may hold both.
        train_split: clips that are trained on.
        val_split: clips that select the best weights.

    Raises:
        ManifestError: if a split is not there.
    """
    places: dict[Role, tuple[DataSource, str]] = {
        "trained": (sources[0], train_split),
        "selected": (sources[-1], val_split),
    }
    return Lineage(
        {role: _split_keys(source, split) for role, (source, split) in places.items()},
        {role: (f"{source.manifest.name} ({split})",) for role, (source, split) in places.items()},
    )


def _split_keys(source: DataSource, split: str) -> Keys:
    files = known_files(source.path)
    return np.unique(np.array([key for clip in source.manifest.split(split) for key in keys_of(clip, files)], dtype=np.uint64))


def keys_of(clip: Clip, files: Mapping[str, FileRecord]) -> list[int]:
    """What a clip is recognised by: the name of its recording, and the bytes of its file if it is a whole one."""
    keys = [_hash(f"recording {recording(clip)}")]
    record = files.get(clip.audio)
    if record is not None and record.content is not None and clip.start_s is None and clip.end_s is None:
        keys.append(_hash(f"content {record.content}"))
    return keys


def known_files(manifest: Path) -> Mapping[str, FileRecord]:
    """What ``prepare`` found in the files of a manifest; nothing where it did not make the manifest."""
    path = manifest.parent / FILES
    return file_table.read(path) if path.is_file() else {}


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Write the lineage of a model beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    roles = [role for role, keys in lineage.keys.items() for _ in range(len(keys))]
    header = {"data": {role: list(names) for role, names in lineage.data.items()}, "unknown": list(lineage.unknown)}
    metadata = {b"clapkit_lineage": _FORMAT, b"clapkit_origins": json.dumps(header, ensure_ascii=False).encode()}
    table = pa.table(
        {"role": pa.array(roles, pa.string()).dictionary_encode(), "key": np.concatenate(list(lineage.keys.values()))}
    )
    with atomic_path(folder / FILE) as temporary:
        pq.write_table(table.cast(_SCHEMA).replace_schema_metadata(metadata), temporary)


def read_lineage(model: Path, *, name: str) -> Lineage:
    """The lineage of a model.

    Args:
        model: its folder or file.
        name: how messages call it.

    Raises:
        CheckpointError: if the file is damaged.
    """
    path = model / FILE
    if not path.is_file():
        return _from_run(model) or unknown_lineage(name)
    try:
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(b"clapkit_lineage") != _FORMAT:
            raise CheckpointError(f"{path}: is no lineage that this clapkit reads; use the version that wrote it")
        header: dict[str, Any] = json.loads(table.schema.metadata[b"clapkit_origins"])
        roles, keys = np.asarray(table["role"].to_pylist(), dtype=object), table["key"].to_numpy()
        return Lineage(
            {"trained": keys[roles == "trained"], "selected": keys[roles == "selected"]},
            {"trained": tuple(header["data"]["trained"]), "selected": tuple(header["data"]["selected"])},
            tuple(header["unknown"]),
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be read ({reason}); restore it, or delete it to go on without") from error


def _from_run(model: Path) -> Lineage | None:
    """Of a train run of an earlier version, as far as its data are what they were; None if that is not known."""
    run = RunDir(model.resolve().parent)
    try:
        config = run.record["config"] if run.record.get("step") == "train" else None
        if config is None or any(config.get(key) for key in ("init", "audio_weights", "text_weights")):
            return None
        sources = _recorded_data(run.record.get("inputs", []))
        return lineage_of(sources, train_split=config["train_split"], val_split=config["val_split"]) if sources else None
    except (ClapkitError, KeyError):
        return None


def _recorded_data(entries: Iterable[Mapping[str, str]]) -> list[DataSource]:
    """Manifests that a run used; none if one of them is another now."""
    recorded = [entry for entry in entries if is_manifest(entry)]
    sources = [DataSource(Path(entry["path"]), Manifest.load(Path(entry["path"]))) for entry in recorded]
    unchanged = all(found.manifest.fingerprint == entry["fingerprint"] for found, entry in zip(sources, recorded, strict=True))
    return sources if unchanged else []


def is_manifest(entry: Mapping[str, str]) -> bool:
    """Whether an input of a train run is a manifest, and not weights."""
    return entry["path"].endswith(".jsonl")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
