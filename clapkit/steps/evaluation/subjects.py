"""What is evaluated: models that embed, and embeddings that were made elsewhere, each with the data that it is judged on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest, fingerprint
from clapkit.encoders.fingerprint import holds_model
from clapkit.errors import ConfigError
from clapkit.metrics.retrieval import DEFINITIONS_VERSION
from clapkit.steps import inputs
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.given import Given, match, read_given
from clapkit.steps.evaluation.marks import lineage_marks
from clapkit.steps.evaluation.result import Mark
from clapkit.steps.inputs import DataSource, ModelSource
from clapkit.steps.lineage import read_lineage, unknown_lineage
from clapkit.types import Rejection, Reporter

ALL = "all"
"""The split that means every clip."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, or embeddings.

    Attributes:
        name: how results call it.
        fingerprint: of the model, or of the vectors.
        data: what it is judged on.
        source: the model; None where it is not known.
        given: the embeddings; None where the model makes them.
    """

    name: str
    fingerprint: str
    data: DataSource
    source: ModelSource | None
    given: Given | None = None

    @property
    def path(self) -> Path | None:
        """Of the model."""
        return None if self.source is None else self.source.path

    @property
    def training(self) -> Mapping[str, Any] | None:
        """Resolved configuration of the run that trained the model, and what it read; None where it is not known."""
        if self.source is None or self.source.run is None:
            return None
        record = self.source.run.record
        if "config" not in record:
            return None
        config: dict[str, Any] = record["config"]
        return config | {"inputs": sorted(entry["fingerprint"] for entry in record.get("inputs", []))}

    def split(self, name: str) -> Manifest:
        """The clips to evaluate."""
        return self.data.manifest if name == ALL else self.data.manifest.split(name)

    def marks(self, split: Manifest) -> list[Mark]:
        """What the model knows of the clips.

        Raises:
            CheckpointError: if its lineage is damaged.
        """
        known = unknown_lineage(self.name) if self.path is None else read_lineage(self.path, name=self.name)
        return lineage_marks(known, self.data, split)


def resolve_subjects(config: EvalConfig) -> list[Subject]:
    """Models first, then embeddings, in the order in which they were named; the newest train run where nothing was.

    Raises:
        ClapkitError: if a model, embeddings or the data are not there or damaged.
    """
    addresses: Sequence[str | None] = config.runs or ((None,) if config.embeddings is None else ())
    subjects = []
    for address in addresses:
        source = inputs.resolve_model(address, runs_root=config.runs_root)
        data = inputs.resolve_data(config.data, model=source, runs_root=config.runs_root)
        subjects.append(Subject(source.name, source.fingerprint, data, source))
    if config.embeddings is not None:
        subjects.append(_given(config.embeddings, config))
    return subjects


def expect_one_test_set(subjects: Sequence[Subject], split: str) -> None:
    """Make sure that all are judged on the same clips.

    Args:
        subjects: one or more.
        split: of the data of each.

    Raises:
        ConfigError: if their clips differ; names the first that differs.
    """
    first, *others = subjects
    ours = first.split(split)
    for subject in others:
        theirs = subject.split(split)
        if theirs.fingerprint != ours.fingerprint:
            raise ConfigError(
                f"{subject.name}: its data are {len(theirs)} {split} clips of {theirs.name}, those of {first.name} {len(ours)} "
                f"of {ours.name}; numbers on other clips say nothing about which is better, name the data of all with --data"
            )


def embed(
    subject: Subject, split: Manifest, *, device: str, config: EvalConfig, reporter: Reporter
) -> tuple[Evaluated, list[Rejection]]:
    """The embedded clips of a split, and the clips that have no embedding.

    Raises:
        ClapkitError: if the model cannot be loaded, or no clip has an embedding.
    """
    manifest = subject.data.manifest
    if subject.given is not None:
        found = match(subject.given, split, data=manifest)
        kept = _only(split, found.rows)
        evaluated = Evaluated(subject.name, None, device, manifest, kept, found.audio, config, reporter, found.captions)
        return evaluated, found.missing
    assert subject.source is not None
    model = inputs.load_model(subject.source.path, device=device)
    audio = embed_clips(
        model,
        split,
        reporter=reporter,
        batch_size=config.batch_size,
        precision=config.precision,
        device=device,
        workers=config.workers,
    )
    kept = _only(split, audio.clip)
    return Evaluated(subject.name, model, device, manifest, kept, audio.vectors, config, reporter), audio.rejected


def protocol(subject: Subject, evaluated: Evaluated, *, split: Manifest) -> dict[str, Any]:
    """What must be equal for two numbers to be comparable, whatever the task."""
    config, kept = evaluated.config, evaluated.split
    identity = "\n".join(clip.id for clip in kept)
    return {
        "data": split.name,
        "split": config.split,
        "fingerprint": split.fingerprint,
        "num_clips": len(kept),
        "num_captions": sum(len(clip.captions) for clip in kept),
        "num_rejected": len(split) - len(kept),
        "id_hash": hashlib.sha256(identity.encode()).hexdigest(),
        "audio_policy": _audio_policy(subject, evaluated),
        "captions": "lower case, no punctuation" if config.clean_captions else "as written",
        "precision": config.precision if subject.given is None else subject.given.policy.get("precision", "not known"),
        "ties": "pessimistic",
        "intervals": {"kind": "bootstrap over clips", "level": 0.95, "num_draws": config.bootstrap, "seed": config.seed},
        "metric_definitions": DEFINITIONS_VERSION,
    }


def _given(address: str, config: EvalConfig) -> Subject:
    if config.clean_captions:
        raise ConfigError(f"--embeddings {address} and --clean-captions: the captions are embedded already; leave one out")
    given = read_given(address, runs_root=config.runs_root)
    source = None
    if given.model_path is not None and holds_model(given.model_path):
        source = inputs.resolve_model(str(given.model_path), runs_root=config.runs_root)
        source = source if source.fingerprint == given.fingerprint else None
    if config.data is None and source is None:
        raise ConfigError(f"--embeddings {address}: does not say which clips the vectors are of; name them with --data")
    if config.data is None:
        assert source is not None
        data = inputs.resolve_data(None, model=source, runs_root=config.runs_root)
    else:
        data = inputs.resolve_prepared(config.data, runs_root=config.runs_root)
    return Subject(given.name, given.fingerprint, data, source, given)


def _audio_policy(subject: Subject, evaluated: Evaluated) -> dict[str, Any]:
    """How audio was cut and pooled; ``pool`` names what made one vector of the windows of a clip."""
    if evaluated.model is None:
        assert subject.given is not None
        # The precision stands beside the policy, as for a model that is run here. Of a table, pool is an option of embed and
        # fusion what the model did for it.
        policy = {key: value for key, value in subject.given.policy.items() if key not in ("precision", "fusion")}
        fusion = subject.given.policy.get("fusion")
        return policy | ({} if fusion is None else {"pool": fusion}) or {"made": "elsewhere"}
    spec = evaluated.model.audio_spec
    return {
        "sample_rate": spec.sample_rate,
        "window_s": spec.window_s,
        "hop_s": spec.window_s,
        "padding": "zeros",
        "pool": evaluated.model.fusion,
    }


def _only(split: Manifest, rows: np.ndarray) -> Manifest:
    """The clips of some rows as a manifest of its own."""
    if len(rows) == len(split):
        return split
    clips = tuple(split.clips[row] for row in rows)
    return Manifest(clips=clips, root=split.root, name=split.name, fingerprint=fingerprint(clips))
