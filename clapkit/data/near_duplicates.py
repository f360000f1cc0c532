"""Finds recordings that occur twice, from the landmarks of ``clapkit.data.acoustic``.

Two files that hold the same recording share landmarks, all with the same time between them. All landmarks of all files are
sorted once; equal ones then lie side by side, and every two of them vote for a pair of files and an offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clapkit.data.acoustic import FRAME_S, NUM_FREQUENCIES, frequencies, unpack

MIN_VOTES = 8
"""Different landmarks that must agree on an offset."""
MIN_FREQUENCIES = 7
"""Different frequencies that these must contain: machines hum alike, but on few frequencies."""
MIN_SHARE = 0.01
"""Least share of the landmarks of the file that has fewer."""

# A landmark that many files have says little; each of its rows is compared with this many others, which keeps memory
# linear and still links a chain of copies.
_MAX_PARTNERS = 32
# Votes that are counted at a time; about 60 bytes each.
_MAX_VOTES_AT_ONCE = 1 << 24
_OFFSET_BITS, _CLIP_BITS = 18, 22
_ZERO_OFFSET = 1 << (_OFFSET_BITS - 1)


@dataclass(frozen=True, slots=True)
class Match:
    """Two files that hold the same recording, or parts of it.

    Attributes:
        first: place of the one in its list.
        second: place of the other.
        offset_s: how much later the shared sound comes in the second.
        votes: different landmarks that agree.
        share: votes over the landmarks of the file that has fewer.
    """

    first: int
    second: int
    offset_s: float
    votes: int
    share: float


def find_matches(landmarks: Sequence[bytes], others: Sequence[bytes] | None = None) -> list[Match]:
    """Find pairs of files that hold the same recording.

    Args:
        landmarks: of every file, as ``Listener.landmarks`` gives them.
        others: landmarks of a second corpus; None looks for pairs within ``landmarks``.

    Returns:
        One match per pair, with the offset that most landmarks agree on, in the order of ``first`` and ``second``. Within one
        list ``first < second``.

    Raises:
        ValueError: if there are more than four million files.
    """
    files = [*landmarks, *(others or ())]
    if len(files) >= 1 << _CLIP_BITS:
        raise ValueError(f"{len(files)} files to compare, expected fewer than {1 << _CLIP_BITS}")
    num_first = None if others is None else len(landmarks)
    sizes = np.array([len(unpack(packed)[0]) for packed in files], np.int64)
    rows = _sorted_rows(files, sizes)
    partners = _partners(rows, num_first)
    return [
        match
        for low, high in _chunks(rows, partners, len(files))
        for match in _matches(rows, partners, sizes, low, high, shift=num_first or 0)
    ]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Landmarks of all files in the order of hash and file; a hash occurs once per file, and in two files at least."""

    hash: np.ndarray
    clip: np.ndarray
    frame: np.ndarray


@dataclass(frozen=True, slots=True)
class _Partners:
    """The rows that each row votes with: ``count`` of them, from ``start`` on."""

    start: np.ndarray
    count: np.ndarray


def _sorted_rows(files: Sequence[bytes], sizes: np.ndarray) -> _Rows:
    keys = np.empty(sizes.sum(), np.uint64)
    frames = np.empty(len(keys), np.uint32)
    end = 0
    for packed in files:
        hashes, times = unpack(packed)
        start, end = end, end + len(hashes)
        keys[start:end] = hashes
        frames[start:end] = times
    # Hash and place in one number, because sorting numbers is several times as fast as sorting places by a key.
    keys <<= np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    hashes = (keys >> np.uint64(32)).astype(np.uint32)
    follows = np.zeros(len(keys) + 1, bool)
    follows[1:-1] = hashes[1:] == hashes[:-1]
    shared = follows[1:] | follows[:-1]
    places = keys[shared].astype(np.uint32)  # the lower half
    clips = np.repeat(np.arange(len(files), dtype=np.uint32), sizes)
    return _Rows(hashes[shared], clips[places], frames[places])


def _partners(rows: _Rows, num_first: int | None) -> _Partners:
    """The rows behind each row that have its hash; of the second list only, if there are two."""
    num_rows = len(rows.hash)
    ends = np.append(np.flatnonzero(rows.hash[1:] != rows.hash[:-1]) + 1, num_rows).astype(np.uint32)
    group_sizes = np.diff(ends, prepend=np.uint32(0))
    end = np.repeat(ends, group_sizes)
    start = np.arange(1, num_rows + 1, dtype=np.uint32)
    if num_first is not None:
        is_first = rows.clip < num_first
        num_firsts = np.add.reduceat(is_first, ends - group_sizes, dtype=np.uint32) if num_rows else group_sizes
        start = np.repeat(ends - group_sizes + num_firsts, group_sizes)
        end = np.where(is_first, end, start)
    end -= start
    return _Partners(start, np.minimum(end, _MAX_PARTNERS, out=end).astype(np.uint8))


