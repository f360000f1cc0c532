"""Temporal order: sounds made of two recordings of the split, and sentences that say in which order they come.

The questions are those of TeminAL (arXiv 2408.09269, parts A and B) in a form of our own, because its lists are not public.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.metrics.ranking import FloatArray, hit_probability, rank_pairs
from clapkit.metrics.statistics import bootstrap_intervals, weighted_mean
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.prompts import spell
from clapkit.steps.evaluation.result import Task, TaskResult
from clapkit.steps.evaluation.sound_pairs import FADE_S, RMS, SOUNDS, Mixer, draw_pairs, pair_sounds
from clapkit.types import Clip

NUM_PAIRS = 200
"""Pairs of clips, at most."""

# As many name the sound that is heard second first as the other way round: who takes the order of mention for the order in
# time gets half of them right.
SEQUENCE_TEMPLATES = (
    "{first}, then {second}",
    "{first} followed by {second}",
    "{second} after {first}",
    "{second} preceded by {first}",
)
OVERLAY_TEMPLATE = "{first} and {second} at the same time"
FIRST_EVENT_PROMPT = "The first sound is {}."
SINGLE_TEMPLATE, BOTH_TEMPLATE = "{first}", "{first} and {second}"

_METRICS = ("sentence_accuracy", "order_accuracy", "first_event_accuracy", "both_events")


def build() -> Task:
    """Temporal order."""
    return Temporal()


class Temporal:
    """Two recordings one after the other, the other way round, at once, and alone: which sentence is true?"""

    needs = "a single label, of at least two in the split"
    by_default = False
    needs_model = True

    def possible(self, split: Manifest) -> bool:
        """Whether two classes have clips with that label only."""
        return len(_single_label(split.clips)) > 1

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Make the sounds, embed them and ask; every question is answered rightly only by a score that is alone at the top."""
        evaluated.needs_model("temporal")
        by_class = _single_label(evaluated.clips)
        if len(by_class) < 2:
            raise ManifestError(
                f"temporal: {len(by_class)} classes have clips with one label that could be embedded, expected at least 2; "
                "see rejected.jsonl"
            )
        drawn = draw_pairs(by_class, num_pairs=NUM_PAIRS, seed=evaluated.config.seed)
        row = {clip.id: number for number, clip in enumerate(evaluated.clips)}
        pairs = np.array([(row[x], row[y]) for x, y in drawn], dtype=np.int64)  # [P, 2]
        sounds, kept = _embed_sounds(evaluated, pairs)
        classes = sorted({label for clip in evaluated.manifest for label in clip.labels})
        answers = _ask(evaluated, sounds, pairs[kept], classes)
        result = _result(evaluated, pairs[kept], answers, classes)
        result.counts |= {"num_pairs": len(kept), "num_silent_pairs": len(pairs) - len(kept)}
        if len(kept) < len(pairs):
            left_out = len(pairs) - len(kept)
            result.warnings.append(f"temporal: {left_out} of {len(pairs)} pairs have a silent recording and are left out")
        if len(pairs) < NUM_PAIRS:
            result.warnings.append(f"temporal: {len(pairs)} pairs are all that the split allows, fewer than {NUM_PAIRS}")
        return result


def _single_label(clips: Sequence[Clip]) -> dict[str, list[str]]:
    """Class -> ids of the clips that have this label only."""
    found: dict[str, list[str]] = {}
    for clip in clips:
        if len(clip.labels) == 1:
            found.setdefault(clip.labels[0], []).append(clip.id)
    return found


def _embed_sounds(evaluated: Evaluated, pairs: np.ndarray[Any, Any]) -> tuple[FloatArray, list[int]]:
    """Unit-norm vectors of the sounds [P kept, 5, D], and the numbers of the pairs that were kept."""
    spec = evaluated.needs_model("temporal").audio_spec
    kept: list[int] = []
    sounds = pair_sounds(evaluated.waveforms(pairs.ravel().tolist()), Mixer(spec.sample_rate, spec.window_samples), kept=kept)
    first = next(sounds, None)
    if first is None:
        raise ManifestError(f"temporal: all of {len(pairs)} pairs have a silent recording; choose another split")
    vectors = evaluated.embed_waveforms(
        itertools.chain([first], sounds), total=len(SOUNDS) * len(pairs), description="embed sequences"
    )
    return vectors.reshape(len(kept), len(SOUNDS), -1), kept


