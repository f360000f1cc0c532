"""Shards: tar files with a sound and a text for every sample, as LAION, open_clip and ``webdataset`` read them.

Origin and licence: the user's. Layout: members with one name up to the first dot are one sample: audio (``flac``, ``wav``,
``mp3``, ``ogg``, ``opus`` and whatever else can be decoded) with ``json``, ``txt`` or ``cls``. Folders called like a split
(``train/0000.tar``), or names such as ``audio-train-0000.tar``, give the split. Counts: whatever is there.

The stored bytes are written to ``audio/`` of the run directory, unchanged, because training reads files in any order: the
corpus takes its room twice. What ``clapkit prepare --export webdataset`` wrote comes back as the clip that it was.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._extraction import ROOT_NAME, Extraction, ExtractionError
from clapkit.data.recipes._shard_members import Member, ShardError, read_members
from clapkit.data.recipes._shard_paths import Shard, find_shards
from clapkit.data.recipes._stored_text import (
    CAPTION_KEYS,
    LABEL_KEYS,
    RECORD_KEY,
    ROW_KEY,
    TextError,
    decode_json,
    first_filled,
    read_captions,
    read_labels,
    read_record,
)
from clapkit.data.safe_paths import printable
from clapkit.data.splits import Shares, read_shares
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

SIZES_NAME = "sizes.json"
"""File beside shards that says how many samples each of them holds."""

_CLASS_NAMES = "classnames.txt"
_TEXT_SUFFIXES = frozenset({"json", "txt", "cls"})
_MAX_TEXT_BYTES = 1 << 24

_Splits = Literal["auto", "none"]


def build(
    caption: str | None = None,
    label: str | None = None,
    language: str = "en",
    splits: _Splits = "auto",
    val_share: float | None = None,
    test_share: float | None = None,
) -> Recipe:
    """Shards of audio and text.

    Args:
        caption: key of the JSON, or several separated by commas, with captions. Default: the first filled one of ``captions``,
            ``caption`` and ``text``.
        label: key of the JSON with class names. Default: the first filled one of ``tag``, ``tags``, ``labels`` and ``label``.
        language: of captions for which nothing says it.
        splits: ``auto`` takes them from the names of folders and shards, ``none`` draws them.
        val_share: share of the clips for ``val``, where names give no split. Default: 0.1.
        test_share: share of the clips for ``test``, where names give no split. Default: 0.1.

    Raises:
        ConfigError: if the shares leave nothing to train.
    """
    return WebDataset(
        captions=() if caption is None else tuple(key.strip() for key in caption.split(",")),
        label=label,
        language=language,
        splits=splits,
        shares=read_shares(val_share, test_share),
    )


@dataclass(slots=True)
class _Sample:
    """What a shard holds under one key, while the shard is read."""

    audio: str | None = None
    audio_member: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    record: Clip | None = None
    problem: str | None = None
    ignored: list[str] = field(default_factory=list)


class WebDataset:
    """Reads the shards; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = True
    root_name = ROOT_NAME

    def __init__(self, *, captions: tuple[str, ...], label: str | None, language: str, splits: _Splits, shares: Shares) -> None:
        self.captions, self.label, self.language, self.splits, self.shares = captions, label, language, splits, shares
        self._num_shards = 0
        self._num_unnamed_classes = 0
        self._num_samples: dict[Path, int] = {}
        self.exported_rows: dict[str, int] = {}

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the samples of every shard, and write out their audio.

        Raises:
            ConfigError: if the audio is said to lie elsewhere.
            ManifestError: if there is no shard.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        if request.audio_dir is not None:
            raise ConfigError("--audio-dir: webdataset finds its audio in the shards; leave it out")
        shards = find_shards(str(request.source))
        self._num_shards, self._num_unnamed_classes, self._num_samples = len(shards), 0, {}
        extraction = Extraction(request.output_dir / ROOT_NAME)
        ids: set[str] = set()
        num_ignored = 0
        with request.reporter.track("reading shards", len(shards), "shards") as tracker:
            for shard in shards:
                reading = _Reading(shard, self, extraction, ids)
                yield from reading.items()
                num_ignored += reading.num_ignored
                self._num_unnamed_classes += reading.num_unnamed_classes
                if reading.is_complete:
                    self._num_samples[shard.path] = reading.num_samples
                tracker.advance()
        if num_ignored:
            request.reporter.say(f"{request.source}: files in shards ignored because they are no audio or text: {num_ignored}")

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how many shards there are, and where their ``sizes.json`` says something else."""
        warnings = list(_compare_sizes(self._num_samples))
        if self._num_unnamed_classes:
            warnings.append(
                f"samples whose class is a number without a name: {self._num_unnamed_classes}; "
                f"put {_CLASS_NAMES}, one name a line, beside the shards"
            )
        return CorpusDescription(facts={"num_shards": self._num_shards}, warnings=warnings)


class _Reading:
    """One shard, while it is read."""

    def __init__(self, shard: Shard, recipe: WebDataset, extraction: Extraction, ids: set[str]) -> None:
        self.shard, self.recipe, self.extraction, self.ids = shard, recipe, extraction, ids
        self.samples: dict[str, _Sample] = {}
        self.num_samples = self.num_ignored = self.num_unnamed_classes = 0
        self.is_complete = False
        self._last_key: str | None = None

    def items(self) -> Iterator[Clip | Rejection]:
        """The clips of the shard, in the order in which their first members stand there."""
        if not self.shard.path.exists():
            reason = "no such shard; get it, or correct the range in the pattern"
            yield Rejection(str(self.shard.path), reason, "missing", split=self._split)
            return
        damage = None
        try:
            for member in read_members(self.shard.path):
                yield from self._read(member)
            self.is_complete = True
        except ShardError as error:
            damage = str(error)
            yield Rejection(str(self.shard.path), damage, split=self._split)
        self.num_samples = sum(bool(sample.audio or sample.texts) for sample in self.samples.values())
        for key, sample in self.samples.items():
            if damage is not None and key == self._last_key and not (sample.audio and (sample.texts or sample.record)):
                sample.problem = "incomplete, because the shard cannot be read to its end; get the shard again"
            yield from self._finish(key, sample)

    @property
    def _split(self) -> str | None:
        return self.shard.split if self.recipe.splits == "auto" else None

    def _item(self, name: str) -> str:
        return f"{printable(self.shard.label)}:{printable(name)}"

    def _read(self, member: Member) -> Iterator[Rejection]:
        """Take one member in."""
        name = member.name.removeprefix("./")
        if member.problem is not None:
            yield Rejection(self._item(member.name), member.problem)
            return
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key, kind = folder + slash + stem, suffix.lower()
        self._last_key = key
        if f".{kind}" not in AUDIO_SUFFIXES and kind not in _TEXT_SUFFIXES:
            # Dots in a name belong to its end for whoever reads shards, but 000.flac is meant as flac.
            kind = kind.rpartition(".")[2]
        if f".{kind}" in AUDIO_SUFFIXES or kind in _TEXT_SUFFIXES:
            yield from self._take(member, name, self.samples.setdefault(key, _Sample()), key, kind)
        else:
            self.samples.setdefault(key, _Sample()).ignored.append(suffix)
            self.num_ignored += 1

    def _take(self, member: Member, name: str, sample: _Sample, key: str, kind: str) -> Iterator[Rejection]:
        assert member.stream is not None, "a member without a problem can be read"
        if kind in _TEXT_SUFFIXES:
            if kind in sample.texts:
                yield Rejection(self._item(name), f"a second {kind} of sample {key!a}, expected one; rename the sample")
            elif member.size > _MAX_TEXT_BYTES:
                sample.problem = f"its {kind} holds {member.size} bytes, expected at most {_MAX_TEXT_BYTES}; pack it again"
            else:
                self._take_text(member.stream.read(), sample, kind)
        elif sample.audio is not None:
            yield Rejection(self._item(name), f"a second sound of sample {key!a}, expected one; rename the sample")
        elif not member.size:
            sample.problem = "its sound is empty (0 bytes); pack it again"
        else:
            # Where the record stands before the sound, the name is known; otherwise it is moved at the end.
            path = sample.record.audio if sample.record else self.extraction.choose(self.shard.label, key, f".{kind}")
            try:
                self.extraction.write(path, member.stream, member.size)
                sample.audio, sample.audio_member = path, name
            except ExtractionError as error:
                sample.problem = str(error)

    def _take_text(self, content: bytes, sample: _Sample, kind: str) -> None:
        try:
            sample.texts[kind] = content.decode("utf-8-sig")
            if kind == "json":
                record = decode_json(content)
                if isinstance(record, dict) and RECORD_KEY in record:
                    sample.record = read_record(record[RECORD_KEY])
                    if isinstance(record.get(ROW_KEY), int):
                        self.recipe.exported_rows[sample.record.id] = record[ROW_KEY]
        except UnicodeDecodeError as error:
            sample.problem = f"its {kind} is not UTF-8 ({error.reason}); convert it"
        except TextError as error:
            sample.problem = f"its {kind}: {error}"

    def _finish(self, key: str, sample: _Sample) -> Iterator[Clip | Rejection]:
        """The clip of a sample, or why there is none."""
        id = sample.record.id if sample.record else f"{printable(self.shard.label)}/{printable(key)}"
        if sample.problem is None and sample.audio is None:
            if not sample.texts:
                return  # nothing of a sample: counted as ignored
            found = f"{', '.join(sample.ignored)} beside the text" if sample.ignored else "no audio"
            sample.problem = f"{found}, expected flac, wav, mp3, ogg or opus; pack the sound with it"
        if sample.problem is None and id in self.ids:
            sample.problem = f"id {id!r} is already used by another sample; rename one"
        if sample.problem is not None:
            yield from self._refuse(key, sample, sample.problem)
            return
        assert sample.audio is not None, "a sample without a problem has audio"
        try:
            found_items = list(self._restore(sample) if sample.record else self._clip(id, sample, sample.audio))
        except (TextError, ExtractionError) as error:
            yield from self._refuse(key, sample, str(error))
            return
        self.ids.add(id)
        yield from found_items

    def _refuse(self, key: str, sample: _Sample, reason: str) -> Iterator[Rejection]:
        if sample.audio is not None and not (sample.record and sample.record.audio == sample.audio):
            self.extraction.drop(sample.audio)  # several clips may share the file of a record
        yield Rejection(self._item(key), reason, split=self._split)

    def _restore(self, sample: _Sample) -> Iterator[Clip]:
        """The clip as it was exported."""
        assert sample.record is not None, "called for samples with a record"
        assert sample.audio is not None, "called for samples with audio"
        if sample.audio != sample.record.audio:
            self.extraction.move(sample.audio, sample.record.audio)
        yield sample.record

    def _clip(self, id: str, sample: _Sample, audio: str) -> Iterator[Clip | Rejection]:
        """The clip of somebody else's sample."""
        record = decode_json(sample.texts["json"]) if "json" in sample.texts else {}
        if not isinstance(record, dict):
            record = {"text": record}  # a bare text or list is the caption
        caption_keys = self._caption_keys(record)
        label_key = self.recipe.label or first_filled(record, LABEL_KEYS)
        captions = [
            caption for caption_key in caption_keys for caption in read_captions(record.get(caption_key), self.recipe.language)
        ]
        lines = [line.strip() for line in sample.texts["txt"].splitlines()] if "txt" in sample.texts else []
        known = {caption.text for caption in captions}
        captions += [Caption(line, self.recipe.language) for line in lines if line and line not in known]
        if "txt" in sample.texts and not any(lines):
            captions.append(Caption("", self.recipe.language))
        labels = read_labels(record.get(label_key)) if label_key else ()
        if "cls" in sample.texts:
            labels = tuple(dict.fromkeys([*labels, *self._class_labels(sample.texts["cls"])]))
        for number, caption in enumerate(captions, start=1):
            if not caption.text:
                reason = "empty, expected a sentence; fill it in or drop it"
                yield Rejection(f"{id} caption {number}", reason, check="empty_caption", split=self._split)
        yield Clip(
            id=id,
            audio=audio,
            captions=tuple(dict.fromkeys(caption for caption in captions if caption.text)),
            labels=labels,
            split=self._split,
            extra={name: value for name, value in record.items() if name not in {*caption_keys, label_key}},
        )

    def _caption_keys(self, record: dict[str, Any]) -> tuple[str, ...]:
        if self.recipe.captions:
            return self.recipe.captions
        chosen = first_filled(record, CAPTION_KEYS)
        # An empty caption is said to be one; without any key there is nothing to say.
        return (chosen,) if chosen else tuple(key for key in CAPTION_KEYS if record.get(key) == "")[:1]

    def _class_labels(self, text: str) -> tuple[str, ...]:
        name = text.strip()
        if not name.isdecimal():
            return (name,) if name else ()
        names = self._class_names
        if names is None:
            self.num_unnamed_classes += 1
            return (name,)
        if int(name) >= len(names):
            raise TextError(f"its cls: class {name}, but {_CLASS_NAMES} holds {len(names)} names (from 0); correct one of them")
        return (names[int(name)],)

    @functools.cached_property
    def _class_names(self) -> list[str] | None:
        """Names of the classes, from a file beside the shard or one folder up."""
        for folder in (self.shard.path.parent, self.shard.path.parent.parent):
            path = folder / _CLASS_NAMES
            if path.is_file():
                try:
                    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
                except (OSError, UnicodeDecodeError) as error:
                    raise ManifestError(f"{path}: cannot be read ({error}); expected one name a line in UTF-8") from error
        return None


def _compare_sizes(num_samples: dict[Path, int]) -> Iterator[str]:
    """Where the list of sizes beside shards says something else than the shards that were read to their end."""
    folders: dict[Path, dict[str, int]] = {}
    for path, count in num_samples.items():
        folders.setdefault(path.parent, {})[path.name] = count
    for folder, found in folders.items():
        try:
            sizes = json.loads((folder / SIZES_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            yield f"{folder / SIZES_NAME} cannot be read ({str(error).splitlines()[0]})"
            continue
        listed = {PurePosixPath(str(name)).name: count for name, count in sizes.items()} if isinstance(sizes, dict) else {}
        wrong = [
            f"{name}: {count} found, {listed[name]} listed"
            for name, count in found.items()
            if name in listed and listed[name] != count
        ]
        if wrong:
            yield f"{folder / SIZES_NAME} lists other numbers of samples for {len(wrong)} shards, first {wrong[0]}"
