"""What is known of the training clips before training: a frozen vector of each, and the clusters that they fall in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from clapkit.data.caption_features import label_features, label_groups, tfidf_features
from clapkit.data.clusters import Clusters, cluster_rows, default_num_clusters, read_clusters, write_clusters
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import AudioError, ConfigError, ManifestError, RunDirError
from clapkit.files import atomic_path
from clapkit.run_dir import RunDir
from clapkit.runs import open_run
from clapkit.steps.embedding import embed_clips, embed_texts
from clapkit.types import AudioSpec, Clip, Reporter

FloatArray = npt.NDArray[np.float32]
Source = Literal["tfidf", "text", "audio", "labels"]
Tower = Literal["audio", "text"]

CLUSTERS = "clusters.parquet"


def row_features(
    source: Source,
    manifest: Manifest,
    *,
    encoder: DualEncoder | None,
    trained_towers: Collection[Tower],
    reporter: Reporter,
    batch_size: int = 32,
    workers: int | None = None,
) -> FloatArray:
    """One frozen vector for every training clip.

    ``tfidf`` counts the words of all captions of a clip; ``labels`` marks its labels; ``text`` and ``audio`` are what a tower
    gives before its projection head, averaged over the captions or windows of the clip. The head is left out because it is
    new where a tower comes alone, and because it is trained to make both modalities alike. Long captions are cut or split as
    the encoder does.

    Args:
        source: what the vectors are made of.
        manifest: the training split.
        encoder: with the weights that the run starts from; needed for ``text`` and ``audio``. Its modules are put into
            evaluation mode and back.
        trained_towers: towers whose weights at the start were trained before: both with ``--init``.
        reporter: progress.
        batch_size: captions or windows in a batch.
        workers: threads that decode audio. Default: one per core.

    Returns:
        float32 [N, D], rows of unit norm in the order of the clips; of ``tfidf``, a row of zeros for a clip whose captions have
        none of the kept words.

    Raises:
        ConfigError: if the tower is not trained yet.
        ManifestError: if a clip has no caption, or no label, where they are needed.
        AudioError: if a clip cannot be decoded where ``audio`` needs it.
    """
    check_source(source, trained_towers=trained_towers)
    clips = manifest.clips
    if source == "labels":
        return label_features(_label_sets(clips))
    if source == "tfidf":
        return tfidf_features([" ".join(texts) for texts in _captions(clips)])
    assert encoder is not None, f"{source} features need an encoder"
    tower, device = _TowerOutputs(encoder, source), str(encoder.device)
    with evaluation(encoder):
        if source == "text":
            captions = _captions(clips)
            flat = [text for texts in captions for text in texts]
            languages = [caption.lang for clip in clips for caption in clip.captions]
            settings: dict[str, Any] = {"reporter": reporter, "batch_size": batch_size, "device": device}
            vectors = embed_texts(tower, flat, languages=languages, **settings)  # [M, D]
            return _mean_directions(vectors, [len(texts) for texts in captions])
        embedded = embed_clips(tower, manifest, reporter=reporter, batch_size=batch_size, device=device, workers=workers)
    if embedded.rejected:
        bad = embedded.rejected[0]
        raise AudioError(
            f"--features audio: {len(embedded.rejected)} of {len(clips)} training clips cannot be decoded, first {bad.item}: "
            f"{bad.reason}; prepare the data again"
        )
    return embedded.vectors


def check_source(source: Source, *, trained_towers: Collection[Tower]) -> None:
    """Refuse features of a tower that knows nothing yet; costs nothing, so that it can be asked before data are read.

    Args:
        source: what features are to be made of.
        trained_towers: as in ``row_features``.

    Raises:
        ConfigError: if the tower is not trained yet.
    """
    if source in ("text", "audio") and source not in trained_towers:
        raise ConfigError(
            f"--features {source}: the {source} tower starts untrained, so its vectors say nothing; "
            "pass --init, or --features tfidf or labels"
        )


def check_num_clusters(num_clusters: int | None, *, address: str | None, source: Source) -> None:
    """Refuse a number of clusters that nothing would look at; costs nothing, like ``check_source``.

    Args:
        num_clusters: how many to make; None for the default.
        address: of clusters that are made already.
        source: what clusters would be made from.

    Raises:
        ConfigError: if ``num_clusters`` does not apply or is not positive.
    """
    if num_clusters is None:
        return
    if num_clusters < 1:
        raise ConfigError(f"--num-clusters {num_clusters}: expected at least 1")
    if address is not None:
        raise ConfigError(f"--num-clusters {num_clusters}: --clusters {address} brings its own clusters; leave one out")
    if source == "labels":
        raise ConfigError(
            f"--num-clusters {num_clusters}: --features labels makes a cluster of every set of labels; leave one out"
        )


def run_clusters(
    manifest: Manifest,
    run_dir: RunDir,
    *,
    address: str | None,
    source: Source,
    num_clusters: int | None,
    seed: int,
    encoder: DualEncoder | None,
    trained_towers: Collection[Tower],
    runs_root: Path,
    reporter: Reporter,
    batch_size: int = 32,
    workers: int | None = None,
) -> Clusters:
    """The clusters of a training run: read or made. ``keep_clusters`` writes them where everything else is in order.

    A run that is resumed has its ``clusters.parquet`` already and goes on with it, whatever became of the one it was copied
    from.

    Args:
        manifest: the training split.
        run_dir: of the run.
        address: a ``clusters.parquet``, or a finished train run (path or name) that has one; None to make clusters.
        source: what to make them from; of ``labels``, clips with the very same set of labels are a cluster.
        num_clusters: how many to make. Default: ``default_num_clusters``.
        seed: of k-means.
        encoder: as in ``row_features``.
        trained_towers: as in ``row_features``.
        runs_root: where runs live.
        reporter: is told how many clusters there are, and warned if they are all alike.
        batch_size: captions or windows in a batch.
        workers: threads that decode audio. Default: one per core.

    Raises:
        ConfigError: if ``num_clusters`` does not apply or is not positive, or the tower is not trained yet.
        RunDirError: if there is no such run, or it has no clusters.
        ManifestError: if the file does not fit the clips, or a clip lacks what ``source`` needs.
        AudioError: if a clip cannot be decoded where ``audio`` needs it.
    """
    check_num_clusters(num_clusters, address=address, source=source)
    ids = [clip.id for clip in manifest.clips]
    own = run_dir.path / CLUSTERS
    if own.exists():
        clusters, origin = read_clusters(own, ids), str(own)
    elif address is not None:
        path = _resolve(address, runs_root=runs_root)
        clusters, origin = read_clusters(path, ids), str(path)
    elif source == "labels":
        clusters, origin = Clusters.of(label_groups(_label_sets(manifest.clips))), "their sets of labels"
    else:
        features = row_features(
            source,
            manifest,
            encoder=encoder,
            trained_towers=trained_towers,
            reporter=reporter,
            batch_size=batch_size,
            workers=workers,
        )
        wanted = num_clusters if num_clusters is not None else default_num_clusters(len(features))
        clusters, origin = cluster_rows(features, wanted, seed=seed), f"k-means of {source} features"
    _report(clusters, origin, reporter)
    return replace(clusters, origin=origin)


def keep_clusters(run_dir: RunDir, clusters: Clusters, manifest: Manifest, *, seed: int) -> None:
    """Write ``clusters.parquet`` of a train run, unless a resumed run has it already.

    Args:
        run_dir: of the run.
        clusters: of its training clips.
        manifest: the training split.
        seed: that they were made with.
    """
    own = run_dir.path / CLUSTERS
    if own.exists():
        return
    metadata = {"clapkit_clusters": "1", "origin": clusters.origin, "seed": str(seed), "manifest": manifest.fingerprint}
    with atomic_path(own) as temporary:
        write_clusters(temporary, clusters, [clip.id for clip in manifest.clips], metadata=metadata)


class _TowerOutputs:
    """One tower of an encoder in the clothes of an encoder, so that clips and captions are embedded as everywhere else."""

    def __init__(self, encoder: DualEncoder, tower: Tower) -> None:
        self._encoder = encoder
        module = encoder.audio_tower if tower == "audio" else encoder.text_tower
        self.embedding_dim: int = module.embedding_dim

    @property
    def audio_spec(self) -> AudioSpec:
        """What the audio tower demands."""
        return self._encoder.audio_spec

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """[B, T], [B] to the output of the audio tower [B, D], of any norm."""
        features: Tensor = self._encoder.audio_tower(waveform, num_samples)
        return features

    @property
    def takes_languages(self) -> bool:
        """Whether the text tower asks for the language of a sentence."""
        return self._encoder.takes_languages

    def encode_text(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        """B sentences to the output of the text tower [B, D], of any norm."""
        return self._encoder.text_features(captions, languages)


@contextmanager
def evaluation(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in, frozen towers included."""
    before = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _mean_directions(vectors: FloatArray, counts: Sequence[int]) -> FloatArray:
    """Mean of each run of ``counts`` unit-norm rows, back to unit norm: [M, D] to [N, D]."""
    first = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(vectors.astype(np.float64), first)  # [N, D]
    directions: FloatArray = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
    return directions


