"""Language tags in one spelling, so that a language is counted once whatever its case.

Reference: Phillips and Davis, Tags for identifying languages, 2009, RFC 5646 (BCP 47), section 2.1.1.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

from clapkit.types import Clip


@functools.lru_cache(maxsize=4096)
def normal_tag(tag: str) -> str:
    """A language tag as BCP 47 writes it: ``en``, ``en-US``, ``zh-Hant-TW``; an underscore is taken for a hyphen.

    Args:
        tag: ISO 639 language, with script and region or without, in any case.
    """
    parts = tag.strip().replace("_", "-").lower().split("-")
    # Behind a letter that stands alone come subtags of other kinds, all in lower case.
    private = next((number for number, part in enumerate(parts) if len(part) == 1), len(parts))
    shaped = [{2: part.upper(), 4: part.capitalize()}.get(len(part), part) for part in parts[1:private]]
    return "-".join([parts[0], *shaped, *parts[max(1, private) :]])


def with_normal_tags(clips: Iterable[Clip]) -> list[Clip]:
    """The clips, with the languages of their captions as ``normal_tag`` writes them."""
    return [_with_normal_tags(clip) for clip in clips]


def _with_normal_tags(clip: Clip) -> Clip:
    if all(normal_tag(caption.lang) == caption.lang for caption in clip.captions):
        return clip
    return replace(clip, captions=tuple(replace(caption, lang=normal_tag(caption.lang)) for caption in clip.captions))
