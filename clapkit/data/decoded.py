"""Decoded clips for training: read afresh, kept in memory, or kept in one file on disk.

All three give the same samples, bit for bit, so that a cache changes nothing but time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import weakref
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import soxr
import xxhash

from clapkit.data import audio
from clapkit.data.manifest import Manifest
from clapkit.data.processes import num_cores
from clapkit.data.resampling import BLOCK_S
from clapkit.errors import ConfigError, RunDirError

AudioCache = Literal["auto", "memory", "disk", "none"]

_MEMORY_BYTES = 2 * 1024**3
# More threads than that wait for each other in Python, and no model takes so many clips.
_MAX_THREADS = 16
_CGROUPS = Path("/sys/fs/cgroup")
# Of version 1 of cgroups, unless somebody changed it.
_V1_PERIOD_US = 100_000


class DecodedClips:
    """Clips, mono at one sample rate; may be read by several threads at once.

    Args:
        manifest: the clips.
        sample_rate: Hz.
        cache: where decoded clips are kept: ``memory``, ``disk``, nowhere (``none``), or in memory if all of them together
            take less than ``memory_bytes`` (``auto``).
        cache_dir: of the file on disk.
        memory_bytes: for ``auto``.

    Raises:
        ConfigError: if the disk has no room for the cache.
        RunDirError: if the cache cannot be written.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        sample_rate: int,
        cache: AudioCache = "auto",
        cache_dir: Path | None = None,
        memory_bytes: int = _MEMORY_BYTES,
    ) -> None:
        self._manifest, self.sample_rate = manifest, sample_rate
        if cache == "auto":
            total = sum((clip.duration_s or math.inf) * sample_rate * 4 for clip in manifest.clips)
            cache = "memory" if total <= memory_bytes else "none"
        self._kept: dict[int, np.ndarray] | None = {} if cache == "memory" else None
        self._file: DecodedFile | None = None
        if cache == "disk":
            assert cache_dir is not None, "a cache on disk needs a folder"
            self._file = DecodedFile(cache_dir, manifest, sample_rate=sample_rate)

    def read(self, row: int, out: np.ndarray, *, offset: int = 0) -> int:
        """Write a window of a clip into an array.

        Args:
            row: of the manifest.
            out: float32 [T]; what lies behind the end of the clip is left as it is.
            offset: first sample of the window.

        Returns:
            How many samples were written.

        Raises:
            AudioError: if the file cannot be decoded.
            RunDirError: if the cache cannot be written.
        """
        if self._file is not None and self._file.holds(row):
            return self._file.read(row, out, offset=offset)
        window = self._window(row, offset, len(out))
        out[: len(window)] = window
        return len(window)

    def _window(self, row: int, offset: int, num_samples: int) -> np.ndarray:
        if self._kept is not None:
            if row not in self._kept:
                self._kept[row] = self._decode(row)
            return self._kept[row][offset : offset + num_samples]
        if self._file is not None and self._file.has_room(row):
            waveform = self._decode(row)
            self._file.write(row, waveform)
            return waveform[offset : offset + num_samples]
        return self._decode(row, offset=offset, num_samples=num_samples)

    def _decode(self, row: int, *, offset: int = 0, num_samples: int | None = None) -> np.ndarray:
        clip = self._manifest.clips[row]
        return audio.load_window(
            self._manifest.audio_path(clip),
            sample_rate=self.sample_rate,
            offset=offset,
            num_samples=num_samples,
            start_s=clip.start_s,
            end_s=clip.end_s,
        )


