"""Looking into audio files: does each decode, what do its samples look like, what does it sound like.

Files are inspected one by one, in worker processes where there are many, in one pass over their samples. What was found is
counted over the clips by ``clapkit.data.audit``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xxhash

from clapkit.data.acoustic import Listener
from clapkit.data.audio import AudioInfo, AudioStatistics, examine, probe
from clapkit.data.copies import CopyPolicy, CopyWriter
from clapkit.data.members import audio_size, open_audio
from clapkit.data.processes import Crashed, map_in_processes, num_cores
from clapkit.errors import AudioError

# -80 dB below full scale: under the noise of any microphone, above the dither of an empty 16-bit file.
SILENT_RMS = 1e-4
# One sample in a thousand at full scale; a file that was merely normalised to its peak has a handful.
CLIPPED_SHARE = 1e-3

_MIN_FILES_FOR_PROCESSES = 64
# Decoding takes milliseconds a file, a header a fraction of one: then sending it to a process is what counts.
_CHUNK_SIZE = {True: 16, False: 256}
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in one audio file.

    Attributes:
        info: rate, frames and channels; None if the file cannot be used.
        statistics: of the samples; None if they were not decoded.
        content: XXH3 hash of 128 bits of the bytes of the file; None if they were not read.
        problem: why the file cannot be used; None if it can.
        check: name of the check that found the problem.
        num_bytes: size of the file.
        landmarks: what it sounds like, as ``clapkit.data.acoustic`` packs it; None if it was not listened to.
        copy: the decoded copy that was made of it: what it holds.
    """

    info: AudioInfo | None = None
    statistics: AudioStatistics | None = None
    content: str | None = None
    problem: str | None = None
    check: str | None = None
    num_bytes: int | None = None
    landmarks: bytes | None = None
    copy: AudioInfo | None = None

    @property
    def is_silent(self) -> bool:
        """Whether the sound is below -80 dB, any DC offset left aside."""
        return self.statistics is not None and self.statistics.rms < SILENT_RMS

    @property
    def is_clipped(self) -> bool:
        """Whether more than one sample in a thousand is at full scale."""
        return self.statistics is not None and self.statistics.clipped_share > CLIPPED_SHARE


@dataclass(frozen=True, slots=True)
class Job:
    """A file to inspect.

    Attributes:
        path: of the file.
        copy: where its decoded copy goes; None makes none.
    """

    path: str
    copy: str | None = None


def inspect(job: Job, *, decode: bool = True, copies: CopyPolicy | None = None) -> Inspection:
    """Inspect one file.

    Args:
        job: the file.
        decode: decode it whole, listen to it and hash it; otherwise only look at its header.
        copies: how the decoded copy is made, where the job asks for one.
    """
    try:
        num_bytes = _regular_size(job.path)
        if not decode:
            return Inspection(info=probe(job.path), num_bytes=num_bytes)
        return _examine(num_bytes, job, copies)
    except AudioError as error:
        return Inspection(problem=str(error), check=error.check)


def inspect_files(
    jobs: Sequence[Job], *, decode: bool, workers: int | None = None, copies: CopyPolicy | None = None
) -> Iterator[Inspection]:
    """Inspect files, several at a time; results come in the order of the jobs.

    A file at which the decoder crashes is a bad file, where worker processes are used.

    Args:
        jobs: the files.
        decode: as in ``inspect``.
        workers: processes to use; None is one per core. Few files are inspected in this process.
        copies: as in ``inspect``.
    """
    workers = workers or num_cores()
    look = partial(inspect, decode=decode, copies=copies)
    if workers == 1 or len(jobs) < _MIN_FILES_FOR_PROCESSES:
        yield from map(look, jobs)
        return
    for found in map_in_processes(look, jobs, workers=workers, chunk_size=_CHUNK_SIZE[decode]):
        if isinstance(found, Crashed):
            problem = f"{found.item.path}: the decoder crashed on it, expected a readable audio file; replace or drop it"
            yield Inspection(problem=problem, check="unreadable")
        else:
            yield found


def _regular_size(path: str) -> int:
    """Size of a file or of a member of a shard; a pipe would make us wait for ever."""
    try:
        return audio_size(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{path}: cannot be opened ({reason}); expected a readable audio file") from error


def _examine(num_bytes: int, job: Job, copies: CopyPolicy | None) -> Inspection:
    path = Path(job.path)
    listeners: list[Listener] = []
    writers: list[CopyWriter] = []

    def listen(info: AudioInfo, mono: np.ndarray) -> None:
        if not listeners:
            listeners.append(Listener(info.sample_rate))
            if job.copy is not None and copies is not None:
                writers.append(CopyWriter(Path(job.copy), info.sample_rate, policy=copies))
        listeners[0].hear(mono)
        for writer in writers:
            writer.write(mono)

    try:
        info, statistics = examine(path, listen=listen)
        copy = writers[0].finish() if writers else None
    finally:
        for writer in writers:
            writer.close()
    return Inspection(
        info=info,
        statistics=statistics,
        content=_content(path),
        num_bytes=num_bytes,
        landmarks=listeners[0].landmarks(),
        copy=copy,
    )


def _content(path: Path) -> str:
    digest = xxhash.xxh3_128()
    try:
        with open_audio(path, buffering=0) as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read a second time ({error.strerror}); expected a file that stays") from error
    return digest.hexdigest()
