"""``clapkit eval``: retrieval and zero-shot metrics of one or several models, with intervals and the whole protocol."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.metrics.retrieval import DEFINITIONS_VERSION, evaluate_retrieval, retrieval_intervals
from clapkit.metrics.zero_shot import class_text, class_vectors, evaluate_zero_shot, zero_shot_intervals
from clapkit.run_dir import RunDir
from clapkit.steps import comparison, inputs, report
from clapkit.steps.embedding import AudioEmbeddings, Encoder, cosine_similarity, embed_clips, embed_texts
from clapkit.types import Clip, Reporter

TASKS = ("retrieval", "zero-shot")
FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """The clips of a split that could be embedded, and what is needed to go on with them."""

    model: Encoder
    device: str
    clips: list[Clip]
    audio: AudioEmbeddings
    config: EvalConfig
    reporter: Reporter

    def embed_texts(self, texts: Sequence[str], languages: Sequence[str] | None = None) -> FloatArray:
        config = self.config
        return embed_texts(
            self.model,
            texts,
            languages=languages,
            reporter=self.reporter,
            batch_size=config.batch_size,
            precision=config.precision,
            device=self.device,
        )


def run(config: EvalConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Evaluate models on a split.

    Args:
        config: of the command.
        run_dir: where results go.
        reporter: progress and messages.

    Returns:
        ``metrics`` and ``intervals`` of the first model (name -> value), its ``protocol``, all ``runs``, the
        ``comparison`` of several, and ``paths``.

    Raises:
        ClapkitError: if a model or the data cannot be used, or a task is unknown or impossible.
    """
    inputs.refuse_options(config.options)
    wanted = read_tasks(config.tasks)
    _check(config)
    device = inputs.choose_device(config.device)
    run_dir.set_device(device)
    sources = [inputs.resolve_model(address, runs_root=config.runs_root) for address in config.runs or (None,)]
    outcomes = []
    for source in sources:
        run_dir.add_input(source.path, source.fingerprint)
        data = inputs.resolve_data(config.data, model=source, runs_root=config.runs_root)
        run_dir.add_input(data.path, data.manifest.fingerprint)
        outcome = _evaluate(
            source, data.manifest, wanted=wanted, device=device, config=config, run_dir=run_dir, reporter=reporter
        )
        outcomes.append(outcome)
    results = [{key: value for key, value in outcome.items() if key != "per_query"} for outcome in outcomes]
    document: dict[str, Any] = {"runs": results}
    paths = {"results": "results.json", "per_query": "per_query.parquet"}
    comparison.write_per_query(run_dir.path / paths["per_query"], outcomes)
    if len(outcomes) > 1:
        document["comparison"] = comparison.compare(outcomes, num_draws=config.bootstrap, seed=config.seed)
        paths |= comparison.write_tables(run_dir, document["comparison"])
    run_dir.write_json(run_dir.path / paths["results"], document)
    if config.report:
        paths |= report.write_report(run_dir, document)
    first = results[0]
    tasks = first["tasks"].values()
    return {
        "metrics": {name: value for task in tasks for name, value in task["metrics"].items()},
        "intervals": {name: value for task in tasks for name, value in task["intervals"].items()},
        "protocol": first["protocol"],
        **document,
        "paths": paths,
    }


