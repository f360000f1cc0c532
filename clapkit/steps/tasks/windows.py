"""Long recordings: what becomes of retrieval when the sound of a clip is one of its windows, their mean, or put together.

Only clips that are longer than the window of the model take part, as queries and as what is found: for all others the rules
are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest, fingerprint
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ManifestError
from clapkit.metrics.retrieval import evaluate_counted, evaluate_embeddings
from clapkit.metrics.statistics import Summary, bootstrap_intervals, weighted_mean
from clapkit.metrics.windowed import count_windowed_pairs
from clapkit.steps.clip_vectors import expect_finite, unit_norm
from clapkit.steps.embedding import embed_clips
from clapkit.steps.encoding import own_fusion
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.result import Task, TaskResult
from clapkit.types import Clip

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

WINDOW_TAU = 0.1
"""Of the soft-max over windows, as in training."""

RULES = {
    "first": "the first window",
    "mean": "the normalised mean of all windows",
    "best": "the window that fits the caption best",
    "softmax": f"the windows weighted by a soft-max of their cosines with the caption, temperature {WINDOW_TAU}",
    "attention": "the windows weighted by the model's own attention",
}
"""What the sound of a clip is."""

_KS = (1, 10)
_DIRECTIONS = ("t2a", "a2t")


def build() -> Task:
    """Retrieval of long clips by several rules."""
    return Windows()


class Windows:
    """Retrieval among clips that are longer than the model's window, by what is taken for their sound."""

    needs = "captions, and clips that are longer than the model's window"
    by_default = False
    needs_model = True

    def possible(self, split: Manifest) -> bool:
        """Whether a clip has a caption; how long clips must be depends on the model."""
        return any(clip.captions for clip in split)

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Embed the windows of long clips once, and rank by every rule.

        Raises:
            ManifestError: if fewer than two clips are longer than the window, or none of them has a caption.
        """
        model = evaluated.needs_model("windows")
        clips = _embed_windows(evaluated, model)
        caption = np.flatnonzero(np.isin(evaluated.captions.clip, clips.rows))  # [M], among all captions
        if not len(caption):
            raise ManifestError("windows: no clip that is longer than the model's window has a caption; leave the task out")
        found = _rank(
            clips, evaluated.captions.vectors[caption], clips.place(evaluated.captions.clip[caption]), model, evaluated
        )
        return _result(evaluated, clips, caption, found)


@dataclass(frozen=True, slots=True)
class _LongClips:
    """Clips of more than one window.

    Attributes:
        rows: int64 [N], their rows among the evaluated clips, ascending.
        windows: unit norm [R, D], clip by clip.
        num_windows: int64 [N].
        window_s: length of a window in seconds.
    """

    rows: IntArray
    windows: FloatArray
    num_windows: IntArray
    window_s: float

    def place(self, rows: IntArray) -> IntArray:
        """Evaluated clips to their places here."""
        places: IntArray = np.searchsorted(self.rows, rows).astype(np.int64)
        return places

    @property
    def first(self) -> IntArray:
        """The first window of each clip [N]."""
        starts: IntArray = np.cumsum(self.num_windows) - self.num_windows
        return starts


def _embed_windows(evaluated: Evaluated, model: DualEncoder) -> _LongClips:
    spec, config = model.audio_spec, evaluated.config

    def may_be_long(clip: Clip) -> bool:
        return clip.duration_s is None or round(clip.duration_s * spec.sample_rate) > spec.window_samples

    rows = np.array([row for row, clip in enumerate(evaluated.clips) if may_be_long(clip)], dtype=np.int64)
    if len(rows) < 2:
        raise _too_short(len(rows), len(evaluated.clips), spec.window_s)
    chosen = tuple(evaluated.clips[row] for row in rows)
    long = Manifest(clips=chosen, root=evaluated.split.root, name=evaluated.split.name, fingerprint=fingerprint(chosen))
    embedded = embed_clips(
        model,
        long,
        reporter=evaluated.reporter,
        pool="none",
        batch_size=config.batch_size,
        precision=config.precision,
        device=evaluated.device,
        workers=config.workers,
    )
    num_windows = np.bincount(embedded.clip, minlength=len(long))  # [clips that may be long]
    is_long = num_windows > 1
    if is_long.sum() < 2:
        raise _too_short(int(is_long.sum()), len(evaluated.clips), spec.window_s)
    windows = embedded.vectors[is_long[embedded.clip]]
    return _LongClips(rows[is_long], windows, num_windows[is_long], spec.window_s)


def _too_short(num_long: int, num_clips: int, window_s: float) -> ManifestError:
    return ManifestError(
        f"windows: {num_long} of {num_clips} clips are longer than the model's window of {window_s:g} s, expected at least 2; "
        "leave the task out, or evaluate long recordings"
    )


def _rank(
    clips: _LongClips, text: FloatArray, caption_clip: IntArray, model: DualEncoder, evaluated: Evaluated
) -> dict[str, dict[str, Any]]:
    """Rule -> what ``clapkit.metrics.retrieval`` says of it."""
    names = [evaluated.clips[row].id for row in clips.rows]
    mean = unit_norm(np.add.reduceat(clips.windows.astype(np.float64), clips.first, axis=0))  # [N, D]
    expect_finite(mean, names)
    vectors: dict[str, FloatArray] = {"first": clips.windows[clips.first], "mean": mean}
    fuse = own_fusion(model, device=evaluated.device)
    if fuse is not None:
        vectors["attention"] = unit_norm(np.stack([fuse(part) for part in np.split(clips.windows, clips.first[1:])]))
        expect_finite(vectors["attention"].astype(np.float32), names)
    found = {rule: evaluate_embeddings(audio, text, caption_clip, ks=_KS) for rule, audio in vectors.items()}
    for rule, tau in (("best", 0.0), ("softmax", WINDOW_TAU)):
        counted = count_windowed_pairs(clips.windows, clips.num_windows, text, caption_clip, tau=tau)
        relevant = np.ones(len(text), dtype=bool)
        found[rule] = evaluate_counted(counted, relevant, caption_clip, num_clips=len(clips.rows), ks=_KS)
    return {rule: found[rule] for rule in RULES if rule in found}


def _result(evaluated: Evaluated, clips: _LongClips, caption: IntArray, found: Mapping[str, dict[str, Any]]) -> TaskResult:
    captions, num_clips = evaluated.captions, len(clips.rows)
    headline = {
        f"windows_{rule}_{direction}_R@{k}": (rule, direction, f"R@{k}")
        for rule in found
        for direction in _DIRECTIONS
        for k in _KS
    }
    result = TaskResult(
        metrics={name: found[rule]["metrics"][f"{way}_{metric}"] for name, (rule, way, metric) in headline.items()},
        chance={name: found[rule]["chance"][f"{way}_{metric}"] for name, (rule, way, metric) in headline.items()},
        counts=found["mean"]["counts"]
        | {
            "num_clips": num_clips,
            "num_windows": len(clips.windows),
            "max_windows_of_a_clip": int(clips.num_windows.max()),
            "num_one_window": len(evaluated.clips) - num_clips,
        },
        protocol={
            "clips": "those of more than one window of the model, as queries and as what is found",
            "window_s": clips.window_s,
            "hop_s": clips.window_s,
            "window_tau": WINDOW_TAU,
            "rules": RULES,
        },
        warnings=_warnings(evaluated, clips, found),
        details={"by_rule": {rule: {"metrics": one["metrics"], "expected": one["expected"]} for rule, one in found.items()}},
        tested={name: (f"windows_{way}", f"{rule}_{metric}") for name, (rule, way, metric) in headline.items()},
    )
    for direction in _DIRECTIONS:
        rows = clips.rows[found["mean"]["per_query"][direction]["clip"]]
        columns: dict[str, Any] = {"id": [evaluated.clips[row].id for row in rows], "clip": rows}
        if direction == "t2a":
            columns["caption"] = [captions.texts[row] for row in caption]
        for rule, one in found.items():
            columns |= {f"{rule}_{name}": one["per_query"][direction][name] for name in ("rank", *(f"R@{k}" for k in _KS))}
        result.per_query[f"windows_{direction}"] = columns
    if evaluated.config.bootstrap:
        result.intervals = _intervals(result, evaluated)
    return result


def _intervals(result: TaskResult, evaluated: Evaluated) -> dict[str, tuple[float, float]]:
    """Clips are drawn, with all their captions; every rule and both directions see the same draws."""
    rows = np.unique(result.per_query["windows_t2a"]["clip"])  # those with captions, the queries of both directions
    summaries: dict[str, Summary] = {}
    for name, (table, column) in result.tested.items():
        columns = result.per_query[table]
        place = np.searchsorted(rows, np.asarray(columns["clip"]))
        summaries[name] = weighted_mean(np.asarray(columns[column]), place, num_clips=len(rows))
    config = evaluated.config
    return bootstrap_intervals(summaries, num_clips=len(rows), num_draws=config.bootstrap, seed=config.seed)


def _warnings(evaluated: Evaluated, clips: _LongClips, found: Mapping[str, dict[str, Any]]) -> list[str]:
    said: dict[str, list[str]] = {}
    for rule, one in found.items():
        for warning in one["warnings"]:
            said.setdefault(warning, []).append(rule)
    warnings = [f"windows, {', '.join(rules)}: {warning}" for warning, rules in said.items()]
    num_short = len(evaluated.clips) - len(clips.rows)
    if num_short:
        warnings.insert(
            0,
            f"windows: {num_short} of {len(evaluated.clips)} clips are no longer than the model's window of "
            f"{clips.window_s:g} s and are left out",
        )
    return warnings
