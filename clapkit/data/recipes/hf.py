"""A Hugging Face data set on disk: what ``save_to_disk`` wrote, or a folder of Parquet files with an audio column.

Origin and licence: those of the data set. Layout: ``dataset_dict.json`` with a folder for each split, ``state.json`` with Arrow
files, ``data/train-00000-of-00001.parquet``, or one such file. Counts: one clip for every row. Nothing is downloaded.

The audio column is the one of type Audio, or else ``{bytes, path}``, or called as in ``table``. Stored bytes are written to
``audio/`` of the run directory, unchanged; decoded samples ``{array, sampling_rate}`` become WAV files that hold exactly these
samples (32-bit float; 64-bit only where 32 do not hold them); where only a path is stored, the file below the folder is used
where it lies. The other columns are found by the names that ``table`` knows; class numbers get the names that the data set
brings. What ``clapkit prepare --export hf`` wrote comes back as the clip that it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow

from clapkit.data.recipes._extraction import ROOT_NAME, Extraction, ExtractionError
from clapkit.data.recipes._hf_audio import Cell, CellError, MissingAudioError, is_audio_type, plain, read_cell
from clapkit.data.recipes._hf_files import DataFile, class_names, find_files, map_split, opened, read_features
from clapkit.data.recipes._stored_text import RECORD_KEY, ROW_KEY, TextError, read_captions, read_labels, read_record
from clapkit.data.recipes.table import AUDIO_COLUMNS, LABEL_COLUMNS, caption_columns
from clapkit.data.safe_paths import printable
from clapkit.data.splits import Shares, read_shares
from clapkit.errors import ManifestError
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection


def build(
    audio: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    split: str | None = None,
    fold: str | None = None,
    lang: str | None = None,
    id: str | None = None,
    source: str | None = None,
    language: str = "en",
    val_share: float | None = None,
    test_share: float | None = None,
) -> Recipe:
    """A Hugging Face data set on disk.

    Args:
        audio: column with the sound.
        caption: column, or several separated by commas, with captions.
        label: column with class names, or numbers that the data set names.
        split: column with ``train``, ``val``, ``test`` or another name. Default: ``split``, or what files and folders say.
        fold: column with a whole number.
        lang: column with the language of the captions.
        id: column with the id of the clip. Default: ``id``, or the file and the number of the row.
        source: column with the recording that a clip was cut from; clips with one source share a split.
        language: of captions for which no column says it.
        val_share: share of the clips for ``val``, where nothing says it. Default: 0.1.
        test_share: share of the clips for ``test``, where nothing says it. Default: 0.1.

    Raises:
        ConfigError: if the shares leave nothing to train.
    """
    given = {"audio": audio, "label": label, "split": split, "fold": fold, "lang": lang, "id": id, "source": source}
    return HuggingFace(
        given={key: name for key, name in given.items() if name is not None},
        captions=() if caption is None else tuple(name.strip() for name in caption.split(",")),
        language=language,
        shares=read_shares(val_share, test_share),
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column of a file holds what.

    Attributes:
        named: what a column holds -> its name.
        captions: columns with captions.
        extra: columns that are kept as they are.
        left_out: columns with bytes, which a manifest cannot hold.
        classes: names of the classes of the label column, if it holds numbers.
        has_record: whether there is a column with the manifest lines of an export.
        has_row: whether there is one with their places in the manifest.
    """

    named: Mapping[str, str]
    captions: tuple[str, ...]
    extra: tuple[str, ...]
    left_out: tuple[str, ...]
    classes: list[str] | None
    has_record: bool
    has_row: bool