def _ask(
    evaluated: Evaluated, sounds: FloatArray, pairs: np.ndarray[Any, Any], classes: Sequence[str]
) -> dict[str, FloatArray]:
    """Whether each question is answered rightly, 0 or 1.

    Returns:
        ``sentence`` [P, 3 sounds, T templates], ``order`` [P, 2 sequences, T], ``first_event`` [P, 2 sequences], ``both``
        [P, 4]: both at once against x and against y, x alone and y alone against both.
    """
    labels = [[evaluated.clips[row].labels[0] for row in pair] for pair in pairs]
    texts = [[spell(label, "blanks") for label in pair] for pair in labels]
    sentences = _vectors(evaluated, [_sentences(x, y) for x, y in texts]).reshape(len(pairs), len(SEQUENCE_TEMPLATES), 3, -1)
    scores = _cosines("psd,ptcd->pstc", sounds[:, :3], sentences)  # [P, sound, T, sentence]
    prompts = _vectors(evaluated, [[FIRST_EVENT_PROMPT.replace("{}", spell(name, "blanks")) for name in classes]])[0]  # [C, D]
    number = {name: place for place, name in enumerate(classes)}
    heard_first = np.array([[number[label] for label in pair] for pair in labels])  # [P, 2]: sequence, reversed
    alone_or_both = _vectors(evaluated, [_alone_or_both(x, y) for x, y in texts])  # [P, (x, y, both), D]
    return {
        "sentence": _is_right(scores, np.arange(3)[None, :, None]),
        "order": _is_right(scores[:, :2, :, :2], np.arange(2)[None, :, None]),
        "first_event": _is_right(_cosines("psd,cd->psc", sounds[:, :2], prompts), heard_first),
        "both": _both(_cosines("psd,ptd->pst", sounds[:, 2:], alone_or_both)),
    }


def _sentences(x: str, y: str) -> list[str]:
    """For every template: x then y, y then x, both at once."""
    both = OVERLAY_TEMPLATE.format(first=x, second=y)
    return [
        sentence
        for template in SEQUENCE_TEMPLATES
        for sentence in (template.format(first=x, second=y), template.format(first=y, second=x), both)
    ]


def _alone_or_both(x: str, y: str) -> list[str]:
    return [SINGLE_TEMPLATE.format(first=x), SINGLE_TEMPLATE.format(first=y), BOTH_TEMPLATE.format(first=x, second=y)]


def _vectors(evaluated: Evaluated, texts: Sequence[Sequence[str]]) -> FloatArray:
    """Unit norm [rows, sentences of a row, D]."""
    embedded = evaluated.embed_texts([text for row in texts for text in row])
    return embedded.reshape(len(texts), len(texts[0]), -1)


def _cosines(subscripts: str, sounds: FloatArray, texts: FloatArray) -> FloatArray:
    """Float32 as everywhere: equal vectors then have equal scores, and ties are seen."""
    cosines: FloatArray = np.einsum(subscripts, sounds.astype(np.float64), texts.astype(np.float64)).astype(np.float32)
    return cosines


def _is_right(scores: FloatArray, right: np.ndarray[Any, Any]) -> FloatArray:
    """Whether the right choice scores higher than all others, for scores [..., choices] and right choices [...]."""
    flat = scores.reshape(-1, scores.shape[-1])
    choice = np.broadcast_to(right, scores.shape[:-1]).ravel()
    return hit_probability(rank_pairs(flat, np.arange(len(flat)), choice), 1).reshape(scores.shape[:-1])


