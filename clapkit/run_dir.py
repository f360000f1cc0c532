"""Run directories: where every command leaves its artefacts.

``result.json`` is written last; a directory without it is not finished. Files appear whole or not at all. A lock keeps a second
process out.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from clapkit.errors import RunDirError
from clapkit.files import atomic_path, read_json, to_json, to_json_line

STEPS = ("prepare", "train", "embed", "retrieve", "eval")
_KEPT_UPDATES = 100
_LIBRARIES = (
    "clapkit",
    "torch",
    "torchaudio",
    "transformers",
    "tokenizers",
    "numpy",
    "soundfile",
    "soxr",
    "pandas",
    "faiss-cpu",
)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class RunDir:
    """One run directory, open for writing or finished and read.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record: dict[str, Any] = {}
        self._update: dict[str, Any] | None = None
        self._lock: IO[str] | None = None

    # Paths ------------------------------------------------------------------------------------------------------------

    @property
    def run_json(self) -> Path:
        """What was run on what."""
        return self.path / "run.json"

    @property
    def result_json(self) -> Path:
        """The outcome; its presence means finished."""
        return self.path / "result.json"

    @property
    def log_path(self) -> Path:
        """What was printed, with times."""
        return self.path / "log.txt"

    @property
    def metrics_path(self) -> Path:
        """One flat object a line."""
        return self.path / "metrics.jsonl"

    @property
    def manifest_path(self) -> Path:
        """Clips of a ``prepare`` run."""
        return self.path / "manifest.jsonl"

    @property
    def rejected_path(self) -> Path:
        """Items that could not be used, with reasons."""
        return self.path / "rejected.jsonl"

    @property
    def model_dir(self) -> Path:
        """Weights and configuration of a ``train`` run."""
        return self.path / "model"

    @property
    def checkpoint_dir(self) -> Path:
        """State to resume a ``train`` run from."""
        return self.path / "checkpoints"

    @property
    def plot_dir(self) -> Path:
        """Figures."""
        return self.path / "plots"

    # Life -------------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        step: str,
        config: Mapping[str, Any],
        argv: Sequence[str] = (),
        seed: int = 0,
        overwrite: bool = False,
        resume: bool = False,
    ) -> RunDir:
        """Make the directory, lock it and write ``run.json``.

        Args:
            path: the directory; it and its parents are made.
            step: the command, one of ``STEPS``.
            config: the resolved configuration, JSON values.
            argv: the command line.
            seed: of the run.
            overwrite: clear a directory that holds a finished or broken run.
            resume: go on in a directory that holds an unfinished run of this step.

        Raises:
            RunDirError: if the directory is not empty, is in use, or cannot be written.
        """
        run = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(f"run directory {path}: cannot be made ({error.strerror}); choose another --run-dir") from error
        run._acquire_lock()
        try:
            run._claim(step, overwrite=overwrite, resume=resume)
        except BaseException:
            run.release()
            raise
        earlier = run._read_record() if resume and run.run_json.exists() else {}
        run._record = {
            "step": step,
            "argv": list(argv),
            "config": dict(config),
            "seed": seed,
            "inputs": earlier.get("inputs", []),
            "versions": dict(_versions()),
            "device": None,
            "git_revision": _git_revision(),
            "status": "running",
            "started_at": earlier.get("started_at") or now(),
            "finished_at": None,
        }
        run._write_record()
        return run

    @classmethod
    def reopen(cls, path: Path, *, step: str, config: Mapping[str, Any], argv: Sequence[str] = ()) -> RunDir:
        """Lock a finished run to bring it up to date, and note that in ``updates`` of its ``run.json``.

        The run stays finished all the time: ``finish`` replaces its result, ``fail`` leaves it as it is.

        Args:
            path: the directory.
            step: the command that must have made it.
            config: the resolved configuration of the update, JSON values.
            argv: the command line.

        Raises:
            RunDirError: if it holds no finished run of this step, is in use, or cannot be written.
        """
        run = cls(path)
        if not run.run_json.is_file():
            raise RunDirError(f"{path}: holds no run; name a finished run of {step}")
        run._acquire_lock()
        try:
            record = run._read_record()
            if record.get("step") != step:
                raise RunDirError(f"{path}: is no {step} run but one of {record.get('step')}; name another")
            if not run.finished:
                raise RunDirError(f"{path}: the {step} run is not finished (no result.json); go on with it by --resume")
        except BaseException:
            run.release()
            raise
        run._drop_leftovers()
        earlier = record.get("updates", [])[1 - _KEPT_UPDATES :]
        for update in earlier:  # nobody else holds the lock: what is not over was killed
            if update["status"] == "running":
                update["status"] = "interrupted"
        run._update = {
            "argv": list(argv),
            "config": dict(config),
            "inputs": [],
            "versions": dict(_versions()),
            "device": None,
            "git_revision": _git_revision(),
            "status": "running",
            "started_at": now(),
            "finished_at": None,
        }
        run._record = record | {"updates": [*earlier, run._update]}
        run._write_record()
        return run

    def _drop_leftovers(self) -> None:
        """Delete what a process left that was killed while it wrote."""
        for entry in self.path.glob(".*.tmp"):
            entry.unlink()

    def _claim(self, step: str, *, overwrite: bool, resume: bool) -> None:
        entries = [entry for entry in self.path.iterdir() if entry.name != ".lock"]
        if not entries:
            return
        if resume and self.run_json.exists() and self._read_record().get("step") == step:
            self.result_json.unlink(missing_ok=True)
            self._drop_leftovers()
            return
        if not overwrite:
            state = "a finished run" if self.result_json.exists() else "files"
            raise RunDirError(
                f"run directory {self.path}: already holds {state}; choose another --run-dir or --name, or pass --overwrite"
            )
        if not self.run_json.exists():
            raise RunDirError(
                f"run directory {self.path}: holds files but no run.json, so --overwrite will not delete them; "
                "empty it yourself or choose another --run-dir"
            )
        self._set_aside(entries)

    @property
    def _replaced(self) -> Path:
        return self.path / ".replaced"

    def _set_aside(self, entries: list[Path]) -> None:
        """Keep the earlier run until the one that replaces it has finished."""
        if self._replaced.exists():  # what lies beside it is an attempt that came to nothing
            for entry in entries:
                if entry != self._replaced:
                    _delete(entry)
            return
        self._replaced.mkdir()
        # The result goes first: a directory that is only half cleared must not look finished.
        for entry in sorted(entries, key=lambda entry: entry != self.result_json):
            entry.rename(self._replaced / entry.name)

    def _acquire_lock(self) -> None:
        try:
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise RunDirError(
                f"run directory {self.path}: cannot be written ({error.strerror}); choose another --run-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            self._lock = None
            raise RunDirError(
                f"run directory {self.path}: in use by process {owner}; wait for it or choose another --run-dir"
            ) from error
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def release(self) -> None:
        """Give up the lock; called by ``finish`` and ``fail``."""
        if self._lock is not None:
            # The file stays: unlinking it would let two later processes lock two files of this name.
            self._lock.close()
            self._lock = None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``run.json`` and then ``result.json``, delete the run that this one replaces, and release the lock."""
        self._noted.update(status="finished", finished_at=now())
        if self._update is not None:
            self._record["inputs"] = self._update["inputs"]
        self._write_record()
        self.write_json(self.result_json, result)
        shutil.rmtree(self._replaced, ignore_errors=True)
        self.release()

    def fail(self, status: str) -> None:
        """Note in ``run.json`` that the run ended early (``failed`` or ``interrupted``), and release the lock."""
        self._noted.update(status=status, finished_at=now())
        self._write_record()
        self.release()

    @property
    def _noted(self) -> dict[str, Any]:
        """What ``run.json`` says of this call."""
        return self._record if self._update is None else self._update

    def discard_if_empty(self) -> None:
        """Remove a run that left nothing but its record; the run that it should have replaced comes back."""
        bookkeeping = {self.run_json.name, self.log_path.name, ".lock", self._replaced.name}
        others = [entry for entry in self.path.iterdir() if entry.name not in bookkeeping]
        if self._update is not None or not all(_is_empty_folder(entry) for entry in others):
            return
        for folder in others:
            folder.rmdir()
        if not self._replaced.exists():
            shutil.rmtree(self.path)
            return
        for entry in (self.run_json, self.log_path):
            entry.unlink(missing_ok=True)
        for entry in sorted(self._replaced.iterdir(), key=lambda entry: entry.name == self.result_json.name):
            entry.rename(self.path / entry.name)
        self._replaced.rmdir()

    # Writing ----------------------------------------------------------------------------------------------------------

    def add_input(self, path: Path, fingerprint: str) -> None:
        """Record an artefact that this run reads, with the hash of its content."""
        entry = {"path": os.fspath(path), "fingerprint": fingerprint}
        if entry not in self._noted["inputs"]:  # a run that goes on reads it again
            self._noted["inputs"].append(entry)
        self._write_record()

    def set_device(self, device: str) -> None:
        """Record the device that was used."""
        self._noted["device"] = device
        self._write_record()

    def write_json(self, path: Path, value: Any) -> None:
        """Write JSON atomically."""
        self.write_text(path, to_json(value))

    def write_text(self, path: Path, text: str) -> None:
        """Write text atomically."""
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_lines(self, path: Path, values: Sequence[Any]) -> None:
        """Write JSON lines atomically."""
        self.write_text(path, "".join(to_json_line(value) for value in values))

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(to_json_line(values))

    def log(self, message: str) -> None:
        """Add one line to ``log.txt``."""
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(f"{now()} {message}\n")

    def _write_record(self) -> None:
        self.write_json(self.run_json, self._record)

    # Reading ----------------------------------------------------------------------------------------------------------

    def _read_record(self) -> dict[str, Any]:
        return read_json(self.run_json)

    @property
    def record(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return self._record or self._read_record()

    @property
    def finished(self) -> bool:
        """Whether ``result.json`` is there."""
        return self.result_json.is_file()

    @property
    def result(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return read_json(self.result_json)


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _is_empty_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.is_symlink() and not any(entry.iterdir())


@functools.cache
def _versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def _git_revision() -> str | None:
    """Revision of the source tree that clapkit runs from, None for an installed copy."""
    package = Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", os.fspath(package), "rev-parse", "HEAD"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None
