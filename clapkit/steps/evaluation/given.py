"""Embeddings that were made elsewhere, in the order of the clips and captions of a split: ``eval --embeddings``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index.foreign import read_foreign
from clapkit.index.table import EmbeddingTable, open_table
from clapkit.steps.inputs import resolve_embeddings
from clapkit.types import Rejection

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Given:
    """Embeddings of both modalities.

    Attributes:
        name: how results call them.
        audio: table of clips.
        text: table of captions.
        fingerprint: of the model that made them, or of the vectors where that is not known.
        model_path: folder of that model; None if it is not known.
        policy: how the audio was cut and pooled, as far as it is known.
    """

    name: str
    audio: EmbeddingTable
    text: EmbeddingTable
    fingerprint: str
    model_path: Path | None
    policy: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Matched:
    """Embeddings of the clips of a split.

    Attributes:
        rows: int64 [N], clips of the split that have a vector.
        audio: unit norm [N, D].
        captions: unit norm [M, D], of all captions of those clips.
        missing: the other clips, and why.
    """

    rows: IntArray
    audio: FloatArray
    captions: FloatArray
    missing: list[Rejection]


def read_given(address: str, *, runs_root: Path) -> Given:
    """Open what ``--embeddings`` names.

    Args:
        address: embed run of both modalities, or ``AUDIO.npy,TEXT.npy``.
        runs_root: where runs live.

    Raises:
        ConfigError: if the text is neither.
        EmbeddingError: if a file is missing or damaged, or the widths differ.
        RunDirError: if there is no such run.
    """
    found = _of_files(address) if ".npy" in address else _of_run(address, runs_root=runs_root)
    if found.audio.width != found.text.width:
        raise EmbeddingError(
            f"--embeddings {address}: audio vectors are {found.audio.width} wide and text vectors {found.text.width}; "
            "expected both of one model"
        )
    return found


def match(given: Given, split: Manifest, *, data: Manifest) -> Matched:
    """Find the vectors of the clips and captions of a split.

    Rows that say which clip they are of are matched by its id (captions also by their text); rows that say nothing stand for
    the clips and captions of the split in their order.

    Args:
        given: the embeddings.
        split: the clips.
        data: all clips of the corpus; vectors of those outside the split are not needed.

    Raises:
        EmbeddingError: if rows without ids are not as many as clips or captions, a row of text belongs to no clip of the data,
            a clip has several vectors, a caption none, or no clip has one.
    """
    clip_row = _clip_rows(given, split)
    kept = [row for row, clip in enumerate(split) if clip.id in clip_row]
    if not kept:
        raise EmbeddingError(
            f"{given.name}: no audio vector is of a clip of {split.name}; embed these clips, or name other --data"
        )
    missing = [
        Rejection(clip.id, f"{given.name} has no vector of it; embed it", "missing")
        for clip in split
        if clip.id not in clip_row
    ]
    audio = np.asarray(given.audio.vectors[[clip_row[split.clips[row].id] for row in kept]], dtype=np.float32)
    captions = np.asarray(given.text.vectors[_caption_rows(given, split, kept, data=data)], dtype=np.float32)
    return Matched(np.array(kept, dtype=np.int64), audio, captions, missing)


def _of_files(address: str) -> Given:
    parts = [Path(part.strip()) for part in address.split(",")]
    if len(parts) != 2 or any(part.suffix != ".npy" for part in parts):
        raise ConfigError(f"--embeddings {address}: expected AUDIO.npy,TEXT.npy or an embed run")
    audio, text = read_foreign(parts[0], None), read_foreign(parts[1], None, modality="text")
    digest = hashlib.sha256()
    for table in (audio, text):
        digest.update(np.ascontiguousarray(table.vectors).tobytes())
    return Given(address, audio, text, digest.hexdigest(), None, {})


def _of_run(address: str, *, runs_root: Path) -> Given:
    folder = resolve_embeddings(address, runs_root=runs_root)
    info, audio = open_table(folder, "audio")
    _, text = open_table(folder, "text")
    model = Path(info.model_path) if info.model_path else None
    name = folder.name if folder.name == Path(address).name else os.fspath(folder)
    return Given(name, audio, text, info.model_fingerprint or info.id, model, dict(info.audio_policy))


def _clip_rows(given: Given, split: Manifest) -> dict[str, int]:
    """Id of a clip -> row of its vector."""
    ids = given.audio.ids
    if _are_numbers(ids):
        _expect_rows(given, len(ids), len(split), what="clips", modality="audio")
        return {clip.id: row for row, clip in enumerate(split)}
    found = {id: row for row, id in enumerate(ids)}
    if len(found) < len(ids):
        raise EmbeddingError(
            f"{given.name}: {len(ids)} audio vectors of {len(found)} clips, expected one each; embed with --pool mean"
        )
    return found


def _caption_rows(given: Given, split: Manifest, kept: Sequence[int], *, data: Manifest) -> list[int]:
    """Rows [M] of the vectors of all captions of the clips that are kept."""
    ids = given.text.ids
    captions = [(row, clip.id, caption.text) for row, clip in enumerate(split) for caption in clip.captions]
    chosen = set(kept)
    if _are_numbers(ids):
        _expect_rows(given, len(ids), len(captions), what="captions", modality="text")
        return [number for number, (row, _, _) in enumerate(captions) if row in chosen]
    texts = given.text.columns(["caption"])["caption"]
    known = {clip.id for clip in data}
    found: dict[tuple[str, str | None], int] = {}
    for number, (id, text) in enumerate(zip(ids, texts, strict=True)):
        if id not in known:
            raise EmbeddingError(
                f"{given.name}: row {number} of the text vectors is of clip {id!r}, which is not in {data.name}; "
                "expected captions of these clips, embed them or name other --data"
            )
        found[id, text] = number
    rows = []
    for row, id, text in captions:
        if row in chosen:
            if (id, text) not in found:
                raise EmbeddingError(
                    f"{given.name}: no text vector of clip {id}, caption {text!r}; embed the captions of this data"
                )
            rows.append(found[id, text])
    return rows


def _are_numbers(ids: Sequence[str]) -> bool:
    """Whether rows are numbered because nothing is known of them."""
    return all(id == str(row) for row, id in enumerate(ids))


def _expect_rows(given: Given, found: int, expected: int, *, what: str, modality: str) -> None:
    if found != expected:
        raise EmbeddingError(
            f"{given.name}: {found} {modality} vectors without ids, expected {expected}, one for each of the {what} in their "
            "order; put a table with ids beside the .npy file, or choose the split that they are of"
        )
