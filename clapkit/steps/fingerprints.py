"""Fingerprints of models, remembered, so that a query does not read hundreds of megabytes to find that nothing changed.

One small JSON file per model, which holds its fingerprint with size and times of the files that it was computed from. Where any
of them differs, or the note is damaged, the fingerprint is computed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clapkit
from clapkit.encoders.fingerprint import CONFIG, SIDE_FILES, TOKENIZER, WEIGHT_FILES, model_fingerprint
from clapkit.files import atomic_path

# A file that changes twice within one tick of the clock of its file system looks the same: two seconds on the coarsest.
_SETTLED_NS = 2_000_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
State = dict[str, list[int] | None]


def known_fingerprint(path: Path, cache: Path) -> str:
    """``model_fingerprint`` of a model, without reading it where its files are as they were the last time.

    Args:
        path: of the model's folder or file.
        cache: folder of ``query_cache.cache_dir``; left as it is where it cannot be written.

    Raises:
        CheckpointError: if the folder holds no model, or not all of it.
    """
    note_path = _note_path(path, cache)
    before = _state(path)
    note = _read(note_path)
    if note is not None and note["clapkit"] == clapkit.__version__ and note["files"] == before:
        return str(note["fingerprint"])
    fingerprint = model_fingerprint(path)
    if _is_settled(before) and _state(path) == before:
        _write(note_path, path, before, fingerprint)
    return fingerprint


def _note_path(path: Path, cache: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    return cache / "fingerprints" / f"{name}.json"


def _state(path: Path) -> State:
    """Size, time of writing and time of change of every file that a fingerprint may read; None for those that are not there.

    The time of change tells a file apart that was replaced by one of the same size and time of writing, as a copy may be.
    """
    state: State = {}
    for file in _files(path):
        try:
            status = file.stat()
        except OSError:
            state[os.fspath(file)] = None
        else:
            state[os.fspath(file)] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return state


def _files(path: Path) -> Iterator[Path]:
    path = Path(os.path.abspath(path))
    if not path.is_dir():
        yield from (path, path.with_name(TOKENIZER))
        return
    for name in (CONFIG, *WEIGHT_FILES, *SIDE_FILES):
        yield path / name
        if name.endswith(".index.json"):
            yield from (path / part for part in _parts(path / name))


def _parts(index: Path) -> list[str]:
    """The files that an index of weights lists; none if it is damaged, which the fingerprint then says."""
    try:
        return sorted(set(map(str, json.loads(index.read_bytes())["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _is_settled(state: State) -> bool:
    newest = max((max(times[1:]) for times in state.values() if times is not None), default=0)
    return newest + _SETTLED_NS < time.time_ns()


def _read(note_path: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(note_path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(note, dict) and note.keys() >= {"clapkit", "files", "fingerprint"}
    return note if whole and _SHA256.fullmatch(str(note["fingerprint"])) else None


def _write(note_path: Path, path: Path, state: State, fingerprint: str) -> None:
    note = {"model": os.path.abspath(path), "clapkit": clapkit.__version__, "files": state, "fingerprint": fingerprint}
    # The answer is already there; a full disk or a read-only home must not take it away.
    with contextlib.suppress(OSError), atomic_path(note_path) as temporary:
        temporary.write_text(json.dumps(note, indent=1), encoding="utf-8")
