"""What ``prepare`` wrote: an earlier run, or a ``manifest.jsonl``, as the source of another run.

Origin and licence: those of the corpus that was prepared. Layout: a run directory with ``manifest.jsonl``, or that file.
Counts: one clip for every line, unchanged: ids, splits, spans, captions. So a prepared corpus can be filtered, cached,
exported or freed from what another one holds, without its recipe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

_FILE_NAME = "manifest.jsonl"


def build() -> Recipe:
    """A manifest; it has no options."""
    return ManifestRecipe()


class ManifestRecipe:
    """Reads the manifest."""

    needs_source = True
    makes_audio = False

    def __init__(self) -> None:
        self._manifest: Manifest | None = None

    @property
    def corpus_name(self) -> str:
        """Name of the manifest; known when the clips were asked for."""
        assert self._manifest is not None, "asked before clips"
        return self._manifest.name

    def find_root(self, source: Path) -> Path:
        """Where the relative audio paths of the clips start: the root of the manifest, so that they stay as they are.

        Args:
            source: run directory or manifest.

        Raises:
            ManifestError: if there is no manifest, or it breaks a rule.
        """
        return self._load(source).root

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips as they are, in their order; those whose audio is gone are missing.

        Raises:
            ManifestError: if there is no manifest, or it breaks a rule.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        manifest = self._load(request.source)
        root = os.fspath(request.audio_dir or manifest.root)
        for clip in manifest:
            if os.path.isfile(os.path.join(root, clip.audio)):
                yield clip
            else:
                reason = f"no audio {clip.audio} below {root}; get the file, or set --audio-dir"
                yield Rejection(clip.id, reason, "missing", split=clip.split)

    def _load(self, source: Path) -> Manifest:
        if self._manifest is None:
            path = source / _FILE_NAME if source.is_dir() else source
            if not path.is_file():
                raise ManifestError(f"{source}: holds no {_FILE_NAME}, expected a run of prepare or its manifest; name one")
            self._manifest = Manifest.load(path)
        return self._manifest

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say which manifest it was."""
        assert self._manifest is not None, "asked after clips"
        facts = {"manifest": self._manifest.name, "fingerprint": self._manifest.fingerprint}
        return CorpusDescription(official=self._manifest.splits, facts=facts)
