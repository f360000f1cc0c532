"""Windows of clips, decoded in threads ahead of whoever takes them, in the order of the manifest.

What waits is bounded in bytes, whatever the number of the files and their lengths. A clip may be found to be known by the hash
of its file: then it is not decoded. Files are hashed some clips ahead, so that the answers are there when they are needed.

A model that waits for windows leaves its core idle. Spare threads take it meanwhile, one clip at a time: where decoding is the
slower part it gets every core, and where the model is, hardly anything shares the core of the model. A clip that was begun is
finished, because what comes behind it has to wait for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Generic, TypeVar

from clapkit.data.manifest import Manifest
from clapkit.data.streaming import FileContent, FloatArray, expect_unchanged, read_content, stream_samples, stream_windows
from clapkit.errors import AudioError
from clapkit.types import Clip

Answer = TypeVar("Answer")

# Of the records around a window, so that thousands of files that cannot be decoded count, too.
_RECORD_BYTES = 1024
# What was hashed should still be in the memory of the operating system when it is decoded.
_MAX_HASHED_BYTES = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class DecodedWindow:
    """First sample of a window in its clip, and its samples, float32 [T]."""

    start: int
    samples: FloatArray


@dataclass(frozen=True, slots=True)
class ClipEnd(Generic[Answer]):
    """No more windows of a clip.

    Attributes:
        content: hash of its file, if it was asked for.
        reason: why it cannot be decoded, as far as it was not; None if it was.
        answer: what is known about it; None if nothing.
    """

    content: str | None = None
    reason: str | None = None
    answer: Answer | None = None


class _State(Enum):
    HASHING = auto()
    HASHED = auto()
    TO_DECODE = auto()
    SETTLED = auto()


@dataclass(slots=True)
class _Entry(Generic[Answer]):
    row: int
    clip: Clip
    state: _State
    content: FileContent | None = None
    items: deque[DecodedWindow | ClipEnd[Answer]] = field(default_factory=deque)


class WindowsAhead(Generic[Answer]):
    """A stream of windows and ends of clips; a context manager, because threads work for it.

    Args:
        manifest: the clips.
        sample_rate: of the windows, Hz.
        window: length of a window in samples.
        hop: step between windows in samples.
        threads: that decode.
        spare_threads: more of them, which work only while the windows are waited for.
        max_bytes: of windows that wait to be taken. The clip whose turn it is always gets one window.
        with_content: whether files are hashed.
        known: is asked, in the thread that takes the windows, what is known of a clip whose file has that hash; needs
            ``with_content``.
        clips_ahead: how many clips are hashed before they are decoded, >= 1.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        sample_rate: int,
        window: int,
        hop: int,
        threads: int,
        max_bytes: int,
        spare_threads: int = 0,
        with_content: bool = False,
        known: Callable[[Clip, str], Answer | None] | None = None,
        clips_ahead: int = 64,
    ) -> None:
        assert with_content or known is None, "what is known is found by the hash of the file"
        self._manifest, self._sample_rate, self._window, self._hop = manifest, sample_rate, window, hop
        self._max_bytes, self._with_content, self._known = max_bytes, with_content, known
        self._clips_ahead = clips_ahead if with_content else 1
        self._num_begun = 0
        # Clips that were begun and whose end was not taken, and those of them that no thread decodes yet. Decoding begins in
        # the order of the rows: a thread that waits for room never keeps the clip whose turn it is from being decoded.
        self._entries: deque[_Entry[Answer]] = deque()
        self._undecoded: deque[_Entry[Answer]] = deque()
        self._questions: list[_Entry[Answer]] = []
        self._num_bytes = 0
        self._failure: BaseException | None = None
        self._is_awaited = False  # whoever takes the windows has none to go on with
        self._is_closed = False
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(threads + spare_threads, thread_name_prefix="window")
        self._threads, self._spare_threads = threads, spare_threads

    def __enter__(self) -> WindowsAhead[Answer]:
        for number in range(self._threads + self._spare_threads):
            self._pool.submit(self._work, is_spare=number >= self._threads).add_done_callback(self._note_failure)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._pool.shutdown(wait=True)

    def __iter__(self) -> Iterator[tuple[int, DecodedWindow | ClipEnd[Answer]]]:
        """Give (row, window) and, behind the last window of every clip, (row, end)."""
        num_ended = 0
        while num_ended < len(self._manifest):
            row, item = self._take()
            num_ended += isinstance(item, ClipEnd)
            yield row, item

    # In the thread that takes the windows ------------------------------------------------------------------------------------

    def _take(self) -> tuple[int, DecodedWindow | ClipEnd[Answer]]:
        while True:
            with self._changed:
                self._await_next()
                if self._failure is not None:
                    raise self._failure
                questions, self._questions = self._questions, []
                if not questions:
                    return self._take_first()
            for entry in questions:
                self._answer(entry)

    def _await_next(self) -> None:
        if not self._has_next():
            self._is_awaited = True
            self._changed.notify_all()
            self._changed.wait_for(self._has_next)
            self._is_awaited = False

    def _has_next(self) -> bool:
        return bool(self._questions or self._failure or (self._entries and self._entries[0].items))

    def _is_starved(self) -> bool:
        """Whether who takes the windows waits; not when one is there and the thread has merely not woken up yet."""
        return self._is_awaited and not self._has_next()

    def _take_first(self) -> tuple[int, DecodedWindow | ClipEnd[Answer]]:
        entry = self._entries[0]
        item = entry.items.popleft()
        self._num_bytes -= _num_bytes(item)
        if isinstance(item, ClipEnd):
            self._entries.popleft()
        self._changed.notify_all()
        return entry.row, item

    def _answer(self, entry: _Entry[Answer]) -> None:
        assert self._known is not None
        assert entry.content is not None
        answer = self._known(entry.clip, entry.content.hash)
        with self._changed:
            if answer is None:
                entry.state = _State.TO_DECODE
            else:
                self._settle(entry, ClipEnd(entry.content.hash, answer=answer))
            self._changed.notify_all()

    # In the threads that decode ----------------------------------------------------------------------------------------------

    def _work(self, *, is_spare: bool) -> None:
        while (entry := self._next_task(is_spare=is_spare)) is not None:
            if entry.state is _State.HASHING:
                self._hash(entry)
            else:
                self._decode(entry)

    def _note_failure(self, future: Future[None]) -> None:
        with self._changed:
            self._failure = self._failure or future.exception()
            self._changed.notify_all()

    def _next_task(self, *, is_spare: bool) -> _Entry[Answer] | None:
        """A clip to hash or to decode; None if there is nothing left."""
        with self._changed:
            while not self._is_closed:
                if is_spare and not self._is_starved():
                    self._changed.wait()
                    continue
                while self._undecoded and self._undecoded[0].state is _State.SETTLED:
                    self._undecoded.popleft()
                if self._may_begin_another():
                    entry = self._begin()
                    if entry.state is _State.HASHING:
                        return entry
                elif self._undecoded and self._undecoded[0].state is _State.TO_DECODE:
                    return self._undecoded.popleft()
                elif not self._undecoded and self._num_begun == len(self._manifest):
                    return None
                else:
                    self._changed.wait()
            return None

    def _may_begin_another(self) -> bool:
        if self._num_begun == len(self._manifest) or len(self._undecoded) >= self._clips_ahead:
            return False
        if self._entries and self._num_bytes + _RECORD_BYTES > self._max_bytes:
            return False
        return not self._undecoded or sum(e.content.num_bytes for e in self._undecoded if e.content) < _MAX_HASHED_BYTES

    def _begin(self) -> _Entry[Answer]:
        row = self._num_begun
        state = _State.HASHING if self._with_content else _State.TO_DECODE
        entry: _Entry[Answer] = _Entry(row, self._manifest.clips[row], state)
        self._num_begun += 1
        self._entries.append(entry)
        self._undecoded.append(entry)
        return entry

    def _hash(self, entry: _Entry[Answer]) -> None:
        try:
            content, reason = read_content(self._manifest.audio_path(entry.clip)), None
        except AudioError as error:
            content, reason = None, str(error)
        with self._changed:
            entry.content = content
            if reason is not None:
                self._settle(entry, ClipEnd(reason=reason))
            elif self._known is None:
                entry.state = _State.TO_DECODE
            else:
                entry.state = _State.HASHED
                self._questions.append(entry)
            self._changed.notify_all()

    def _settle(self, entry: _Entry[Answer], end: ClipEnd[Answer]) -> None:
        """End a clip that will not be decoded."""
        entry.state = _State.SETTLED
        entry.items.append(end)
        self._num_bytes += _num_bytes(end)

    def _decode(self, entry: _Entry[Answer]) -> None:
        clip, path = entry.clip, self._manifest.audio_path(entry.clip)
        content = None if entry.content is None else entry.content.hash
        samples = stream_samples(path, sample_rate=self._sample_rate, start_s=clip.start_s, end_s=clip.end_s)
        try:
            with closing(samples):
                for start, window in stream_windows(samples, window=self._window, hop=self._hop):
                    if not self._put(entry, DecodedWindow(start, window)):
                        return
            if entry.content is not None:
                expect_unchanged(path, entry.content)
            end: ClipEnd[Answer] = ClipEnd(content)
        except AudioError as error:
            end = ClipEnd(content, reason=str(error))
        self._put(entry, end)

    def _put(self, entry: _Entry[Answer], item: DecodedWindow | ClipEnd[Answer]) -> bool:
        """Add to a clip as soon as there is room; False if nobody wants it any more."""
        size = _num_bytes(item)

        def fits() -> bool:
            is_awaited = self._entries[0] is entry and not entry.items
            return self._is_closed or is_awaited or self._num_bytes + size <= self._max_bytes

        with self._changed:
            self._changed.wait_for(fits)
            if not self._is_closed:
                entry.items.append(item)
                self._num_bytes += size
                self._changed.notify_all()
            return not self._is_closed


def _num_bytes(item: DecodedWindow | ClipEnd[Answer]) -> int:
    return _RECORD_BYTES + (item.samples.nbytes if isinstance(item, DecodedWindow) else 0)
