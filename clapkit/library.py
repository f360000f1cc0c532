"""clapkit from Python: load a model, embed sounds and sentences, search a library.

What comes out is what the command line computes: the same windows, the same vectors, the same order of hits.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from clapkit.config import RetrieveConfig
from clapkit.errors import AudioError, ConfigError, EmbeddingError, ShapeError
from clapkit.steps import inputs, queries
from clapkit.types import Clip, Hit, SilentReporter

if TYPE_CHECKING:
    from clapkit.data.manifest import Manifest
    from clapkit.steps.retrieve import Search

FloatArray = npt.NDArray[np.float32]
AnyPath = str | os.PathLike[str]
Sound = AnyPath | npt.NDArray[np.floating[Any]]


def load(model: AnyPath, *, device: str = "auto", runs_root: AnyPath = "runs") -> Model:
    """Load a model, to embed and to search with.

    Args:
        model: train run (path or name under ``runs_root``), model folder, CLAP folder or checkpoint, or a name of the Hub.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        runs_root: where runs live.

    Raises:
        ClapkitError: if there is no such model, it cannot be loaded, or the device does not exist.
    """
    source = inputs.resolve_model(os.fspath(model), runs_root=Path(runs_root))
    return Model(source, device=inputs.choose_device(device), runs_root=Path(runs_root))


class Model:
    """A model ready for use; made by ``clapkit.load``.

    Attributes:
        name: of the run, folder or Hub entry.
        fingerprint: hash of all that decides how it embeds.
        embedding_dim: D.
        sample_rate: that its audio tower works at, in Hz.
        window_s: length of its window in seconds.
    """

    def __init__(self, source: inputs.ModelSource, *, device: str, runs_root: Path) -> None:
        self.name, self.fingerprint = source.name, source.fingerprint
        self._path, self._device, self._runs_root = source.path, device, runs_root
        self._encoder = inputs.load_model(source.path, device=device)
        self._searches: dict[RetrieveConfig, Search] = {}
        self.embedding_dim = self._encoder.embedding_dim
        self.sample_rate, self.window_s = self._encoder.audio_spec.sample_rate, self._encoder.audio_spec.window_s

    def embed_audio(
        self, sounds: Sequence[Sound] | AnyPath, *, sample_rate: int | None = None, batch_size: int = 32
    ) -> FloatArray:
        """One vector for each sound; a long one is cut into windows, whose vectors become one as the model does it.

        Args:
            sounds: audio files, or waveforms [T] or [T, channels] in [-1, 1]; a single file is one.
            sample_rate: of the waveforms, in Hz; files know theirs.
            batch_size: windows in a batch; changes speed, not results.

        Returns:
            Unit norm [N, D].

        Raises:
            AudioError: if a sound cannot be used.
        """
        several = [sounds] if isinstance(sounds, str | os.PathLike) else sounds
        return self._embed(several, sample_rate=sample_rate, pool="mean", batch_size=batch_size)[0]

    def embed_windows(
        self,
        sound: Sound,
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        batch_size: int = 32,
    ) -> tuple[FloatArray, list[tuple[float, float]]]:
        """One vector for each window of a sound, and where the windows lie.

        Args:
            sound: an audio file, or a waveform [T] or [T, channels] in [-1, 1].
            sample_rate: of the waveform, in Hz.
            window_s: length of a window in seconds, at most the model's, which is the default.
            hop_s: step between windows in seconds; default the window.
            batch_size: windows in a batch.

        Returns:
            Unit norm [W, D], and start and end of each window in seconds.

        Raises:
            AudioError: if the sound cannot be used.
            ConfigError: if window or hop is out of range.
        """
        policy = {"window_s": window_s, "hop_s": hop_s}
        return self._embed([sound], sample_rate=sample_rate, pool="none", batch_size=batch_size, **policy)

    def embed_text(
        self, sentences: Sequence[str] | str, *, languages: Sequence[str] | None = None, batch_size: int = 32
    ) -> FloatArray:
        """One vector for each sentence.

        Args:
            sentences: M of them; a single text is one.
            languages: ISO 639-1 tag of each, for models that ask for it; default English.
            batch_size: sentences in a batch.

        Returns:
            Unit norm [M, D].
        """
        from clapkit.steps.embedding import embed_texts

        several = [sentences] if isinstance(sentences, str) else sentences
        if not len(several):
            return np.empty((0, self.embedding_dim), dtype=np.float32)
        return embed_texts(
            self._encoder,
            several,
            reporter=SilentReporter(),
            batch_size=batch_size,
            device=self._device,
            languages=languages,
        )

    def search(
        self,
        query: str | npt.NDArray[np.floating[Any]],
        *,
        embeddings: AnyPath | None = None,
        k: int = 10,
        minus: Sequence[str] | str = (),
        target: Literal["audio", "text", "both"] = "audio",
        where: str | None = None,
        min_score: float | None = None,
        group_by: Literal["none", "file"] = "none",
        fold: bool = False,
        hybrid: bool = False,
        index: str = "exact",
    ) -> list[Hit]:
        """The items of a table that are nearest to a query; a table is opened once for all queries of one kind.

        Args:
            query: words, or a vector [D] such as a row of ``embed_audio``.
            embeddings: embed run (path or name), folder of a table, or vectors of this model as ``.npy``; default the newest
                embed run under ``runs_root``.
            k: hits.
            minus: what hits should not be like, in words.
            target: search sounds, captions, or both.
            where: filter, as of ``clapkit retrieve``.
            min_score: drop hits below this cosine.
            group_by: one hit per item, or per file with its best spans.
            fold: one hit for copies of one sound.
            hybrid: also rank by the words of names, labels and captions.
            index: ``exact``, or an approximate one that was built with the table.

        Raises:
            ClapkitError: if the query says nothing, the table cannot be used, or another model made it.
        """
        is_file = embeddings is not None and os.fspath(embeddings).endswith(".npy")
        config = RetrieveConfig(
            embeddings=None if embeddings is None else os.fspath(embeddings),
            model=os.fspath(self._path) if is_file else None,
            runs_root=self._runs_root,
            device=self._device,
            k=k,
            target=target,
            where=where,
            min_score=min_score,
            group_by=group_by,
            fold=fold,
            hybrid=hybrid,
            index=index,
        )
        search = self._search(config)
        others = self.embed_text(minus)
        if isinstance(query, str):
            if not query.strip():
                raise ConfigError('query: is empty, expected words, for example "dog barking"')
            vector, words = self.embed_text(query)[0], query
        else:
            if query.shape != (self.embedding_dim,):
                raise ShapeError(f"query: vector {list(query.shape)}, expected [{self.embedding_dim}]; pass one row at a time")
            vector, words = queries.unit_rows(query[None], origin="query")[0], ""
        return search.nearest(queries.subtract(vector, list(others), weight=config.minus_weight), words=words)

    def _search(self, config: RetrieveConfig) -> Search:
        from clapkit.steps.retrieve import Search

        if config not in self._searches:
            search = Search(config, run_dir=None, reporter=SilentReporter())
            if search.info.model_fingerprint != self.fingerprint:
                raise EmbeddingError(
                    f"{search.name}: was made by model {search.info.model_fingerprint[:12] or 'unknown'}, this one is "
                    f"{self.fingerprint[:12]}; embed again, or load that model"
                )
            self._searches[config] = search
        return self._searches[config]

    def _embed(
        self, sounds: Sequence[Sound], *, sample_rate: int | None, pool: Literal["mean", "none"], **options: Any
    ) -> tuple[FloatArray, list[tuple[float, float]]]:
        from clapkit.steps.clip_vectors import Rejected
        from clapkit.steps.embedding import stream_clips

        vectors, spans = [np.empty((0, self.embedding_dim), dtype=np.float32)], []
        with _as_files(sounds, sample_rate) as manifest:
            for found in stream_clips(
                self._encoder, manifest, reporter=SilentReporter(), pool=pool, device=self._device, **options
            ):
                if isinstance(found, Rejected):
                    clip = manifest.clips[found.row]
                    raise AudioError(f"{clip.id}: {found.reason.removeprefix(f'{clip.audio}: ')}")
                vectors.append(found.vectors)
                spans += found.spans
        return np.concatenate(vectors), spans


@contextlib.contextmanager
def _as_files(sounds: Sequence[Sound], sample_rate: int | None) -> Iterator[Manifest]:
    """A manifest of sounds; waveforms go through files of 32-bit floats, so that they take the way of all others."""
    from clapkit.data.manifest import Manifest

    with tempfile.TemporaryDirectory(prefix="clapkit-") as folder:
        paths = [_as_file(sound, Path(folder) / f"{number}.wav", sample_rate) for number, sound in enumerate(sounds)]
        clips = tuple(
            Clip(id=f"sound {number}" if isinstance(sound, np.ndarray) else os.fspath(sound), audio=path)
            for number, (sound, path) in enumerate(zip(sounds, paths, strict=True))
        )
        yield Manifest(clips, root=Path(), name="sounds", fingerprint="")


def _as_file(sound: Sound, place: Path, sample_rate: int | None) -> str:
    if not isinstance(sound, np.ndarray):
        return os.path.abspath(sound)
    if sample_rate is None:
        raise AudioError("waveform: its sample rate is not known; pass sample_rate= in Hz")
    if sound.dtype.kind != "f" or sound.ndim not in (1, 2) or not sound.size:
        raise AudioError(f"waveform: {sound.dtype} {list(sound.shape)}, expected floats [T] or [T, channels] in [-1, 1]")
    import soundfile

    try:
        soundfile.write(place, sound.astype(np.float32), sample_rate, subtype="FLOAT")
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(
            f"waveform: {list(sound.shape)} at {sample_rate} Hz cannot be used ({error}); pass [T] or [T, channels]"
        ) from error
    return os.fspath(place)
