"""The samples of one shard, and what becomes of each: a clip, or the reason why there is none."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._extraction import Extraction, ExtractionError
from clapkit.data.recipes._in_place import InPlace
from clapkit.data.recipes._shard_members import Member, ShardError, read_members
from clapkit.data.recipes._shard_paths import Shard
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
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, Rejection

CLASS_NAMES = "classnames.txt"
"""File beside shards, or one folder up, with the names of classes that samples give by number."""

_TEXT_SUFFIXES = frozenset({"json", "txt", "cls"})
_MAX_TEXT_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class TextPolicy:
    """How the texts of a sample are read.

    Attributes:
        captions: keys of the JSON with captions; the usual ones are tried where none is named.
        label: key of the JSON with class names; likewise.
        language: of captions for which nothing says it.
        splits_by_name: whether the names of folders and shards give the split.
    """

    captions: tuple[str, ...]
    label: str | None
    language: str
    splits_by_name: bool


@dataclass(slots=True)
class _Sample:
    """What a shard holds under one key, while the shard is read."""

    audio: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    record: Clip | None = None
    problem: str | None = None
    ignored: list[str] = field(default_factory=list)


class ShardReading:
    """One shard, while it is read.

    Args:
        shard: to read.
        policy: how texts become captions and labels.
        sounds: where the sounds go, or how they are called where they lie.
        ids: of the clips of earlier shards; those of this one are added.

    Attributes:
        num_samples: found so far.
        num_ignored: files that are no audio or text.
        num_unnamed_classes: samples whose class is a number without a name.
        is_complete: whether the shard was read to its end.
        exported_rows: id of a clip that clapkit exported -> its row in the manifest that was exported.
    """

    def __init__(self, shard: Shard, policy: TextPolicy, sounds: Extraction | InPlace, ids: set[str]) -> None:
        self.shard, self.policy, self.sounds, self.ids = shard, policy, sounds, ids
        self.exported_rows: dict[str, int] = {}
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
            for member in read_members(self.shard.path, in_place=isinstance(self.sounds, InPlace)):
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
        return self.shard.split if self.policy.splits_by_name else None

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
            try:
                sample.audio = self._place(member, name, sample, key, kind)
            except ExtractionError as error:
                sample.problem = str(error)

    def _place(self, member: Member, name: str, sample: _Sample, key: str, kind: str) -> str:
        """Write the sound out, or find out how it is called where it lies; gives its path relative to the root."""
        if isinstance(self.sounds, InPlace):
            return self.sounds.path(self.shard.path, name)
        assert member.stream is not None, "a member without a problem can be read"
        # Where the record stands before the sound, the name is known; otherwise it is moved at the end.
        path = sample.record.audio if sample.record else self.sounds.choose(self.shard.label, key, f".{kind}")
        self.sounds.write(path, member.stream, member.size)
        return path

    def _take_text(self, content: bytes, sample: _Sample, kind: str) -> None:
        try:
            sample.texts[kind] = content.decode("utf-8-sig")
            if kind == "json":
                record = decode_json(content)
                if isinstance(record, dict) and RECORD_KEY in record:
                    sample.record = read_record(record[RECORD_KEY])
                    if isinstance(record.get(ROW_KEY), int):
                        self.exported_rows[sample.record.id] = record[ROW_KEY]
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
        is_shared = sample.record is not None and sample.record.audio == sample.audio  # by several clips, perhaps
        if isinstance(self.sounds, Extraction) and sample.audio is not None and not is_shared:
            self.sounds.drop(sample.audio)
        yield Rejection(self._item(key), reason, split=self._split)

    def _restore(self, sample: _Sample) -> Iterator[Clip]:
        """The clip as it was exported; in place, only its path is another."""
        assert sample.record is not None, "called for samples with a record"
        assert sample.audio is not None, "called for samples with audio"
        if isinstance(self.sounds, InPlace):
            yield replace(sample.record, audio=sample.audio)
            return
        if sample.audio != sample.record.audio:
            self.sounds.move(sample.audio, sample.record.audio)
        yield sample.record

    def _clip(self, id: str, sample: _Sample, audio: str) -> Iterator[Clip | Rejection]:
        """The clip of somebody else's sample."""
        record = decode_json(sample.texts["json"]) if "json" in sample.texts else {}
        if not isinstance(record, dict):
            record = {"text": record}  # a bare text or list is the caption
        caption_keys = self._caption_keys(record)
        label_key = self.policy.label or first_filled(record, LABEL_KEYS)
        captions = [
            caption for caption_key in caption_keys for caption in read_captions(record.get(caption_key), self.policy.language)
        ]
        lines = [line.strip() for line in sample.texts["txt"].splitlines()] if "txt" in sample.texts else []
        known = {caption.text for caption in captions}
        captions += [Caption(line, self.policy.language) for line in lines if line and line not in known]
        if "txt" in sample.texts and not any(lines):
            captions.append(Caption("", self.policy.language))
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
        if self.policy.captions:
            return self.policy.captions
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
            raise TextError(f"its cls: class {name}, but {CLASS_NAMES} holds {len(names)} names (from 0); correct one of them")
        return (names[int(name)],)

    @functools.cached_property
    def _class_names(self) -> list[str] | None:
        """Names of the classes, from a file beside the shard or one folder up."""
        for folder in (self.shard.path.parent, self.shard.path.parent.parent):
            path = folder / CLASS_NAMES
            if path.is_file():
                try:
                    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
                except (OSError, UnicodeDecodeError) as error:
                    raise ManifestError(f"{path}: cannot be read ({error}); expected one name a line in UTF-8") from error
        return None
