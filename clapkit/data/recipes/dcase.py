"""Retrieval sets of the DCASE challenge (language-based audio retrieval, 2022 to 2025), made of Clotho and Freesound.

Origin: H. Xie et al., DCASE task 6B (2022, 2023), task 8 (2024), task 6 (2025). Licence: captions for research, every recording
has a Creative Commons licence of its own.
Layout: a folder with tables and audio, or one table. Each table is known by its columns:
``fname,raw_text,text`` is the caption table of the baseline, one row per caption; ``file_name,caption_1,...`` is one of Clotho;
``caption`` alone holds queries without truth, ``caption,file_name`` queries with it (names on disk have ``_`` for ``:``);
a query and a clip column (names by option) hold judgements of relevance, one pair a row, or a printed list of clips.
Counts: 1,000 clips and 1,000 queries in the evaluation set of 2022; 1,045 clips in the development-testing set (Clotho
evaluation). Everything is ``test`` unless a table is named after another split of Clotho.

The annotations of 2025 could not be seen when this was written: programs that read them use the columns ``query`` and
``audio_filenames`` (a printed list), which are known here. Whatever the columns are called, the options name them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._dcase_tables import Columns, Corpus, Named, read_corpus, tidy
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root
from clapkit.data.recipes._split_names import SPLIT_FOLDERS
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection, Relevance


def build(
    query_column: str | None = None,
    clip_column: str | None = None,
    grade_column: str | None = None,
    text: Literal["raw_text", "text"] = "raw_text",
    gallery: Literal["auto", "listed", "all"] = "auto",
) -> Recipe:
    """Retrieval sets of DCASE.

    Args:
        query_column: column with the query in a table of relevance. Default: ``query``, or ``caption``.
        clip_column: column with the clip in it. Default: ``audio_filenames``, ``file_name``, ``fname`` or ``clip``.
        grade_column: column with the grade in it. Default: ``relevance``, ``grade`` or ``score``; without one, every pair is 1.
        text: column of the caption table of the baseline that becomes the caption.
        gallery: audio that becomes clips: only what tables name (``listed``), every file (``all``), or ``auto``: every file
            where a table holds queries that name no clip.
    """
    columns = Columns(query=query_column, clip=clip_column, grade=grade_column, text=text)
    return Dcase(columns=columns, gallery=gallery)


class Dcase:
    """Reads the tables; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, columns: Columns, gallery: Literal["auto", "listed", "all"]) -> None:
        self.columns, self.gallery = columns, gallery
        self._corpus = Corpus()
        self._name_of: dict[str, str] = {}

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips that tables name, then the rest of the gallery.

        Raises:
            ManifestError: if no table is known by its columns, or an option names a column that none has.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        self._corpus = read_corpus(request.source, self.columns, request.reporter)
        self._name_of = {}
        files = AudioFiles.scan(audio_root(request))
        yield from self._corpus.rejections
        used: set[str] = set()
        for named in self._corpus.clips.values():
            item = self._listed(named, files)
            if isinstance(item, Clip):
                used.add(item.audio)
                self._name_of.setdefault(tidy(named.name), item.id)
                yield from _empty_captions(item.id, named)
            yield item
        if self.gallery == "all" or (self.gallery == "auto" and self._corpus.queries):
            yield from self._others([audio for audio in _audio_below(files.root) if audio not in used])

    def _others(self, paths: Sequence[str]) -> Iterator[Clip]:
        """Clips of the gallery that no table names."""
        taken = Counter(_stem(path) for path in paths)
        taken.update(_stem(named.name) for named in self._corpus.clips.values())
        for path in paths:
            # Files that share a name in two folders or formats are told apart by the whole path.
            clip_id = f"dcase/test/{_stem(path) if taken[_stem(path)] == 1 else path}"
            self._name_of.setdefault(tidy(path), clip_id)
            source = self._corpus.recordings.get(tidy(path), clip_id)
            yield Clip(id=clip_id, audio=path, split="test", source=source)

    def _listed(self, named: Named, files: AudioFiles) -> Clip | Rejection:
        clip_id = f"dcase/{named.split}/{_stem(named.name)}"
        # The archives hold names that every file system can: the colons became underscores.
        names = list(dict.fromkeys([named.name, named.name.replace(":", "_")]))
        audio = files.find(names, folders=SPLIT_FOLDERS[named.split])
        if audio is None:
            return files.missing(clip_id, names, split=named.split)
        return Clip(
            id=clip_id,
            audio=audio,
            captions=tuple(Caption(text.strip()) for text in named.captions if text.strip()),
            split=named.split,
            source=self._corpus.recordings.get(tidy(named.name), clip_id),
        )

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Hand on the judgements, with a warning where they name clips that are not there."""
        usable = {clip.id for clip in clips}
        relevance, lost = [], []
        for query, name, grade in self._corpus.judgements:
            clip_id = self._name_of.get(tidy(name))
            if clip_id in usable and clip_id is not None:
                relevance.append(Relevance(query, clip_id, grade))
            else:
                lost.append(name)
        warnings = []
        if lost:
            warnings.append(
                f"judgements of relevance about clips that are not there: {len(lost)}, first: {lost[0]}; "
                "results on fewer clips are not comparable"
            )
        repeated = [text for text, count in Counter(self._corpus.queries).items() if count > 1]
        if repeated:
            warnings.append(
                f"queries with the text of another: {len(repeated)}, first: {repeated[0]!r}; official scores clash on them"
            )
        if self._corpus.queries and not self._corpus.judgements:
            warnings.append(f"queries without truth: {len(self._corpus.queries)}; search with them; scores need annotations")
        facts = {
            "tables": self._corpus.kinds,
            "queries_without_clip": len(self._corpus.queries),
            "judged_queries": len({judgement.query for judgement in relevance}),
            "judgements": len(relevance),
            "clips_without_captions": sum(not clip.captions for clip in clips),
        }
        official = Counter(named.split for named in self._corpus.clips.values())
        return CorpusDescription(dict(official), facts, warnings, relevance)


def _empty_captions(clip_id: str, named: Named) -> Iterator[Rejection]:
    for number, text in enumerate(named.captions, start=1):
        if not text.strip():
            reason = "empty, expected a sentence; fill it in or drop it"
            yield Rejection(f"{clip_id} caption {number}", reason, check="empty_caption", split=named.split)


def _stem(name: str) -> str:
    path = PurePosixPath(name.strip())
    return (path.name.removesuffix(path.suffix) if path.suffix.lower() in AUDIO_SUFFIXES else path.name).strip()


def _audio_below(root: Path) -> list[str]:
    """Every visible audio file of the gallery, relative to its root."""
    paths = (path.relative_to(root) for path in sorted(root.rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES)
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
