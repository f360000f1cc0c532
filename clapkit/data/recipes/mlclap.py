"""Evaluation and training lists of WavCaps and ML-CLAP: several sentences per clip, in up to eight languages.

Origin: X. Mei et al., WavCaps, IEEE/ACM TASLP 2024; ML-CLAP, 2024. Licence: of the corpora that the lists are made of.
Layout: JSON ``{"num_captions_per_audio": 5, "data": [{"caption_1" ... "caption_5", "wav", "audio", "duration", "id"}]}``,
with ``source_lang_1`` ... (``eng_Latn``) in ML-CLAP, or items with ``{"captions": {language: [...]}}``: a list in JSON, one a
line in JSON lines, or one in a JSON file beside its audio. The source is a folder with such files or one of them. A file
called ``..._train``, ``..._val`` or ``..._test`` is that split.
Counts: the published test lists hold 957 clips of AudioCaps and 1,045 of Clotho, five English captions each; the translated
test lists behind the tables of the papers are not public.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._captioned import without_empty_captions
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, repeated
from clapkit.data.recipes._mlclap_items import ListedItem, read_items
from clapkit.data.recipes._split_names import SPLIT_FOLDERS
from clapkit.data.recipes._table_cells import RowError, read_text
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

LANGUAGES = {
    "eng_Latn": "en",
    "fra_Latn": "fr",
    "deu_Latn": "de",
    "spa_Latn": "es",
    "nld_Latn": "nl",
    "cat_Latn": "ca",
    "jpn_Jpan": "ja",
    "zho_Hans": "zh",
}
"""Language codes of the lists -> ISO 639-1."""

_CAPTION = re.compile(r"caption_(\d+)")
_AUDIOCAPS = re.compile(r"Y([A-Za-z0-9_-]{11})")


def build(normalize: bool = False) -> Recipe:
    """Lists of WavCaps and ML-CLAP.

    Args:
        normalize: write the captions as the authors do before they tokenise: lower case, a blank for every punctuation mark,
            runs of blanks as one.
    """
    return MlClap(normalize=normalize)


class MlClap:
    """Reads the lists; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, normalize: bool) -> None:
        self.normalize = normalize
        self._listed: Counter[str] = Counter()
        self._lists: dict[str, dict[str, None]] = {}

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, list by list.

        Raises:
            ManifestError: if there is no such list, or one cannot be read.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        self._listed, self._lists = Counter(), {}
        files = AudioFiles.scan(audio_root(request))
        first: dict[str, str] = {}
        for item in read_items(request.source):
            yield from self._item(item, files, first)

    def _item(self, item: ListedItem, files: AudioFiles, first: dict[str, str]) -> Iterator[Clip | Rejection]:
        try:
            names = _audio_names(item)
            clip_id = "/".join(part for part in ("mlclap", item.list_name, _stem(names[0])) if part)
            captions, rejections = self._captions(clip_id, item)
        except RowError as error:
            yield Rejection(item.place, str(error), split=item.split)
            return
        problem = repeated(first, clip_id, item.place)
        if problem is not None:
            yield Rejection(item.place, problem, split=item.split)
            return
        if item.split is not None:
            self._listed[item.split] += 1
            self._lists.setdefault(item.split, {})[item.list_name] = None
        audio = files.find(names, folders=SPLIT_FOLDERS.get(item.split or "", ()))
        if audio is None:
            source = _recording(item, names[0], clip_id)
            yield files.missing(clip_id, names, split=item.split, source=source)
            return
        yield from rejections
        clip = Clip(id=clip_id, audio=audio, captions=captions, split=item.split, source=_recording(item, names[0], clip_id))
        yield from without_empty_captions(clip) if captions or not rejections else (_unreadable(clip),)

    def _captions(self, clip_id: str, item: ListedItem) -> tuple[tuple[Caption, ...], list[Rejection]]:
        """Captions of an item in their order; those in a language that is not known are refused."""
        captions, rejections = [], []
        for place, text, code in _texts(item.cells):
            lang = LANGUAGES.get(code) or (code if code in LANGUAGES.values() else None)
            if lang is None:
                reason = f"language {code!r}, expected one of {', '.join(LANGUAGES)}; translate or drop it"
                rejections.append(Rejection(f"{clip_id} {place}", reason, check="language", split=item.split))
            else:
                captions.append(Caption(normalized(text) if self.normalize else text, lang))
        return tuple(captions), rejections

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Count the languages; a split is complete when every item of the lists is there."""
        languages = Counter(caption.lang for clip in clips for caption in clip.captions)
        facts = {
            "captions": "WavCaps/ML-CLAP lists",
            "normalized": self.normalize,
            "languages": dict(sorted(languages.items())),
        }
        warnings = [
            f"{split} holds the clips of {len(names)} lists ({', '.join(names)}), which makes one gallery of them; "
            "name one list to compare with others"
            for split, names in self._lists.items()
            if split != "train" and len(names) > 1
        ]
        return CorpusDescription(dict(self._listed), facts, warnings)


def normalized(text: str) -> str:
    """A caption as the authors clean it: lower case, a blank for every punctuation mark, runs of blanks as one."""
    marked = "".join(" " if _is_punctuation(character) else character for character in text.lower())
    return " ".join(marked.split())


def _is_punctuation(character: str) -> bool:
    # ASCII marks such as $ and + are symbols to Unicode, but punctuation to the authors.
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _texts(cells: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Place, text and language code of every caption of an item."""
    by_language = cells.get("captions")
    if isinstance(by_language, dict):
        for code, texts in by_language.items():
            for number, text in enumerate(texts if isinstance(texts, list) else [texts], start=1):
                yield f"caption {code} {number}", read_text(text), code
        return
    if by_language is not None:
        raise RowError(f"captions are a {type(by_language).__name__}, expected {{language: [texts]}}; correct the item")
    numbers = sorted(int(match[1]) for name in cells if (match := _CAPTION.fullmatch(name)))
    for number in numbers:
        value = cells[f"caption_{number}"]
        if value is not None:  # lists that are made of a table have the same fields for every clip
            yield f"caption {number}", read_text(value), read_text(cells.get(f"source_lang_{number}")) or "eng_Latn"


