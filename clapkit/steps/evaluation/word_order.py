"""What the order of words is worth: retrieval with captions as they are against the same words shuffled.

A model that hears which things a caption names, and not how they hang together, loses nothing when the words are shuffled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clapkit.data.languages import WITHOUT_BLANKS
from clapkit.metrics.blockwise import count_pairs
from clapkit.metrics.ranking import hit_probability
from clapkit.metrics.statistics import Summary, bootstrap_intervals, weighted_mean
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.result import TaskResult


def shuffle_words(text: str, *, generator: np.random.Generator) -> str | None:
    """The words of a sentence in another order; None if there is no other.

    A word is what stands between blanks, with its punctuation: the shuffled sentence has the same words, letter by letter.
    Every other order is as likely as any.

    Args:
        text: the sentence.
        generator: draws the order.
    """
    words = text.split()
    if len(set(words)) < 2:
        return None
    while True:  # of n words at least two differ, so that a draw gives a new order with a probability of 1/2 or more
        drawn = [words[place] for place in generator.permutation(len(words))]
        if drawn != words:
            return " ".join(drawn)


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Captions with their words shuffled.

    Attributes:
        rows: of the captions among all, ascending.
        texts: their words in another order.
        num_without_blanks: captions left out because their language writes no blanks between words.
        num_without_order: captions left out because there is no other order of their words.
    """

    rows: list[int]
    texts: list[str]
    num_without_blanks: int
    num_without_order: int


def shuffle_captions(texts: Sequence[str], languages: Sequence[str], *, seed: int) -> Shuffled:
    """Shuffle the words of all captions that allow it.

    Equal captions are shuffled equally: otherwise those that several clips share could be told apart afterwards, and a model
    would seem to gain from shuffling. Languages without blanks between words are left out: moving characters would destroy
    the words and not their order.

    Args:
        texts: M captions.
        languages: ISO 639-1 tag of each.
        seed: with the text it decides the order.
    """
    rows, found = [], []
    num_without_blanks = num_without_order = 0
    for row, (text, language) in enumerate(zip(texts, languages, strict=True)):
        if language in WITHOUT_BLANKS:
            num_without_blanks += 1
            continue
        key = hashlib.sha256(text.encode()).digest()[:8]
        shuffled = shuffle_words(text, generator=np.random.default_rng([seed, int.from_bytes(key, "little")]))
        if shuffled is None:
            num_without_order += 1
            continue
        rows.append(row)
        found.append(shuffled)
    return Shuffled(rows, found, num_without_blanks, num_without_order)


def add_word_order(result: TaskResult, evaluated: Evaluated) -> None:
    """Add ``word_order_t2a_R@1_shuffled``, ``word_order_t2a_R@1_drop`` and the same of ``a2t``.

    Captions that cannot be shuffled are neither queries nor in a gallery, before and after. A drop is positive where order
    helps.

    Args:
        result: of the task; metrics, intervals, counts, warnings, tables and protocol are added.
        evaluated: with a model that can embed.
    """
    captions = evaluated.captions
    shuffled = shuffle_captions(captions.texts, captions.languages, seed=evaluated.config.seed)
    _add_counts(result, shuffled, num_captions=len(captions.texts))
    if not shuffled.rows:
        return
    tables = _tables(evaluated, shuffled)
    query_clips = tables["word_order_a2t"]["clip"]
    summaries: dict[str, Summary] = {}
    result.details["word_order"] = {}
    for table, columns in tables.items():
        result.per_query[table] = {"id": [evaluated.clips[row].id for row in columns["clip"]], **columns}
        result.details["word_order"][f"{table}_R@1_original"] = float(columns["original"].mean())
        clip = np.searchsorted(query_clips, columns["clip"])
        for kind in ("shuffled", "drop"):
            metric = f"{table}_R@1_{kind}"
            result.metrics[metric] = float(columns[kind].mean())
            result.tested[metric] = (table, kind)
            summaries[metric] = weighted_mean(columns[kind], clip, num_clips=len(query_clips))
    result.chance |= {
        "word_order_t2a_R@1_shuffled": 1 / len(evaluated.clips),
        "word_order_a2t_R@1_shuffled": 1 / len(query_clips),  # a clip owns M / Q of M captions on average
    }
    config = evaluated.config
    if config.bootstrap:
        result.intervals |= bootstrap_intervals(
            summaries, num_clips=len(query_clips), num_draws=config.bootstrap, seed=config.seed
        )


def _tables(evaluated: Evaluated, shuffled: Shuffled) -> dict[str, dict[str, Any]]:
    """Table -> ``clip`` and R@1 as it was (``original``), with shuffled words, and their difference (``drop``)."""
    captions = evaluated.captions
    rows = np.array(shuffled.rows, dtype=np.int64)
    new_vectors = evaluated.embed_texts(shuffled.texts, [captions.languages[row] for row in rows])
    clip, everything = captions.clip[rows], np.ones(len(rows), dtype=bool)
    t2a: dict[str, Any] = {
        "clip": clip,
        "caption": [captions.texts[row] for row in rows],
        "shuffled_caption": shuffled.texts,
    }
    a2t: dict[str, Any] = {"clip": np.unique(clip)}
    for kind, texts in (("original", captions.vectors[rows]), ("shuffled", new_vectors)):
        counted = count_pairs(evaluated.audio, texts, clip, np.arange(len(rows)))
        t2a[kind] = hit_probability(counted.text_to_audio(everything)[1], 1)
        a2t[kind] = hit_probability(counted.audio_to_text(everything)[1], 1)
    tables = {"word_order_t2a": t2a, "word_order_a2t": a2t}
    return {name: table | {"drop": table["original"] - table["shuffled"]} for name, table in tables.items()}


def _add_counts(result: TaskResult, shuffled: Shuffled, *, num_captions: int) -> None:
    result.counts |= {
        "num_shuffled_captions": len(shuffled.rows),
        "num_captions_without_blanks": shuffled.num_without_blanks,
        "num_captions_without_other_order": shuffled.num_without_order,
    }
    result.protocol["word_order"] = "words between blanks, with their punctuation; equal captions are shuffled equally"
    left_out = num_captions - len(shuffled.rows)
    if left_out:
        result.warnings.append(
            f"word order: {left_out} of {num_captions} captions cannot be shuffled and are left out: "
            f"{shuffled.num_without_blanks} in languages without blanks, {shuffled.num_without_order} with one order only"
        )