def _both(scores: FloatArray) -> FloatArray:
    """Questions with two choices, [P, 4], of scores [P, (overlay, x, y), (x, y, both)]."""
    questions = np.stack(
        [
            scores[:, 0, [2, 0]],  # heard at once: "x and y" against "x"
            scores[:, 0, [2, 1]],  # ... against "y"
            scores[:, 1, [0, 2]],  # x alone: "x" against "x and y"
            scores[:, 2, [1, 2]],
        ],
        axis=1,
    )  # [P, 4, (right, wrong)]
    return _is_right(questions, np.zeros((1, 1), dtype=np.int64))


def _result(
    evaluated: Evaluated, pairs: np.ndarray[Any, Any], answers: dict[str, FloatArray], classes: Sequence[str]
) -> TaskResult:
    columns: dict[str, Any] = {
        "sentence_accuracy": answers["sentence"].mean(axis=(1, 2)),
        "order_accuracy": answers["order"].mean(axis=(1, 2)),
        "first_event_accuracy": answers["first_event"].mean(axis=1),
        "both_events": answers["both"].mean(axis=1),
    }  # [P]
    clips = evaluated.clips
    texts = [[spell(clips[row].labels[0], "blanks") for row in pair] for pair in pairs]
    table: dict[str, Any] = {
        "id": [clips[x].id for x, _ in pairs],
        "clip": pairs[:, 0],
        "second_id": [clips[y].id for _, y in pairs],
        # With the second recording, because two pairs of the same clip and classes are two queries.
        "caption": [f"{x}, then {y} ({clips[pair[1]].id})" for (x, y), pair in zip(texts, pairs, strict=True)],
    }
    chances = (1 / 3, 1 / 2, 1 / len(classes), 1 / 2)
    result = TaskResult(
        metrics={f"temporal_{name}": float(columns[name].mean()) for name in _METRICS},
        chance={f"temporal_{name}": chance for name, chance in zip(_METRICS, chances, strict=True)},
        counts={"num_classes": len(classes)},
        protocol=_protocol(evaluated, classes),
        details=_details(answers),
        per_query={"temporal": table | columns},
        tested={f"temporal_{name}": ("temporal", name) for name in _METRICS},
    )
    config = evaluated.config
    if config.bootstrap:
        size = len(pairs)
        summaries = {f"temporal_{name}": weighted_mean(columns[name], np.arange(size), num_clips=size) for name in _METRICS}
        result.intervals = bootstrap_intervals(summaries, num_clips=size, num_draws=config.bootstrap, seed=config.seed)
    return result


def _details(answers: dict[str, FloatArray]) -> dict[str, Any]:
    sentence, order, both = answers["sentence"], answers["order"], answers["both"]
    return {
        "per_template": {
            template: {
                "sentence_accuracy": float(sentence[:, :, place].mean()),
                "order_accuracy": float(order[:, :, place].mean()),
            }
            for place, template in enumerate(SEQUENCE_TEMPLATES)
        },
        "sentence_accuracy_of": {
            "sequence": float(sentence[:, :2].mean()),
            "overlay": float(sentence[:, 2].mean()),
        },
        "both_events_of": {"overlay": float(both[:, :2].mean()), "single": float(both[:, 2:].mean())},
    }


def _protocol(evaluated: Evaluated, classes: Sequence[str]) -> dict[str, Any]:
    spec = evaluated.needs_model("temporal").audio_spec
    mixer = Mixer(spec.sample_rate, spec.window_samples)
    return {
        "max_pairs": NUM_PAIRS,
        "seed": evaluated.config.seed,
        "max_event_s": mixer.max_event / spec.sample_rate,
        "fade_s": FADE_S,
        "rms": RMS,
        "sequence_templates": list(SEQUENCE_TEMPLATES),
        "overlay_template": OVERLAY_TEMPLATE,
        "first_event_prompt": FIRST_EVENT_PROMPT,
        "both_templates": [SINGLE_TEMPLATE, BOTH_TEMPLATE],
        "classes": list(classes),
        "intervals_over": "pairs of clips; pairs that share a clip count as independent, so the intervals are a little narrow",
    }