def caption_rows(clips: Sequence[Clip]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """All captions of clips and the row of the clip that each belongs to [M]."""
    pairs = [(caption.text, row) for row, clip in enumerate(clips) for caption in clip.captions]
    return [text for text, _ in pairs], np.array([row for _, row in pairs], dtype=np.int64)


def read_tasks(text: str | None) -> tuple[str, ...]:
    """Split ``--tasks``; empty for all that the data allow.

    Raises:
        UnknownNameError: if a task does not exist.
        ConfigError: if there is none in the text.
    """
    if text is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--tasks {text!r}: names no task; known: {', '.join(TASKS)}")
    for name in names:
        if name not in TASKS:
            raise UnknownNameError("task", name, TASKS)
    return names


def _check(config: EvalConfig) -> None:
    if config.bootstrap < 0:
        raise ConfigError(f"--bootstrap {config.bootstrap}: expected 0 or more draws")
    for prompt in config.prompt:
        if prompt.count("{}") != 1:
            raise ConfigError(f"--prompt {prompt!r}: expected exactly one {{}} where the class name goes")


def _evaluate(
    source: inputs.ModelSource,
    manifest: Manifest,
    *,
    wanted: Sequence[str],
    device: str,
    config: EvalConfig,
    run_dir: RunDir,
    reporter: Reporter,
) -> dict[str, Any]:
    """All tasks of one model."""
    split = manifest.split(config.split)
    tasks = _possible_tasks(split, wanted)
    reporter.say(f"model {source.name} on {device}: {', '.join(tasks)} on {config.split} of {split.name}")
    model = inputs.load_model(source.path, device=device)
    audio = embed_clips(
        model,
        split,
        reporter=reporter,
        batch_size=config.batch_size,
        precision=config.precision,
        device=device,
        workers=config.workers,
    )
    if audio.rejected:
        run_dir.write_lines(run_dir.rejected_path, [{"item": r.item, "reason": r.reason} for r in audio.rejected])
        reporter.warn(f"{len(audio.rejected)} of {len(split)} clips could not be embedded, see rejected.jsonl")
    clips = [split.clips[row] for row in audio.clip]
    evaluated = _Evaluated(model, device, clips, audio, config, reporter)
    outcome: dict[str, Any] = {
        "run": source.name,
        "model": os.fspath(source.path),
        "model_fingerprint": source.fingerprint,
        "protocol": _protocol(split, evaluated),
        "tasks": {},
        "per_query": {},
    }
    for task in tasks:
        result = _retrieval(evaluated) if task == "retrieval" else _zero_shot(evaluated, manifest)
        outcome["per_query"][task] = result.pop("per_query")
        outcome["tasks"][task] = result
        for warning in result["warnings"]:
            reporter.warn(warning)
    return outcome


def _possible_tasks(split: Manifest, wanted: Sequence[str]) -> list[str]:
    has = {
        "retrieval": any(clip.captions for clip in split),
        "zero-shot": any(clip.labels for clip in split),
    }
    needs = {"retrieval": "captions", "zero-shot": "labels"}
    for task in wanted:
        if not has[task]:
            raise ManifestError(f"data {split.name}: no clip has {needs[task]}, which {task} needs; choose another task")
    tasks = [task for task in (wanted or TASKS) if has[task]]
    if not tasks:
        raise ManifestError(f"data {split.name}: no clip has captions or labels, so there is nothing to evaluate")
    return tasks


def _protocol(split: Manifest, evaluated: _Evaluated) -> dict[str, Any]:
    """What must be equal for two numbers to be comparable."""
    config, spec, clips = evaluated.config, evaluated.model.audio_spec, evaluated.clips
    identity = "\n".join(clip.id for clip in clips)
    return {
        "data": split.name,
        "split": config.split,
        "fingerprint": split.fingerprint,
        "num_clips": len(clips),
        "num_captions": sum(len(clip.captions) for clip in clips),
        "num_rejected": len(evaluated.audio.rejected),
        "id_hash": hashlib.sha256(identity.encode()).hexdigest(),
        "audio_policy": {
            "sample_rate": spec.sample_rate,
            "window_s": spec.window_s,
            "hop_s": spec.window_s,
            "padding": "zeros",
            "pool": "mean",
        },
        "precision": config.precision,
        "ties": "pessimistic",
        "intervals": {"kind": "bootstrap over clips", "level": 0.95, "num_draws": config.bootstrap, "seed": config.seed},
        "metric_definitions": DEFINITIONS_VERSION,
    }


def _retrieval(evaluated: _Evaluated) -> dict[str, Any]:
    texts, caption_clip = caption_rows(evaluated.clips)
    if not texts:
        raise ManifestError("no clip that could be embedded has a caption; see rejected.jsonl")
    languages = [caption.lang for clip in evaluated.clips for caption in clip.captions]
    similarity = cosine_similarity(evaluated.audio.vectors, evaluated.embed_texts(texts, languages))
    result = evaluate_retrieval(similarity, caption_clip)
    per_query = result.pop("per_query")
    config = evaluated.config
    result["intervals"] = (
        retrieval_intervals(per_query, num_draws=config.bootstrap, seed=config.seed) if config.bootstrap else {}
    )
    result["per_query"] = {
        direction: {"id": [evaluated.clips[row].id for row in columns["clip"]], **columns}
        for direction, columns in per_query.items()
    }
    result["per_query"]["t2a"]["caption"] = texts
    return result


def _zero_shot(evaluated: _Evaluated, manifest: Manifest) -> dict[str, Any]:
    """Classify the labelled clips; the classes are those of the whole data set, not of the split."""
    classes = sorted({label for clip in manifest for label in clip.labels})
    rows = np.array([row for row, clip in enumerate(evaluated.clips) if clip.labels], dtype=np.int64)
    if not len(rows):
        raise ManifestError("no clip that could be embedded has a label; see rejected.jsonl")
    config = evaluated.config
    prompts = [prompt.replace("{}", class_text(name)) for name in classes for prompt in config.prompt]
    embedded = evaluated.embed_texts(prompts).reshape(len(classes), len(config.prompt), -1)  # [C, P, D]
    scores = cosine_similarity(evaluated.audio.vectors[rows], class_vectors(embedded))  # [N, C]
    column = {name: number for number, name in enumerate(classes)}
    labels = np.zeros(scores.shape, dtype=bool)
    for number, row in enumerate(rows):
        labels[number, [column[name] for name in evaluated.clips[row].labels]] = True
    result = evaluate_zero_shot(scores, labels)
    per_query = result.pop("per_query")
    result["intervals"] = (
        zero_shot_intervals(scores, labels, num_draws=config.bootstrap, seed=config.seed) if config.bootstrap else {}
    )
    result["warnings"] = _zero_shot_warnings(result["counts"], num_unlabelled=len(evaluated.clips) - len(rows))
    result["protocol"] = {
        "prompts": list(config.prompt),
        "classes": classes,
        "class_texts": [class_text(name) for name in classes],
        "accuracy_over": f"{result['counts']['num_single_label_clips']} clips with one label, pooled",
    }
    if per_query:
        per_query["id"] = [evaluated.clips[row].id for row in rows[per_query["clip"]]]
        per_query["target"] = [classes[number] for number in per_query["target"]]
        per_query["predicted"] = [classes[number] for number in per_query["predicted"]]
    result["per_query"] = {"zero_shot": per_query} if per_query else {}
    return result


def _zero_shot_warnings(counts: dict[str, int], *, num_unlabelled: int) -> list[str]:
    warnings = []
    if num_unlabelled:
        warnings.append(f"zero-shot: {num_unlabelled} clips without labels are left out")
    if counts["num_single_label_clips"] < counts["num_clips"]:
        share = f"{counts['num_single_label_clips']} of {counts['num_clips']}"
        warnings.append(f"zero-shot: accuracy is over the {share} clips with one label")
    if counts["num_classes_present"] < counts["num_classes"]:
        share = f"{counts['num_classes_present']} of {counts['num_classes']}"
        warnings.append(f"zero-shot: {share} classes have clips in the split")
    return warnings