def _audio_names(item: ListedItem) -> list[str]:
    """Names under which the audio may lie; the ``id`` is a number or a hash in the lists of Clotho, so it comes last."""
    if item.own_name is not None:
        return [item.own_name]
    wav = read_text(item.cells.get("wav")).strip("/")
    audio = PurePosixPath(read_text(item.cells.get("audio"))).name
    names = [name for name in dict.fromkeys([wav, audio]) if name.strip()]
    names = names or [name for name in [read_text(item.cells.get("id"))] if name.strip()]
    if not names:
        raise RowError("no wav, audio or id, expected the name of a file in wav; fill it in or drop the item")
    return names


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return (path.stem if path.suffix.lower() in AUDIO_SUFFIXES else path.name).strip()


def _recording(item: ListedItem, name: str, clip_id: str) -> str:
    """Global name of the recording, the same that the recipes of AudioCaps and Clotho give."""
    stem = _stem(name)
    corpus = PurePosixPath(name).parts[0].lower() if "/" in name else item.list_name.lower()
    audiocaps = _AUDIOCAPS.fullmatch(stem)
    if audiocaps is not None:
        return f"youtube/{audiocaps[1]}"
    if corpus.startswith("clotho"):
        id = read_text(item.cells.get("id")).strip()
        if id.isdecimal():
            return f"freesound/{id}"
        return clip_id if item.split is None else f"clotho/{item.split}/{stem}"
    return clip_id


def _unreadable(clip: Clip) -> Rejection:
    return Rejection(clip.id, "no caption in a known language is left; drop the item", check="language", split=clip.split)
