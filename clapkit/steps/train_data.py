"""What a training run reads: its two splits, and what it has to know of the training clips beforehand."""

from __future__ import annotations

from pathlib import Path

from clapkit.config import TrainConfig
from clapkit.data.clusters import Clusters
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.encoders.pretrained import find
from clapkit.errors import CheckpointError, ManifestError
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.steps.lineage import is_manifest, lineage_of, read_lineage, unknown_lineage, write_lineage
from clapkit.steps.row_features import FloatArray, row_features, run_clusters
from clapkit.steps.train_options import DEFAULT_FEATURES, needs_clusters, needs_features, trained_towers
from clapkit.types import Reporter


def splits(config: TrainConfig, run_dir: RunDir, reporter: Reporter) -> tuple[Manifest, Manifest]:
    """Training and validation split; on resume the very files of the first start.

    Raises:
        ManifestError: if a split is missing, too small, or changed since the run was started.
    """
    recorded = [entry for entry in run_dir.record["inputs"] if is_manifest(entry)]
    if recorded:
        manifests = [Manifest.load(Path(entry["path"])) for entry in recorded]
        for entry, manifest in zip(recorded, manifests, strict=True):
            if manifest.fingerprint != entry["fingerprint"]:
                raise ManifestError(f"{entry['path']}: has changed since this run was started; train anew with --overwrite")
    else:
        addresses = [config.data] if config.val_data is None else [config.data, config.val_data]
        sources = [inputs.resolve_prepared(address, runs_root=config.runs_root) for address in addresses]
        reporter.say(f"data: {', '.join(str(source.path) for source in sources)}")
        for source in sources:
            run_dir.add_input(source.path.resolve(), source.manifest.fingerprint)
        manifests = [source.manifest for source in sources]
    train_data, val_data = manifests[0].split(config.train_split), manifests[-1].split(config.val_split)
    if len(val_data) < 2:
        raise ManifestError(
            f"split {config.val_split!r}: found {len(val_data)} clip, expected at least 2 to rank; prepare more data"
        )
    return train_data, val_data


def record_weights(config: TrainConfig, run_dir: RunDir) -> None:
    """Note the weights that the run starts from, with the hash of their content.

    Raises:
        CheckpointError: if they cannot be found, or changed since the run was started.
    """
    found: list[tuple[Path, str]] = []
    if config.init is not None:
        source = inputs.resolve_model(config.init, runs_root=config.runs_root)
        found.append((source.path, source.fingerprint))
    for weights in (config.audio_weights, config.text_weights):
        if weights is not None:
            path = find(weights)
            found.append((path, model_fingerprint(path)))
    # By content: a Hub model lies in another folder of the cache once it has a new revision.
    earlier = {entry["fingerprint"] for entry in run_dir.record["inputs"] if not is_manifest(entry)}
    if earlier - {fingerprint for _, fingerprint in found}:
        names = " or ".join(str(path) for path, _ in found)
        raise CheckpointError(f"{names}: has changed since this run was started; restore it or train anew with --overwrite")
    for path, fingerprint in found:
        run_dir.add_input(path.resolve(), fingerprint)


def keep_lineage(config: TrainConfig, run_dir: RunDir) -> None:
    """Write what the model is trained and selected on beside its weights; with what the weights that it starts from were.

    Raises:
        ClapkitError: if data or weights, which were read before, cannot be read any more.
    """
    entries = [entry for entry in run_dir.record["inputs"] if is_manifest(entry)]
    sources = [inputs.DataSource(Path(entry["path"]), Manifest.load(Path(entry["path"]))) for entry in entries]
    found = lineage_of(sources, train_split=config.train_split, val_split=config.val_split)
    if config.init is not None:
        source = inputs.resolve_model(config.init, runs_root=config.runs_root)
        found = found.joined(read_lineage(source.path, name=source.name))
    for weights in (config.audio_weights, config.text_weights):
        if weights is not None:
            found = found.joined(unknown_lineage(weights))
    write_lineage(run_dir.model_dir, found)


def known_of_rows(
    config: TrainConfig, train_data: Manifest, encoder: DualEncoder, run_dir: RunDir, reporter: Reporter
) -> tuple[Clusters | None, FloatArray | None]:
    """Clusters and frozen vectors of the training clips, each where something in the run asks for it."""
    source, trained = config.features or DEFAULT_FEATURES, trained_towers(config)
    clusters, features = None, None
    if needs_clusters(config):
        clusters = run_clusters(
            train_data,
            run_dir,
            address=config.clusters,
            source=source,
            num_clusters=config.num_clusters,
            seed=config.seed,
            encoder=encoder,
            trained_towers=trained,
            runs_root=config.runs_root,
            reporter=reporter,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    if needs_features(config):
        features = row_features(
            source,
            train_data,
            encoder=encoder,
            trained_towers=trained,
            reporter=reporter,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    return clusters, features