@dataclass
class HuggingFace:
    """Reads the files; see ``build`` for the arguments.

    Attributes:
        given: what a column holds -> its name, as chosen by the user.
        captions: caption columns, as chosen by the user.
        language: of captions for which no column says it.
        shares: of ``val`` and ``test``.
        exported_rows: id of a clip that was exported -> its place in the manifest then.
    """

    given: Mapping[str, str]
    captions: tuple[str, ...]
    language: str
    shares: Shares
    needs_source: bool = True
    makes_audio: bool = True
    root_name: str = ROOT_NAME
    exported_rows: dict[str, int] = field(default_factory=dict, init=False)
    _num_files: int = field(default=0, init=False)

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the rows of every file, and write out their audio.

        Raises:
            ManifestError: if the source is no data set, or a column is missing.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        source = request.source
        files = find_files(source)
        self._num_files = len(files)
        folder = request.audio_dir or (source if source.is_dir() else source.parent)
        reading = _Reading(self, Extraction(request.output_dir / ROOT_NAME), folder)
        with request.reporter.track("reading files", len(files), "files") as tracker:
            for file in files:
                yield from self._read(file, reading, request)
                tracker.advance()

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how many files there are."""
        return CorpusDescription(facts={"num_files": self._num_files})

    def _read(self, file: DataFile, reading: _Reading, request: RecipeRequest) -> Iterator[Clip | Rejection]:
        number = 0
        with opened(file) as (schema, batches):
            columns = self._columns(schema, file)
            if columns.left_out:
                request.reporter.say(f"{file.path}: columns left out because they hold bytes: {', '.join(columns.left_out)}")
            try:
                for batch in batches:
                    for row in range(batch.num_rows):
                        yield from reading.row(file, columns, batch, row, number)
                        number += 1
            except (OSError, pyarrow.ArrowException) as error:
                reason = str(error).splitlines()[0]
                yield Rejection(
                    str(file.path), f"cannot be read after {number} rows ({reason}); what follows is lost, get it again"
                )

    def _columns(self, schema: pyarrow.Schema, file: DataFile) -> _Columns:
        features = read_features(schema, file)
        by_lower = {name.lower(): name for name in reversed(schema.names)}
        named = {key: by_lower[key] for key in ("split", "fold", "lang", "id") if key in by_lower}
        audio = _audio_column(schema, features, by_lower)
        if audio is not None:
            named["audio"] = audio
        label = next((by_lower[name] for name in LABEL_COLUMNS if name in by_lower), None)
        label = label or next((name for name in schema.names if class_names(features.get(name))), None)
        if label is not None:
            named["label"] = label
        for key, name in [*self.given.items(), *(("caption", name) for name in self.captions)]:
            if name not in schema.names:
                found = ", ".join(schema.names)
                raise ManifestError(f"{file.path}: no column {name!r}, columns found: {found}; correct -O {key}={name}")
        named |= self.given
        if "audio" not in named:
            raise ManifestError(
                f"{file.path}: no audio column, columns found: {', '.join(schema.names)}; expected one with {{bytes, path}} or "
                "{array, sampling_rate}; name it with -O audio=COLUMN"
            )
        captions = self.captions or tuple(caption_columns(name for name in schema.names if name not in named.values()))
        rest = [name for name in schema.names if name not in {*named.values(), *captions, RECORD_KEY, ROW_KEY}]
        left_out = tuple(name for name in rest if _holds_bytes(schema.field(name).type))
        return _Columns(
            named=named,
            captions=captions,
            extra=tuple(name for name in rest if name not in left_out),
            left_out=left_out,
            classes=class_names(features.get(named.get("label", ""))),
            has_record=RECORD_KEY in schema.names,
            has_row=ROW_KEY in schema.names,
        )


class _Reading:
    """What is remembered from row to row."""

    def __init__(self, recipe: HuggingFace, extraction: Extraction, folder: Path) -> None:
        self.recipe, self.extraction, self.folder = recipe, extraction, folder
        self.ids: set[str] = set()

    def row(
        self, file: DataFile, columns: _Columns, batch: pyarrow.RecordBatch, row: int, number: int
    ) -> Iterator[Clip | Rejection]:
        """The clip of one row, or why there is none; ``number`` is its place in the file, from 0."""
        item = f"{printable(file.label)} row {number + 1}"
        split = file.split
        try:
            cells = {key: batch.column(name)[row].as_py() for key, name in columns.named.items() if key != "audio"}
            if cells.get("split") not in (None, ""):
                split = map_split(str(cells["split"]))
            record = read_record(batch.column(RECORD_KEY)[row].as_py()) if columns.has_record else None
            id = record.id if record else self._id(file, cells, number, split)
            if record is not None and columns.has_row:
                self.recipe.exported_rows[id] = batch.column(ROW_KEY)[row].as_py()
            if id in self.ids:
                raise CellError(
                    f"id {id!r} is already used by another row; correct it, or name another column with -O id=COLUMN"
                )
            cell = read_cell(batch.column(columns.named["audio"])[row], self.folder)
            if record is not None:
                found: list[Clip | Rejection] = [record]
            else:
                extra = {name: plain(batch.column(name)[row].as_py()) for name in columns.extra}
                captions = [batch.column(name)[row].as_py() for name in columns.captions]
                found = list(self._clip(id, cells, captions, split, columns, extra))
            audio = self._place(file, cell, number, record)
        except MissingAudioError as error:
            yield Rejection(item, str(error), "missing", split=split)
        except (CellError, TextError, ExtractionError) as error:
            yield Rejection(item, str(error), split=split)
        else:
            self.ids.add(id)
            yield from (_with_audio(found_item, audio) for found_item in found)

    def _place(self, file: DataFile, cell: Cell, number: int, record: Clip | None) -> str:
        """Where the audio of a row lies, after it was written if it has to be."""
        if cell.content is None:
            return str(cell.file)
        name = f"{number:06d}-{cell.name}" if cell.name else f"{number:06d}"
        path = record.audio if record else self.extraction.choose(file.label, name, cell.suffix)
        self.extraction.write_bytes(path, cell.content)
        return path

    def _id(self, file: DataFile, cells: Mapping[str, Any], number: int, split: str | None) -> str:
        given = cells.get("id")
        if given in (None, ""):
            return f"{printable(file.label)}/{number:06d}"
        # Numbers often start again in every split.
        return f"{split}/{printable(str(given))}" if split else printable(str(given))

    def _clip(
        self,
        id: str,
        cells: Mapping[str, Any],
        values: list[Any],
        split: str | None,
        columns: _Columns,
        extra: Mapping[str, Any],
    ) -> Iterator[Clip | Rejection]:
        lang = str(cells.get("lang") or self.recipe.language)
        captions = [caption for value in values for caption in read_captions(value, lang)]
        for place, caption in enumerate(captions, start=1):
            if not caption.text:
                reason = "empty, expected a sentence; fill it in or drop it"
                yield Rejection(f"{id} caption {place}", reason, check="empty_caption", split=split)
        yield Clip(
            id=id,
            audio="",
            captions=tuple(dict.fromkeys(caption for caption in captions if caption.text)),
            labels=read_labels(_named_classes(cells.get("label"), columns.classes)),
            fold=_fold(cells.get("fold")),
            split=split,
            source=str(cells["source"]) if cells.get("source") not in (None, "") else None,
            extra={name: value for name, value in extra.items() if value is not None},
        )


def _with_audio(item: Clip | Rejection, audio: str) -> Clip | Rejection:
    return replace(item, audio=audio) if isinstance(item, Clip) else item


def _audio_column(schema: pyarrow.Schema, features: Mapping[str, Any], by_lower: Mapping[str, str]) -> str | None:
    """The column of type Audio, or one that looks like it, or one that is called so."""
    for name in schema.names:
        feature = features.get(name)
        if isinstance(feature, Mapping) and feature.get("_type") == "Audio":
            return str(name)
    looking_so = [name for name in schema.names if is_audio_type(schema.field(name).type)]
    called_so = [by_lower[name] for name in AUDIO_COLUMNS if name in by_lower]
    # An image is {bytes, path}, too: among several, the name decides.
    both = [name for name in called_so if name in looking_so]
    return next(iter([*both, *looking_so, *called_so]), None)


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    is_bytes = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_fixed_size_binary)
    return any(check(kind) for check in is_bytes) or any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _named_classes(value: Any, classes: list[str] | None) -> Any:
    """Class numbers as names; -1 is how an unknown class is stored."""
    if isinstance(value, list):
        return [_named_classes(item, classes) for item in value]
    if classes is None or not isinstance(value, int) or value == -1:
        return None if value == -1 and classes is not None else value
    if not 0 <= value < len(classes):
        raise CellError(f"class {value}, but the data set names {len(classes)} (from 0); correct it")
    return classes[value]


def _fold(value: Any) -> int | None:
    if value in (None, ""):
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise CellError(f"fold {value!r}, expected a whole number of at least 1; correct it")
    return int(value)
