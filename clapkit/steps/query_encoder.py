"""Queries to vectors, by the very model that made a table; torch is loaded only where nothing else will do."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clapkit.encoders.fingerprint import CONFIG
from clapkit.errors import AudioError, EmbeddingError, ShapeError
from clapkit.files import read_json
from clapkit.index.table import EmbeddingTable, TableInfo
from clapkit.steps import inputs, query_cache
from clapkit.steps.queries import Part, unit_rows
from clapkit.types import Clip, Reporter

if TYPE_CHECKING:
    from clapkit.encoders.numpy_text import NumpyTextEncoder

FloatArray = npt.NDArray[np.floating[Any]]


class QueryEncoder:
    """Gives the vector of everything that can be asked for.

    Args:
        info: of the table, which names its model.
        language: of the words, ISO 639-1; None where the user named none.
        device: as the user named it.
        reporter: messages.
        tables: that are searched, for queries that are items of them.
        vectors: of ``--vectors`` [Q, D], if there are some.
        on_device: is told which device is used.
    """

    def __init__(
        self,
        info: TableInfo,
        *,
        language: str | None,
        device: str,
        reporter: Reporter,
        tables: Sequence[EmbeddingTable],
        vectors: FloatArray | None = None,
        on_device: Callable[[str], None] = lambda device: None,
    ) -> None:
        self._info, self._language, self._device_name = info, language, device
        self._reporter, self._tables, self._vectors, self._on_device = reporter, tables, vectors, on_device
        self._model: Any = None
        self._device = ""
        self._light: NumpyTextEncoder | None = None
        self._asked_light = False

    def __call__(self, parts: Sequence[Part]) -> dict[Part, FloatArray]:
        """The unit-norm vector [D] of every part.

        Raises:
            ClapkitError: if one cannot be embedded.
        """
        known = {part: vector for part in parts if (vector := self._given(part)) is not None}
        texts = [part for part in parts if part.kind == "text"]
        sounds = [part for part in parts if part.kind == "audio"]
        if (texts or sounds) and not self._info.model_path:
            raise EmbeddingError(
                "the model that made these vectors is not known; name it with --model, or ask with --like or --vectors"
            )
        known |= dict(zip(texts, self._texts([part.value for part in texts]), strict=True)) if texts else {}
        known |= dict(zip(sounds, self._sounds([part.value for part in sounds]), strict=True)) if sounds else {}
        return known

    def _given(self, part: Part) -> FloatArray | None:
        """The vector of a part that needs no model."""
        if part.kind == "like":
            return self._item(part.value)
        if part.kind == "vector":
            assert self._vectors is not None, "vectors were read with the queries"
            vector: FloatArray = self._vectors[int(part.value.rpartition(" ")[2])]
            if len(vector) != self._info.width:
                raise ShapeError(f"--vectors: width {len(vector)}, the table has {self._info.width}; pass vectors of its model")
            return vector
        return None

    def _item(self, name: str) -> FloatArray:
        """The vector of an item, by its id or path, or the end of its path; of several rows made one as ``_joined`` does."""
        if not self._tables:
            raise EmbeddingError(f"--like {name}: an engine does not give vectors back; pass the sound to --audio")
        for find, table in itertools.product((_rows_of, _rows_that_end_with), self._tables):
            rows = find(name, table)
            if rows:
                joined = self._joined(table, rows)
                vector: FloatArray = unit_rows(joined[None], names=[name], origin="--like")[0]
                return vector
        raise EmbeddingError(
            f"--like {name}: no item of the table has this id or path; an id is what hits show, a sound outside goes to --audio"
        )

    def _joined(self, table: EmbeddingTable, rows: Sequence[int]) -> FloatArray:
        """The direction [D] of several rows: their mean, or of the windows of a sound what the model makes of them.

        So an item is the same query as its file is for ``--audio``.
        """
        vectors: FloatArray = table.vectors[rows]  # [W, D]
        are_windows = table.modality == "audio" and self._info.audio_policy.get("pool") == "none"
        if len(rows) == 1 or not (are_windows and _fuses_windows(self._info.model_path)):
            mean: FloatArray = vectors.astype(np.float64).mean(axis=0)
            return mean
        from clapkit.steps.encoding import own_fusion

        fuse = own_fusion(self._load(), device=self._device)
        assert fuse is not None, self._info.model_path
        return fuse(unit_rows(vectors, origin="--like"))

    def _texts(self, texts: Sequence[str]) -> list[FloatArray]:
        """Words, as many as possible from the cache."""
        cache, key, width = query_cache.cache_dir(os.environ), self._info.model_fingerprint, self._info.width
        language = self._language or "en"
        if self._language is not None and (light := self._light_encoder()) is not None:
            inputs.expect_languages(light, self._language, name=self._info.model_path)
        known = {text: query_cache.lookup(cache, text, fingerprint=key, width=width, language=language) for text in texts}
        missing = [text for text, vector in known.items() if vector is None]
        if missing:
            for text, vector in zip(missing, self._encode(missing, language), strict=True):
                query_cache.store(cache, text, vector, fingerprint=key, language=language)
                known[text] = vector
        return [vector for vector in (known[text] for text in texts) if vector is not None]

    def _encode(self, texts: Sequence[str], language: str) -> FloatArray:
        """Words that nobody asked before [Q, D]."""
        if self._model is None and (light := self._light_encoder()) is not None:
            return self._encode_lightly(light, texts)
        from clapkit.steps.embedding import embed_texts

        model = self._load()
        if self._language is not None:
            inputs.expect_languages(model, self._language, name=self._info.model_path)
        return embed_texts(model, texts, languages=[language] * len(texts), reporter=self._reporter, device=self._device)

    def _encode_lightly(self, light: NumpyTextEncoder, texts: Sequence[str]) -> FloatArray:
        self._on_device("cpu")
        for text in texts:
            if not light.knows(text):
                self._reporter.warn(
                    f"query {text!r}: the model has learned none of its words, so that its hits mean little; use other words"
                )
        num_cut = light.captions_cut[0]
        vectors: FloatArray = light.encode(list(texts))
        if light.captions_cut[0] > num_cut:
            self._reporter.warn(
                f"{light.captions_cut[0] - num_cut} of {len(texts)} queries are longer than the {light.max_tokens} tokens that "
                "the model reads; their ends are not embedded"
            )
        return vectors

    def _light_encoder(self) -> NumpyTextEncoder | None:
        """The text tower without torch, where there is one."""
        if not self._asked_light:
            from clapkit.encoders.numpy_text import open_text_encoder

            self._asked_light = True
            self._light = open_text_encoder(Path(self._info.model_path))
        return self._light

    def _sounds(self, files: Sequence[str]) -> FloatArray:
        """Sounds [Q, D], cut as the table was made, with one vector for each file, also where the table keeps windows."""
        from clapkit.data.audio import check
        from clapkit.data.manifest import Manifest
        from clapkit.steps.embedding import embed_clips

        for file in files:
            try:
                check(Path(file))
            except AudioError as error:
                raise AudioError(f"--audio {error}") from error
        clips = tuple(Clip(id=file, audio=os.path.abspath(file)) for file in files)
        model, policy = self._load(), self._info.audio_policy
        embedded = embed_clips(
            model,
            Manifest(clips, root=Path(), name="query", fingerprint=""),
            reporter=self._reporter,
            window_s=policy.get("window_s"),
            hop_s=policy.get("hop_s"),
            device=self._device,
        )
        if embedded.rejected:
            raise AudioError(f"--audio {embedded.rejected[0].item}: {embedded.rejected[0].reason}")
        return embedded.vectors

    def _load(self) -> Any:
        if self._model is None:
            self._device = inputs.choose_device(self._device_name)
            self._on_device(self._device)
            self._model = inputs.load_model(Path(self._info.model_path), device=self._device)
        return self._model


def _fuses_windows(model_path: str) -> bool:
    """Whether a model makes one vector of windows by something else than their mean; looked up without torch."""
    path = Path(model_path, CONFIG)
    if not model_path or not path.is_file():
        return False  # a single file, or nothing that we know
    config = read_json(path)
    return "clapkit_model" in config and config.get("fusion", "mean") != "mean"


def _rows_of(name: str, table: EmbeddingTable) -> list[int]:
    """Rows of a table that have this id or path."""
    from pyarrow import compute

    columns = table.arrow(["id", "path"])
    is_id = compute.equal(columns["id"], _scalar(name))
    is_path = compute.equal(columns["path"], _scalar(os.path.abspath(name)))
    rows: list[int] = compute.indices_nonzero(compute.or_kleene(is_id, is_path)).to_pylist()
    return rows


def _rows_that_end_with(name: str, table: EmbeddingTable) -> list[int]:
    """Rows of the one file whose path ends with these folders and this name, as hits show it.

    Raises:
        EmbeddingError: if several files do.
    """
    from pyarrow import compute

    paths = table.arrow(["path"])["path"]
    is_end = compute.ends_with(paths, pattern="/" + name.replace(os.sep, "/"))
    rows: list[int] = compute.indices_nonzero(is_end).to_pylist()
    found = paths.take(rows).unique().to_pylist() if rows else []
    if len(found) > 1:
        raise EmbeddingError(
            f"--like {name}: {len(found)} files end so, such as {found[0]} and {found[1]}; write more of the path"
        )
    return rows


def _scalar(text: str) -> pa.Scalar:
    """Made of its bytes, because pa.scalar() imports pandas."""
    content = text.encode("utf-8", errors="replace")
    ends = np.array([0, len(content)], dtype=np.int32)
    return pa.StringArray.from_buffers(1, pa.py_buffer(ends.tobytes()), pa.py_buffer(content))[0]
