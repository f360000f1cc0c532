"""Shards: tar files with a sound and a text for every sample, as LAION, open_clip and ``webdataset`` read them.

Origin and licence: the user's. Layout: members with one name up to the first dot are one sample: audio (``flac``, ``wav``,
``mp3``, ``ogg``, ``opus`` and whatever else can be decoded) with ``json``, ``txt`` or ``cls``. Folders called like a split
(``train/0000.tar``), or names such as ``audio-train-0000.tar``, give the split. Counts: whatever is there.

The stored bytes are written to ``audio/`` of the run directory, unchanged: the corpus takes its room twice. With
``unpack=false`` nothing is written, and clips name the member of the shard, ``train/0000.tar/key.flac``.

What ``clapkit prepare --export webdataset`` wrote comes back as the clip that it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from clapkit.data.recipes._extraction import ROOT_NAME, Extraction
from clapkit.data.recipes._in_place import InPlace, common_folder
from clapkit.data.recipes._shard_paths import find_shards
from clapkit.data.recipes._shard_reading import CLASS_NAMES, ShardReading, TextPolicy
from clapkit.data.splits import Shares, read_shares
from clapkit.errors import ConfigError
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

SIZES_NAME = "sizes.json"
"""File beside shards that says how many samples each of them holds."""

_Splits = Literal["auto", "none"]


def build(
    caption: str | None = None,
    label: str | None = None,
    language: str = "en",
    splits: _Splits = "auto",
    val_share: float | None = None,
    test_share: float | None = None,
    unpack: bool = True,
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
        unpack: write the sounds to ``audio/`` of the run directory; otherwise they are read from the shards, which must stay
            where they are and must not be compressed.

    Raises:
        ConfigError: if the shares leave nothing to train.
    """
    return WebDataset(
        captions=() if caption is None else tuple(key.strip() for key in caption.split(",")),
        label=label,
        language=language,
        splits=splits,
        shares=read_shares(val_share, test_share),
        unpack=unpack,
    )


class WebDataset:
    """Reads the shards; see ``build`` for the arguments."""

    needs_source = True

    def __init__(
        self,
        *,
        captions: tuple[str, ...],
        label: str | None,
        language: str,
        splits: _Splits,
        shares: Shares,
        unpack: bool = True,
    ) -> None:
        self.makes_audio = unpack
        if unpack:
            self.root_name = ROOT_NAME  # of a folder of our own: without it, nothing is ever cleared away
        self.shares = shares
        self._policy = TextPolicy(captions, label, language, splits_by_name=splits == "auto")
        self._num_shards = 0
        self._num_unnamed_classes = 0
        self._num_samples: dict[Path, int] = {}
        self.exported_rows: dict[str, int] = {}

    def find_root(self, source: Path) -> Path:
        """The folder that all shards lie in: where paths start from if nothing is unpacked.

        Raises:
            ManifestError: if there is no shard.
        """
        return common_folder(find_shards(str(source)))

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the samples of every shard, and write out their audio.

        Raises:
            ConfigError: if the audio is said to lie elsewhere, or cannot be read where it lies.
            ManifestError: if there is no shard.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        if request.audio_dir is not None:
            raise ConfigError("--audio-dir: webdataset finds its audio in the shards; leave it out")
        shards = find_shards(str(request.source))
        self._num_shards, self._num_unnamed_classes, self._num_samples = len(shards), 0, {}
        sounds: Extraction | InPlace
        sounds = Extraction(request.output_dir / ROOT_NAME) if self.makes_audio else InPlace(shards)
        ids: set[str] = set()
        num_ignored = 0
        with request.reporter.track("reading shards", len(shards), "shards") as tracker:
            for shard in shards:
                reading = ShardReading(shard, self._policy, sounds, ids)
                yield from reading.items()
                num_ignored += reading.num_ignored
                self.exported_rows |= reading.exported_rows
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
                f"put {CLASS_NAMES}, one name a line, beside the shards"
            )
        return CorpusDescription(facts={"num_shards": self._num_shards}, warnings=warnings)


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