class DecodedFile:
    """A file of decoded clips, filled as they are asked for, by as many processes as like.

    It holds a header, a record for every row, and the samples, float32, each row in its own place. A row counts when the
    checksum in its record fits its samples: what a killed process, a power cut or another machine left half written is decoded
    again. The file is sparse, so that it takes the room of what was written. Rows of unknown length are not kept.

    Args:
        folder: of the file, which is named after the data; made if it is missing.
        manifest: the clips.
        sample_rate: Hz.

    Raises:
        ConfigError: if the disk has no room for all clips.
        RunDirError: if the file cannot be made.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, sample_rate: int) -> None:
        key = _key(manifest, sample_rate)
        self.path = folder / f"{key[:16]}.decoded"
        self._header = f"clapkit decoded audio {key}\n".encode().ljust(128, b"\0")
        self._room = np.array([_samples(clip.duration_s, sample_rate) for clip in manifest.clips], dtype=np.int64)  # [N]
        self._start = len(self._header) + 16 * len(self._room) + 4 * (np.cumsum(self._room) - self._room)
        self._num_bytes = len(self._header) + 16 * len(self._room) + 4 * int(self._room.sum())
        self._length = np.full(len(self._room), -1, dtype=np.int64)  # of the rows that were checked here
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open()
        except OSError as error:
            raise RunDirError(
                f"{self.path}: the decoded audio cannot be kept there ({error.strerror}); name another"
            ) from error
        weakref.finalize(self, os.close, self._descriptor)
        missing = self._num_bytes - os.fstat(self._descriptor).st_blocks * 512
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise ConfigError(
                f"--audio-cache disk: {missing / 1e9:.1f} GB more are needed in {folder}, {free / 1e9:.1f} GB are free; "
                "make room or pass --audio-cache none"
            )

    def has_room(self, row: int) -> bool:
        """Whether a row is kept at all."""
        return bool(self._room[row])

    def holds(self, row: int) -> bool:
        """Whether a row is there as a whole; reads all of it when it is first asked for in a process."""
        if self._length[row] >= 0:
            return True
        record = np.frombuffer(os.pread(self._descriptor, 16, self._record(row)), dtype=np.uint64)
        if len(record) < 2 or not record[1] or not 0 < record[0] <= self._room[row]:
            return False
        samples = np.empty(int(record[0]), dtype=np.float32)
        if self._pread(row, samples, 0) < len(samples) or _checksum(samples) != record[1]:
            return False
        self._length[row] = record[0]
        return True

    def read(self, row: int, out: np.ndarray, *, offset: int) -> int:
        """Write a window of a row that is held into an array; gives how many samples were written."""
        num_samples = max(0, min(len(out), int(self._length[row]) - offset))
        if self._pread(row, out[:num_samples], offset) < num_samples:
            raise RunDirError(f"{self.path}: was cut while it was read, expected a file that stays; start again with --resume")
        return num_samples

    def write(self, row: int, samples: np.ndarray) -> None:
        """Keep a row, float32 [T]; one that is longer than its duration promised is not kept.

        Raises:
            RunDirError: if the disk is full.
        """
        if len(samples) > self._room[row]:
            self._room[row] = 0
            return
        record = np.array([len(samples), _checksum(samples)], dtype=np.uint64)
        try:
            _write_at(self._descriptor, samples, int(self._start[row]))
            _write_at(self._descriptor, record, self._record(row))
        except OSError as error:
            raise RunDirError(
                f"{self.path}: decoded audio cannot be written ({error.strerror}); make room or pass --audio-cache none"
            ) from error
        self._length[row] = len(samples)

    def _open(self) -> int:
        """Open the file, and make it what it should be: every process that does so does the same."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        found = os.pread(descriptor, len(self._header), 0)
        is_ours = not found.strip(b"\0") or found == self._header
        if not is_ours or os.fstat(descriptor).st_size > self._num_bytes:
            os.close(descriptor)
            self.path.unlink(missing_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        os.truncate(descriptor, self._num_bytes)
        os.pwrite(descriptor, self._header, 0)
        return descriptor

    def _record(self, row: int) -> int:
        return len(self._header) + 16 * row

    def _pread(self, row: int, out: np.ndarray, offset: int) -> int:
        """Samples of a row, written into an array; gives how many there were."""
        if not len(out):
            return 0
        left, place = out.data.cast("B"), int(self._start[row]) + 4 * offset
        while len(left) and (done := os.preadv(self._descriptor, [left], place)):
            left, place = left[done:], place + done
        return len(out) - -(-len(left) // 4)


def decode_threads(workers: int | None, *, processes_here: int = 1, is_model_on_cpu: bool = False) -> int:
    """How many threads decode audio in this process.

    By default one for each core that is left to the process: what the scheduler and the container allow, shared among
    the processes of the machine, at most 16. A model on the processor keeps one of them, if there is another: threads that
    share its core cost it more than they bring.

    Args:
        workers: asked for by the user; None is the default.
        processes_here: of this training on this machine.
        is_model_on_cpu: whether the model needs a core.

    Raises:
        ConfigError: if fewer than one is asked for.
    """
    if workers is not None:
        if workers < 1:
            raise ConfigError(f"--workers {workers}: expected at least 1 thread")
        return workers
    cores = math.floor(min(num_cores(), _container_cores(_CGROUPS))) // processes_here
    return max(1, min(_MAX_THREADS, cores - is_model_on_cpu))


def spare_threads(workers: int | None, *, is_model_on_cpu: bool = False) -> int:
    """How many more threads may decode while a model waits for them: one for the core that ``decode_threads`` leaves it.

    Args:
        workers: asked for by the user, who gets as many; None is the default.
        is_model_on_cpu: whether the model has a core.
    """
    if workers is not None:
        return 0
    return decode_threads(None) - decode_threads(None, is_model_on_cpu=is_model_on_cpu)


def _container_cores(cgroups: Path) -> float:
    """How many cores the container may keep busy; infinite where nothing says it."""
    quotas = []
    for path, is_v2 in ((cgroups / "cpu.max", True), (cgroups / "cpu" / "cpu.cfs_quota_us", False)):
        try:
            quota, period = path.read_text().split() if is_v2 else (path.read_text(), _V1_PERIOD_US)
            quotas.append(float(quota) / float(period))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min((quota for quota in quotas if quota > 0), default=math.inf)


def _samples(duration_s: float | None, sample_rate: int) -> int:
    """Room for a clip; one sample more, because durations are rounded."""
    return 0 if duration_s is None else math.ceil(duration_s * sample_rate) + 1


def _key(manifest: Manifest, sample_rate: int) -> str:
    """Hash of everything that the samples and their places depend on."""
    facts = {
        "manifest": manifest.fingerprint,
        "root": str(manifest.root.absolute()),
        "sample_rate": sample_rate,
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__libsoxr_version__,
        "block_s": BLOCK_S,
        "byte_order": sys.byteorder,
        "version": 1,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _checksum(samples: np.ndarray) -> int:
    """Never 0, which stands for a row that is not there."""
    return xxhash.xxh3_64_intdigest(samples.data, seed=len(samples)) or 1


def _write_at(descriptor: int, content: np.ndarray, place: int) -> None:
    left = content.data.cast("B")
    while len(left):
        done = os.pwrite(descriptor, left, place)
        left, place = left[done:], place + done
