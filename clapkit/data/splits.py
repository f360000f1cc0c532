"""Seeded splits of corpora that come without one; clips of one source never fall in two splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip

DEFAULT_SHARE = 0.1
# With ten sources a tenth of them is one.
MIN_SOURCES = 10


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of a corpus goes where; the rest is ``train``.

    Attributes:
        val: share of the clips.
        test: share of the clips.
        required: the user asked for these shares: too little data is an error, not everything in ``train``.
    """

    val: float = DEFAULT_SHARE
    test: float = DEFAULT_SHARE
    required: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ConfigError(
                f"val_share={self.val} test_share={self.test}: expected shares of at least 0 that leave something to train"
            )


@runtime_checkable
class HasShares(Protocol):
    """A recipe that lets the user choose the shares of its splits."""

    shares: Shares


def read_shares(val_share: float | None, test_share: float | None) -> Shares:
    """Shares from the options of a recipe; None means not given.

    Raises:
        ConfigError: if they leave nothing to train.
    """
    return Shares(
        val=DEFAULT_SHARE if val_share is None else val_share,
        test=DEFAULT_SHARE if test_share is None else test_share,
        required=val_share is not None or test_share is not None,
    )


def assign(clips: Sequence[Clip], sources: Sequence[str], *, shares: Shares, seed: int) -> list[Clip]:
    """Put clips without a split into ``train``, ``val`` and ``test``.

    Args:
        clips: none of them with a split.
        sources: what each clip was cut from; one split for each.
        shares: of ``val`` and ``test``. With fewer than ten sources everything goes to ``train``, unless they are required.
        seed: of the draw, which depends on the set of sources, not on their order.

    Returns:
        The clips, in their order, each with a split.

    Raises:
        ManifestError: if the shares are required and there are fewer sources than splits.
    """
    sizes = Counter(sources)
    wanted = {"test": shares.test, "val": shares.val}
    num_splits = 1 + sum(share > 0 for share in wanted.values())
    if shares.required and len(sizes) < num_splits:
        raise ManifestError(
            f"not enough data for the split: {len(sizes)} sources found, expected at least {num_splits} for {num_splits} "
            "splits; add clips, set val_share and test_share to 0, or pass --split"
        )
    if not shares.required and len(sizes) < MIN_SOURCES:
        return [clip.in_split("train") for clip in clips]
    generator = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    for name, share in wanted.items():
        left = {source: size for source, size in sizes.items() if source not in split_of}
        # One source at least stays for each split that is still to come.
        num_reserved = 1 + (name == "test" and shares.val > 0)
        drawn = draw(left, size=share * len(clips), generator=generator, max_sources=len(left) - num_reserved)
        split_of |= dict.fromkeys(drawn, name)
    return [clip.in_split(split_of.get(source, "train")) for clip, source in zip(clips, sources, strict=True)]


def draw(sizes: Mapping[str, int], *, size: float, generator: np.random.Generator, max_sources: int) -> set[str]:
    """Draw sources until they hold about ``size`` clips.

    Args:
        sizes: number of clips of every source.
        size: number of clips wanted; for more than 0 at least one source is drawn, the smallest if all are too large.
        generator: what draws.
        max_sources: draw no more than these.
    """
    if size <= 0 or max_sources < 1:
        return set()
    names = sorted(sizes)
    shuffled = [names[i] for i in generator.permutation(len(names))]
    target = max(1, round(size))
    drawn: set[str] = set()
    num_drawn = 0
    for name in shuffled:
        if num_drawn + sizes[name] <= target and len(drawn) < max_sources:
            drawn.add(name)
            num_drawn += sizes[name]
    return drawn or {min(shuffled, key=lambda name: sizes[name])}


def join_sources(ids: Sequence[str], sources: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Join the sources of clips that belong together, such as two files that sound alike.

    Args:
        ids: of the clips.
        sources: of the clips.
        pairs: ids of clips that belong together; joining is handed on.

    Returns:
        A source for each clip, the first of those that were joined.
    """
    source_of = dict(zip(ids, sources, strict=True))
    parent = {source: source for source in sources}

    def root(source: str) -> str:
        while parent[source] != source:
            parent[source] = source = parent[parent[source]]
        return source

    for first, second in pairs:
        a, b = root(source_of[first]), root(source_of[second])
        parent[max(a, b)] = min(a, b)
    return [root(source) for source in sources]
