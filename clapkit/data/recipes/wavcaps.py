"""WavCaps: 403,050 recordings of four sources, one sentence each, written by a language model from raw descriptions.

Origin: X. Mei et al., WavCaps: a ChatGPT-assisted weakly-labelled audio captioning dataset for audio-language multimodal
research, IEEE/ACM TASLP 2024. Licence: academic use only; the recordings have licences of their own.
Layout: JSON files ``{"num_captions_per_audio": 1, "data": [...]}``, usually ``json_files/FreeSound/fsd_final.json`` and so
on, anywhere in the folder or in two levels of folders in it (or one such file as the source), and FLAC files ``{id}.flac``, in
folders named after the sources or all in one. The field ``audio`` is a path of the authors' machine and is ignored.
Counts: FreeSound 262,300, BBC Sound Effects 31,201, SoundBible 1,232, AudioSet_SL 108,317 items, 6 of them without audio.
There is no official split and the field trains on everything, so every clip is ``train``; ``--split`` says otherwise.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clapkit.data.recipes._captioned import without_empty_captions
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root
from clapkit.data.recipes._table_cells import RowError, read_text
from clapkit.data.recipes._wavcaps_lists import SOURCES, Blacklist, Item, item_stem, read_blacklist, read_items
from clapkit.errors import ConfigError
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

OFFICIAL_CLIPS = {"freesound": 262300, "bbc": 31201, "soundbible": 1232, "audioset": 108317}

_KEPT = ("title", "description", "author", "href")
# Part of a folder's name, in lower case -> the source whose audio it holds.
_FOLDER_MARKS = {"freesound": "freesound", "fsd": "freesound", "bbc": "bbc", "soundbible": "soundbible", "audioset": "audioset"}


def build(sources: str | None = None, exclude: str | None = None) -> Recipe:
    """WavCaps.

    Args:
        sources: which to read, separated by commas: ``freesound``, ``bbc``, ``soundbible``, ``audioset``. Default: all.
        exclude: files with ids to leave out, separated by commas: blacklists of WavCaps (JSON), or tables with a column
            ``sound_id`` of Freesound (CSV).

    Raises:
        ConfigError: if there is no such source.
    """
    chosen = SOURCES if sources is None else tuple(name.strip().lower() for name in sources.split(","))
    unknown = [name for name in chosen if name not in SOURCES]
    if unknown:
        raise ConfigError(f"option sources={sources}: {unknown[0]!r} is no source of WavCaps, expected {', '.join(SOURCES)}")
    paths = () if exclude is None else tuple(Path(name.strip()).expanduser() for name in exclude.split(","))
    return WavCaps(sources=chosen, exclude=paths)


class WavCaps:
    """Reads the JSON files; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, sources: Sequence[str], exclude: Sequence[Path]) -> None:
        self.sources, self.exclude = tuple(sources), tuple(exclude)
        self._items: Counter[str] = Counter()
        self._excluded: dict[str, Counter[str]] = {}
        self._folders: dict[str, list[str]] = {}

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, file by file.

        Raises:
            ManifestError: if there is no list of WavCaps, or a list or blacklist cannot be read.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        blacklists = {path.name: read_blacklist(path) for path in self.exclude}
        self._items = Counter()
        self._excluded = {name: Counter() for name in blacklists}
        files = AudioFiles.scan(audio_root(request))
        self._folders = _source_folders(files.root)
        items = [self._item(item, blacklists, files) for item in read_items(request.source, request.reporter)]
        claims = Counter(item.audio for item in items if isinstance(item, Clip))
        for item in items:
            if isinstance(item, Clip) and claims[item.audio] > 1:
                yield Rejection(
                    item.id,
                    f"audio {item.audio} goes by the id of {claims[item.audio]} items, expected one; FreeSound and SoundBible "
                    "number alike: put the audio of each source into a folder named after it",
                    split="train",
                )
            elif isinstance(item, Clip):
                yield from without_empty_captions(item)
            else:
                yield item

    def _item(self, item: Item, blacklists: dict[str, Blacklist], files: AudioFiles) -> Clip | Rejection:
        clip_id = f"wavcaps/{item.source}/{item.id}"
        if item.problem is not None:
            return Rejection(item.place, item.problem, split="train")
        if item.source not in self.sources:
            return Rejection(clip_id, f"source {item.source} is not among those asked for", "excluded", split="train")
        self._items[item.source] += 1
        for name, blacklist in blacklists.items():
            if item.id in blacklist.get(item.source, ()):
                self._excluded[name][item.source] += 1
                return Rejection(clip_id, f"on the blacklist {name}", "excluded", split="train")
        duration_s = item.cells.get("duration")
        if isinstance(duration_s, int | float) and duration_s <= 0:
            reason = f"duration {duration_s:g} s in the list, expected more than 0; drop the item"
            return Rejection(clip_id, reason, split="train")
        try:
            text = _text(item.cells.get("caption"))
            extra = _extra(item.cells)
        except RowError as error:
            return Rejection(clip_id, str(error), split="train")
        name = f"{item_stem(item)}.flac"
        audio = files.find([name], folders=self._folders[item.source])
        # FreeSound and SoundBible number alike: a file in the folder of another source is another recording.
        if audio is None or _source_of_folders(audio.split("/")[:-1]) not in (None, item.source):
            return files.missing(clip_id, [name], split="train", source=_recording(item, clip_id))
        return Clip(
            id=clip_id, audio=audio, captions=(Caption(text),), split="train", source=_recording(item, clip_id), extra=extra
        )

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Count the items of each source, and what the blacklists took away."""
        facts = {
            "captions": "WavCaps",
            "items": dict(self._items),
            "official_items": {source: OFFICIAL_CLIPS[source] for source in self._items},
            "blacklisted": {name: dict(counts) for name, counts in self._excluded.items()},
        }
        warnings = [
            f"blacklist {name}: takes away no item of {', '.join(self._items)}; is it the right one?"
            for name, counts in self._excluded.items()
            if not counts
        ]
        return CorpusDescription({"train": sum(OFFICIAL_CLIPS[source] for source in self._items)}, facts, warnings)


def _source_folders(root: Path) -> dict[str, list[str]]:
    """Source -> names of the folders that hold its audio, as they are called here."""
    folders: dict[str, list[str]] = {source: [] for source in SOURCES}
    for depth in ("*/", "*/*/"):
        for path in sorted(root.glob(depth)):
            source = _source_of_folders([path.name])
            if source is not None:
                folders[source].append(path.name)
    return folders


def _source_of_folders(folders: Sequence[str]) -> str | None:
    """The source that the innermost telling folder name names."""
    for folder in reversed(folders):
        for mark, source in _FOLDER_MARKS.items():
            if mark in folder.lower():
                return source
    return None


def _recording(item: Item, clip_id: str) -> str:
    """Global name of the recording."""
    if item.source == "audioset":
        return f"youtube/{item.id}" if len(item.id) == 11 else clip_id
    return f"{item.source}/{item.id}"


def _extra(cells: Any) -> dict[str, Any]:
    extra: dict[str, Any] = {name: text for name in _KEPT if (text := _text(cells.get(name)).strip())}
    for name in ("tags", "category"):
        listed = _as_list(cells.get(name))
        if listed:
            extra[name] = listed
    return extra


def _as_list(value: Any) -> list[str]:
    """A list, also one that was printed as text, as BBC categories are."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = [value]  # a text that merely starts with a bracket
    values = value if isinstance(value, list) else [value]
    return [text for item in values if (text := _text(item).strip())]


def _text(value: Any) -> str:
    """A cell as text; a million cells are read, and almost all are ASCII, which needs no look at each character."""
    return value if isinstance(value, str) and value.isascii() else read_text(value)
