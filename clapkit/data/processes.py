"""Work spread over processes, in order, in bounded memory, and with a name for the item that kills its process.

Decoders are C code that reads files from anywhere: one that crashes must cost one file, not the night's work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import wait
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Chunks that wait for each process: enough to keep it busy, few enough to hold in memory.
_CHUNKS_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Crashed(Generic[Item]):
    """Instead of a result: the process that worked on this item died."""

    item: Item


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, chunk_size: int
) -> Iterator[Result | Crashed[Item]]:
    """Call a function for every item, in several processes; results come in the order of the items.

    A process that dies takes its chunk with it: the items of the chunks under way are then tried one by one, and the one
    that kills again is given up as ``Crashed``.

    Args:
        function: of a module, so that it can be sent to a process; raises nothing on bad items.
        items: are consumed as they are needed.
        workers: number of processes.
        chunk_size: items sent at once.
    """
    left = iter(items)
    chunks = iter(lambda: list(islice(left, chunk_size)), [])
    pending: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            try:
                for chunk in islice(chunks, workers * _CHUNKS_AHEAD - len(pending)):
                    pending.append((chunk, _submit(pool, function, chunk)))
                if not pending:
                    return
                results = pending[0][1].result()
            except BrokenProcessPool:
                pool.shutdown(cancel_futures=True)
                for chunk, _ in pending:
                    yield from _one_by_one(function, chunk)
                pending.clear()
                pool = _pool(workers)
            else:
                pending.popleft()
                yield from results
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable[[Item], Result], chunk: list[Item]) -> Future[list[Result]]:
    try:
        return pool.submit(_call, function, chunk)
    except BrokenProcessPool as error:  # refused at once where a process died meanwhile: fails like the others
        failed: Future[list[Result]] = Future()
        failed.set_exception(error)
        return failed


def _call(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]


def _one_by_one(function: Callable[[Item], Result], chunk: list[Item]) -> Iterator[Result | Crashed[Item]]:
    pool = _pool(1)
    try:
        for item in chunk:
            try:
                yield pool.submit(function, item).result()
            except BrokenProcessPool:
                yield Crashed(item)
                pool.shutdown()
                pool = _pool(1)
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, because a process that is forked while threads run can hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_follow_parent)


def _follow_parent() -> None:
    """Ctrl-C reaches every process of the terminal, but only the parent should speak; and if it is killed, this one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, a worker waits for ever for the work of a parent that was killed, or writes beside its successor."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only called in processes that were started by another"
    wait([parent.sentinel])
    os._exit(1)
