"""Items of compositional benchmarks among the clips: which clips belong together, and what is missing."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clapkit.errors import ManifestError
from clapkit.types import Clip

THIRD = "simultaneous"
"""Role of the clip that makes a triple of a pair."""

KEYS = ("compa", "group")
"""Keys of ``Clip.extra`` that say where a clip stands, each an object with ``item``, ``role`` and ``task``."""

_DEFAULT_TASK = "items"
_TASK = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a clip stands in a benchmark.

    Attributes:
        task: the part of the benchmark; in names of metrics.
        item: what clips that belong together share.
        role: of the clip in its item.
    """

    task: str
    item: str
    role: str


@dataclass(slots=True)
class Items:
    """The items of one task that can be scored, and how many cannot.

    Attributes:
        pairs: item -> rows of its two clips, by role.
        triples: item -> rows of its three clips, the one with the role ``THIRD`` last.
        num_incomplete: items that lack a clip or a caption.
        num_incomplete_triples: items that lack their third clip, or its caption, only.
    """

    pairs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    triples: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_incomplete: int = 0
    num_incomplete_triples: int = 0


def place_of(clip: Clip) -> Place | None:
    """Where a clip stands; None if it is in no item.

    ``extra["compa"]`` is what the recipe ``compa`` writes; ``extra["group"]`` is for any other data:
    ``{"item": 7, "role": "pair"}``, with ``"task"`` where there is more than one.

    Raises:
        ManifestError: if what it says cannot be read.
    """
    key = next((key for key in KEYS if key in clip.extra), None)
    if key is None:
        return None
    given = clip.extra[key]
    if not isinstance(given, Mapping) or "item" not in given or "role" not in given:
        raise ManifestError(f'clip {clip.id}: extra.{key} is {given!r}, expected {{"item": ..., "role": ...}}; correct it')
    task = str(given.get("task", _DEFAULT_TASK))
    if not _TASK.fullmatch(task):
        raise ManifestError(f"clip {clip.id}: task {task!r} of extra.{key}, expected small letters, digits and underscores")
    return Place(task, str(given["item"]), str(given["role"]))


def find_items(clips: Sequence[Clip], everything: Iterable[Clip]) -> dict[str, Items]:
    """Task -> its items, sorted.

    Args:
        clips: those that were embedded.
        everything: all clips of the split, embedded or not: it says which items there are, and which clips they should have.

    Raises:
        ManifestError: if a clip says its place wrongly, two clips have the same one, or an item has more than two clips
            beside the third.
    """
    there: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for row, clip in enumerate(clips):
        place = place_of(clip)
        if place is not None and clip.captions:
            there[place.task, place.item][place.role] = row
    found: dict[str, Items] = {}
    # Numbers of items sort as numbers.
    for (task, item), roles in sorted(_roles(everything).items(), key=lambda entry: (entry[0][0], len(entry[0][1]), entry[0])):
        items = found.setdefault(task, Items())
        rows = there[task, item]
        pair = sorted(roles - {THIRD})
        if len(pair) < 2 or any(role not in rows for role in pair):
            items.num_incomplete += 1
            continue
        items.pairs[item] = tuple(rows[role] for role in pair)
        if THIRD in rows:
            items.triples[item] = (*items.pairs[item], rows[THIRD])
        elif THIRD in roles:
            items.num_incomplete_triples += 1
    return found


def _roles(clips: Iterable[Clip]) -> dict[tuple[str, str], set[str]]:
    """Task and item -> roles of its clips."""
    counts = Counter(place for clip in clips if (place := place_of(clip)) is not None)
    roles: dict[tuple[str, str], set[str]] = defaultdict(set)
    for place, count in counts.items():
        if count > 1:
            raise ManifestError(
                f"item {place.item} of {place.task}: {count} clips with the role {place.role!r}, expected one; correct them"
            )
        roles[place.task, place.item].add(place.role)
    for (task, item), known in roles.items():
        if len(known - {THIRD}) > 2:
            listing = ", ".join(sorted(known - {THIRD}))
            raise ManifestError(f"item {item} of {task}: clips with the roles {listing}, expected two beside {THIRD!r}")
    return roles