def _chunks(rows: _Rows, partners: _Partners, num_files: int) -> Iterator[tuple[int, int]]:
    """Ranges of files that cast a bounded number of votes together."""
    votes = np.zeros(num_files, np.int64)
    np.add.at(votes, rows.clip, partners.count)
    votes = votes.cumsum()
    low = 0
    while low < num_files:
        limit = (votes[low - 1] if low else 0) + _MAX_VOTES_AT_ONCE
        high = max(int(np.searchsorted(votes, limit, "right")), low + 1)
        yield low, high
        low = high


def _matches(rows: _Rows, partners: _Partners, sizes: np.ndarray, low: int, high: int, *, shift: int) -> Iterator[Match]:
    """The matches of files ``low`` to ``high`` with files behind them; ``shift`` is taken off the place of the second."""
    left = np.flatnonzero((rows.clip >= low) & (rows.clip < high) & (partners.count > 0))
    count = partners.count[left].astype(np.int64)
    before = np.repeat(np.cumsum(count) - count, count)
    right = np.arange(len(before))
    right -= before
    right += np.repeat(partners.start[left], count)
    left = np.repeat(left, count)
    votes = rows.clip[left].astype(np.int64) << _CLIP_BITS | rows.clip[right]
    votes <<= _OFFSET_BITS
    votes |= rows.frame[right].astype(np.int64) - rows.frame[left] + _ZERO_OFFSET
    winners = _winners(votes)
    if not len(winners):
        return
    in_match = np.zeros(len(sizes), bool)
    in_match[winners >> (_OFFSET_BITS + _CLIP_BITS)] = True
    maybe = np.flatnonzero(in_match[rows.clip[left]])
    match = np.searchsorted(winners, votes[maybe], "right") - 1
    # An offset lies between two frames as a rule, so that its votes fall on both.
    lag = votes[maybe] - winners[match]
    agrees = (match >= 0) & (lag <= 1)
    match, lag, left = match[agrees], lag[agrees], left[maybe[agrees]]
    num_votes = np.bincount(match, minlength=len(winners))
    mean_lag = np.bincount(match, lag, len(winners)) / num_votes
    present = np.zeros((len(winners), NUM_FREQUENCIES), bool)
    for bins in frequencies(rows.hash[left]):
        present[match, bins] = True
    first = winners >> (_OFFSET_BITS + _CLIP_BITS)
    second = winners >> _OFFSET_BITS & ((1 << _CLIP_BITS) - 1)
    offset_s = ((winners & ((1 << _OFFSET_BITS) - 1)) - _ZERO_OFFSET + mean_lag) * FRAME_S
    share = num_votes / np.minimum(sizes[first], sizes[second])
    for place in np.flatnonzero((present.sum(axis=1) >= MIN_FREQUENCIES) & (share >= MIN_SHARE)):
        yield Match(
            int(first[place]),
            int(second[place]) - shift,
            float(offset_s[place]),
            int(num_votes[place]),
            float(share[place]),
        )


def _winners(votes: np.ndarray) -> np.ndarray:
    """For every pair of files with enough votes, the one (of pair and offset) that most agree with, sorted."""
    ordered = np.sort(votes)
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    kinds, counts = ordered[starts], np.diff(starts, append=len(ordered))
    neighbour = np.append(kinds[1:] == kinds[:-1] + 1, False)
    counts = counts + np.where(neighbour, np.roll(counts, -1), 0)
    enough = counts >= MIN_VOTES
    kinds, counts = kinds[enough], counts[enough]
    if not len(kinds):
        return kinds
    pairs = kinds >> _OFFSET_BITS
    pair_starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    # Most votes first, the smallest offset among equals.
    late = kinds & ((1 << _OFFSET_BITS) - 1)
    best = np.maximum.reduceat(counts << _OFFSET_BITS | ((1 << _OFFSET_BITS) - 1 - late), pair_starts)
    return pairs[pair_starts] << _OFFSET_BITS | ((1 << _OFFSET_BITS) - 1 - (best & ((1 << _OFFSET_BITS) - 1)))
