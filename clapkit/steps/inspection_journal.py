"""What was found in files so far, on disk, so that a killed ``prepare`` decodes nothing twice."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from pathlib import Path
from typing import IO, Any

from clapkit.data.audio import AudioInfo, AudioStatistics
from clapkit.data.inspection import Inspection, Job
from clapkit.data.members import split_member

_KEYS = {"path", "state", *(field.name for field in dataclasses.fields(Inspection))}


class InspectionJournal:
    """A file of JSON lines, one for every inspected file; a last line that is cut off does not count.

    What it says of a file holds as long as size and time of change of the file are the same.

    Args:
        path: of the journal; the file is made when the first line is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known = _read(path)
        self._states: dict[str, list[int] | None] = {}
        self._file: IO[str] | None = None

    def find(self, job: Job) -> Inspection | None:
        """What was found in a file; None if that is not known, or the file or its copy is not what it was."""
        # Looked at before the file is read: if it changes meanwhile, what is noted does not hold for it.
        state = self._states[job.path] = _state(job.path)
        entry = self._known.get(job.path)
        if entry is None or state is None or entry["state"] != state:
            return None
        found = _from_record(entry)
        if found.copy is not None and (job.copy is None or not os.path.isfile(job.copy)):
            return None
        return found

    def add(self, job: Job, found: Inspection) -> None:
        """Note what was found in a file."""
        if self._file is None:
            self._end_last_line()
            self._file = self.path.open("a", encoding="utf-8")
        state = self._states[job.path] if job.path in self._states else _state(job.path)
        record = {"path": job.path, "state": state} | _to_record(found)
        # ASCII, so that a path that is not UTF-8 can be written, too.
        self._file.write(json.dumps(record) + "\n")
        # The operating system has it now, so that it outlives this process, though not a power cut.
        self._file.flush()

    def close(self) -> None:
        """Stop writing; the file stays for ``--resume``."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Delete the file, because there is nothing to resume."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _end_last_line(self) -> None:
        """Cut off what a killed process left of its last line."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with self.path.open("r+b") as file:
                file.truncate(end)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    entries: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n") and line.startswith("{"):  # a power cut may leave zeros
                entry = json.loads(line)
                if entry.keys() == _KEYS:  # of this version
                    entries[entry["path"]] = entry
    return entries


def _state(path: str) -> list[int] | None:
    """Size and time of change, of a member those of its archive; None for a file that is not there."""
    try:
        member = split_member(path)
        status = os.stat(path if member is None else member[0])
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _to_record(found: Inspection) -> dict[str, Any]:
    record = dataclasses.asdict(found)
    record["landmarks"] = None if found.landmarks is None else base64.b64encode(found.landmarks).decode()
    return record


def _from_record(record: dict[str, Any]) -> Inspection:
    values = {field.name: record[field.name] for field in dataclasses.fields(Inspection)}
    for key in ("info", "copy"):
        if values[key] is not None:
            values[key] = AudioInfo(**values[key])
    if values["statistics"] is not None:
        recorded: dict[str, Any] = values["statistics"]
        statistics: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items()}
        values["statistics"] = AudioStatistics(**statistics)
    if values["landmarks"] is not None:
        values["landmarks"] = base64.b64decode(values["landmarks"])
    return Inspection(**values)