def _captions(clips: Sequence[Clip]) -> list[list[str]]:
    silent = [clip.id for clip in clips if not clip.captions]
    if silent:
        raise ManifestError(
            f"training split: {len(silent)} of {len(clips)} clips have no caption, first {silent[0]}; "
            "prepare the data with captions, or pass --features labels"
        )
    return [[caption.text for caption in clip.captions] for clip in clips]


def _label_sets(clips: Sequence[Clip]) -> list[tuple[str, ...]]:
    bare = [clip.id for clip in clips if not clip.labels]
    if bare:
        raise ManifestError(
            f"--features labels: {len(bare)} of {len(clips)} training clips have no label, first {bare[0]}; "
            "prepare the data with labels, or pass --features tfidf"
        )
    return [clip.labels for clip in clips]


def _resolve(address: str, *, runs_root: Path) -> Path:
    """The parquet file that ``--clusters`` means."""
    path = Path(address)
    if path.is_file():
        return path
    if path.suffix == ".parquet":
        raise RunDirError(f"--clusters {address}: no such file; name a clusters.parquet or a train run")
    run = open_run(address, step="train", runs_root=runs_root)
    if not (run.path / CLUSTERS).is_file():
        raise RunDirError(
            f"--clusters {address}: train run {run.path} made no {CLUSTERS}; name a run that was trained with clusters, "
            "or leave --clusters out"
        )
    return run.path / CLUSTERS


def _report(clusters: Clusters, origin: str, reporter: Reporter) -> None:
    sizes = clusters.sizes
    reporter.say(
        f"clusters: {clusters.num_clusters} of {len(clusters.cluster)} clips, from {origin}; "
        f"the largest holds {sizes[0]}, the smallest {sizes[-1]}"
    )
    if clusters.num_clusters == 1:
        reporter.warn("clusters: there is only one, so that they tell no clip from another; pass another --features")
    elif sizes[0] == sizes[-1]:
        reporter.warn(f"clusters: all hold {sizes[0]} clips, so that mmts gives every clip the midpoint of its range")
