"""Which clips and captions of a corpus are wanted: languages, filters, captions from labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from clapkit.data.language_tags import normal_tag
from clapkit.errors import ConfigError, ManifestError
from clapkit.index.where import Where
from clapkit.types import Caption, Clip, Rejection

DEFAULT_TEMPLATE = "This is a sound of {}."
NO_TEMPLATE = "none"

# Column of --where -> what it is of a clip.
_COLUMNS: dict[str, Callable[[Clip], Any]] = {
    "id": lambda clip: clip.id,
    "audio": lambda clip: clip.audio,
    "split": lambda clip: clip.split,
    "fold": lambda clip: clip.fold,
    "source": lambda clip: clip.source,
    "labels": lambda clip: clip.labels,
    "captions": lambda clip: tuple(caption.text for caption in clip.captions),
    "num_captions": lambda clip: len(clip.captions),
    "duration_s": lambda clip: clip.duration_s,
    "sample_rate": lambda clip: clip.sample_rate,
    "num_channels": lambda clip: clip.num_channels,
}


def read_where(text: str | None) -> Where | None:
    """Read the filter of ``--where``.

    Raises:
        ConfigError: if it is no expression over the columns of a clip.
    """
    return None if text is None else Where(text, known=tuple(_COLUMNS))


def read_languages(text: str | None) -> frozenset[str] | None:
    """Read the languages of ``--languages``.

    Raises:
        ConfigError: if there is none.
    """
    if text is None:
        return None
    languages = frozenset(normal_tag(lang) for lang in text.split(",") if lang.strip())
    if not languages:
        raise ConfigError(f"--languages {text!r}: expected language tags separated by commas, for example en,fr")
    return languages


def read_templates(templates: Sequence[str]) -> tuple[str, ...] | None:
    """Read the templates of ``--template``.

    Returns:
        The templates, none at all for ``none``; None where nothing was said.

    Raises:
        ConfigError: if one has no place for the label.
    """
    if not templates:
        return None
    if tuple(templates) == (NO_TEMPLATE,):
        return ()
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"--template {template!r}: no place for the label, expected {{}} in it")
    return tuple(templates)


def keep_languages(clips: Iterable[Clip], languages: frozenset[str]) -> list[Clip | Rejection]:
    """Keep the captions in some languages, and the clips that still have one.

    Args:
        clips: of the corpus; those without any caption stay.
        languages: tags that are wanted.

    Raises:
        ManifestError: if no caption is in any of them.
    """
    items: list[Clip | Rejection] = []
    found: set[str] = set()
    for clip in clips:
        kept = tuple(caption for caption in clip.captions if caption.lang in languages)
        found.update(caption.lang for caption in clip.captions)
        if kept or not clip.captions:
            items.append(replace(clip, captions=kept))
        else:
            spoken = ", ".join(sorted({caption.lang for caption in clip.captions}))
            items.append(Rejection(clip.id, f"captions in {spoken}, not among --languages", "excluded", split=clip.split))
    if found and not found & languages:
        wanted, spoken = ", ".join(sorted(languages)), ", ".join(sorted(found))
        raise ManifestError(f"--languages {wanted}: no caption in any of them, languages found: {spoken}; name one of these")
    return items


def keep_where(clips: Sequence[Clip], where: Where) -> list[Clip | Rejection]:
    """Keep the clips that satisfy a filter."""
    columns = {name: [_COLUMNS[name](clip) for clip in clips] for name in where.columns}
    reason = f"does not satisfy --where {where.text}"
    return [
        clip if kept else Rejection(clip.id, reason, "excluded", split=clip.split)
        for clip, kept in zip(clips, where.mask(columns), strict=True)
    ]


def caption_by_labels(clips: Sequence[Clip], templates: Sequence[str]) -> list[Clip]:
    """Add captions made of labels to the clips that have labels.

    Args:
        clips: of the corpus; captions that they have stay in front.
        templates: sentences with ``{}`` in the place of the label, several labels as "a, b and c".
    """
    if not templates:
        return list(clips)

    def captioned(clip: Clip) -> Clip:
        if not clip.labels:
            return clip
        spoken = _enumerate(clip.labels)
        made = (Caption(template.replace("{}", spoken)) for template in templates)
        return replace(clip, captions=tuple(dict.fromkeys((*clip.captions, *made))))

    return [captioned(clip) for clip in clips]


def _enumerate(labels: Sequence[str]) -> str:
    *first, last = labels
    return f"{', '.join(first)} and {last}" if first else last
