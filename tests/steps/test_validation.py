from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import AudioError, ConfigError, ManifestError
from clapkit.metrics.cross_lingual import consistency
from clapkit.steps import validation
from clapkit.steps.evaluation.context import Captions
from clapkit.steps.validation import LANGUAGE_MEAN, RETRIEVAL_METRICS, VALIDATION_METRICS, Validator, language_metrics
from clapkit.types import Caption


def test_a_whole_split_gives_every_metric(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    validate = Validator(tiny_encoder, split, workers=1, precision="fp32")
    metrics = validate()
    assert metrics.keys() == set(RETRIEVAL_METRICS)
    assert metrics["t2a_R@10"] == 1.0  # six clips
    assert validate() == metrics


def test_a_clip_that_cannot_be_decoded_stops_validation(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    split.audio_path(split.clips[2]).write_bytes(b"gone")
    with pytest.raises(AudioError, match="validation split: 1 clips cannot be decoded, first val-2"):
        Validator(tiny_encoder, split, workers=1, precision="fp32")()


def test_a_split_without_captions_is_refused(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    path = tone_corpus()
    clips = [replace(clip, captions=()) for clip in Manifest.load(path).split("val")]
    silent = Manifest.write(path.with_name("mute.jsonl"), clips, root=path.parent, name="mute")
    with pytest.raises(ManifestError, match="validation split: no clip has a caption"):
        Validator(tiny_encoder, silent, workers=1, precision="fp32")


class _Told(Exception):
    """Carries what a process would send to the others."""


class _Share:
    """One of several processes that are run one after the other: first what each sends, then what one receives."""

    def __init__(self, rank: int, size: int, told: list[Any] | None = None) -> None:
        self.rank, self.size, self.is_first = rank, size, rank == 0
        self._told = told

    def gather_values(self, value: Any) -> list[Any]:
        if self._told is None:
            raise _Told(value)
        return self._told


def on_processes(size: int, encoder: Any, split: Manifest) -> dict[str, float]:
    told = []
    for rank in range(size):
        with pytest.raises(_Told) as sent:
            Validator(encoder, split, workers=1, precision="fp32", processes=cast(Any, _Share(rank, size)))()
        told.append(sent.value.args[0])
    shared = [
        Validator(encoder, split, workers=1, precision="fp32", processes=cast(Any, _Share(r, size, told)))()
        for r in (0, size - 1)
    ]
    assert shared[0] == shared[1]
    return shared[0]


@pytest.mark.parametrize("size", [2, 4, 9])  # of 9 processes some have no clip: there are 6
def test_shared_over_processes_the_metrics_are_those_of_one(
    size: int, tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder
) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    assert on_processes(size, tiny_encoder, split) == Validator(tiny_encoder, split, workers=1, precision="fp32")()


def test_a_bad_clip_of_one_process_stops_validation_on_all(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    split.audio_path(split.clips[5]).write_bytes(b"gone")
    with pytest.raises(AudioError, match="validation split: 1 clips cannot be decoded, first val-5"):
        on_processes(2, tiny_encoder, split)


def test_captions_are_read_in_their_languages(polyglot: Any, corpus: Manifest) -> None:
    clips = tuple(replace(clip, captions=(Caption("rain"), Caption("rain", "de"))) for clip in corpus.clips)
    Validator(polyglot, replace(corpus, clips=clips), workers=1, precision="fp32")()
    assert set(polyglot.text_tower.seen) == {("rain", "en"), ("rain", "de")}


def in_languages(split: Manifest, *, lacking: tuple[int, ...] = ()) -> Manifest:
    """Two English captions a clip and two German ones, which the clips ``lacking`` do not have."""
    clips = []
    for number, clip in enumerate(split):
        german = [] if number in lacking else [Caption(f"Ton {number}", "de"), Caption(f"noch ein Ton {number}", "de")]
        clips.append(replace(clip, captions=(*clip.captions, *german)))
    return replace(split, clips=tuple(clips))


def given(languages: list[str], clip: list[int]) -> Captions:
    """Captions of which only language and clip matter."""
    return Captions([""] * len(clip), np.array(clip), languages, np.empty((len(clip), 0), dtype=np.float32))


def test_each_language_is_scored_by_itself(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    """Against a validator that is shown the captions of one language only: same galleries, same queries."""
    split = in_languages(Manifest.load(tone_corpus()).split("val"))
    metrics = Validator(tiny_encoder, split, workers=1, precision="fp32")()
    own = {f"{name}_{tag}" for name in ("t2a_R@1", "t2a_R@10", "a2t_R@1") for tag in ("de", "en")}
    assert metrics.keys() == {*RETRIEVAL_METRICS, *own, "t2a_R@1_macro", "mrv"}
    for tag in ("de", "en"):
        clips = tuple(replace(clip, captions=tuple(c for c in clip.captions if c.lang == tag)) for clip in split)
        alone = Validator(tiny_encoder, replace(split, clips=clips), workers=1, precision="fp32")()
        for name in ("t2a_R@1", "t2a_R@10", "a2t_R@1"):
            assert metrics[f"{name}_{tag}"] == alone[name]
    assert metrics["t2a_R@1_macro"] == pytest.approx((metrics["t2a_R@1_de"] + metrics["t2a_R@1_en"]) / 2)


def test_languages_by_hand() -> None:
    # Clips 0, 1, 2. English captions find theirs at ranks 1, 1, 2, German ones at 1, 3, 3:
    #   R@1 2/3 and 1/3, mean 1/2. Variances of the ranks: 0, 1, 1/4; mean 5/12.
    # Clips look for captions of one language: English 0 and 1 are right, clip 2 has 0.8 against 0.7; of the German ones the
    # best of clip 0 is its own, of clip 1 that of clip 2 (0.5 against 0.1), of clip 2 that of clip 1 (0.4 against 0.2).
    similarity = np.array(
        [
            [0.9, 0.1, 0.3, 0.8, 0.3, 0.3],
            [0.2, 0.9, 0.8, 0.2, 0.1, 0.5],
            [0.1, 0.8, 0.7, 0.1, 0.4, 0.2],
        ],
        dtype=np.float32,
    )
    captions = given(["en"] * 3 + ["de"] * 3, [0, 1, 2, 0, 1, 2])
    assert language_metrics(similarity, captions, np.array([1.0, 1, 2, 1, 3, 3])) == pytest.approx(
        {
            "t2a_R@1_en": 2 / 3,
            "t2a_R@10_en": 1.0,
            "a2t_R@1_en": 2 / 3,
            "t2a_R@1_de": 1 / 3,
            "t2a_R@10_de": 1.0,
            "a2t_R@1_de": 1 / 3,
            "t2a_R@1_macro": 1 / 2,
            "mrv": 5 / 12,
        }
    )


def test_the_mean_counts_languages_alike_however_many_captions_they_have() -> None:
    # English: captions of clips 0, 0, 0, 1 at ranks 1, 1, 1, 2; German: one of clip 1 at rank 1. Mean (3/4 + 1) / 2.
    similarity = np.array([[0.9, 0.9, 0.9, 0.9, 0.1], [0.1, 0.1, 0.1, 0.1, 0.9]], dtype=np.float32)
    captions = given(["en"] * 4 + ["de"], [0, 0, 0, 1, 1])
    metrics = language_metrics(similarity, captions, np.array([1.0, 1, 1, 2, 1]))
    assert metrics["t2a_R@1_macro"] == pytest.approx(7 / 8)


def test_rank_variance_is_that_of_eval(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder, monkeypatch: Any) -> None:
    """Of captions that lack a translation nothing is said, as in ``eval``."""
    seen: dict[str, Any] = {}
    score = validation.evaluate_retrieval

    def keep(similarity: Any, clips: Any) -> dict[str, Any]:
        found = score(similarity, clips)
        seen[str(len(clips))] = found["per_query"]["t2a"]["rank"]
        return found

    monkeypatch.setattr(validation, "evaluate_retrieval", keep)
    split = in_languages(Manifest.load(tone_corpus()).split("val"), lacking=(1, 4))
    metrics = Validator(tiny_encoder, split, workers=1, precision="fp32")()
    english, german = seen["12"], seen["8"]
    ranks = np.stack([[rank for row, rank in enumerate(english) if row // 2 not in (1, 4)], german])
    expected = consistency(ranks, np.zeros((2, 8, 1), dtype=np.int64))["rank_variance"].mean()
    assert metrics["mrv"] == pytest.approx(expected)
    assert expected > 0


def test_rank_variance_is_0_where_languages_agree_and_left_out_where_nothing_is_parallel() -> None:
    similarity = np.array([[0.9, 0.2, 0.9, 0.2], [0.1, 0.1, 0.1, 0.1]], dtype=np.float32)
    rank = np.array([1.0, 2, 1, 2])
    assert language_metrics(similarity, given(["en", "en", "de", "de"], [0, 1, 0, 1]), rank)["mrv"] == 0
    apart = language_metrics(similarity, given(["en", "de", "en", "de"], [0, 1, 0, 1]), rank)
    assert "mrv" not in apart
    assert apart["t2a_R@1_macro"] == 0.5


def test_shared_over_processes_languages_are_scored_alike(tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder) -> None:
    split = in_languages(Manifest.load(tone_corpus()).split("val"), lacking=(0,))
    assert on_processes(3, tiny_encoder, split) == Validator(tiny_encoder, split, workers=1, precision="fp32")()


def test_captions_are_embedded_once_for_all_languages(
    tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    embed = validation.embed_texts
    monkeypatch.setattr(
        validation, "embed_texts", lambda model, texts, **more: calls.append(len(texts)) or embed(model, texts, **more)
    )
    Validator(tiny_encoder, in_languages(Manifest.load(tone_corpus()).split("val")), workers=1, precision="fp32")()
    assert calls == [24]


def test_a_mean_over_languages_cannot_be_kept_where_there_is_one(
    tone_corpus: Callable[..., Path], tiny_encoder: DualEncoder
) -> None:
    split = Manifest.load(tone_corpus()).split("val")
    message = r"--keep-best t2a_R@1_macro: all validation captions are in en, which leaves no mean over languages"
    with pytest.raises(ConfigError, match=message):
        Validator(tiny_encoder, split, workers=1, precision="fp32", keep_best=LANGUAGE_MEAN)
    Validator(tiny_encoder, split, workers=1, precision="fp32", keep_best="t2a_R@1")
    validate = Validator(tiny_encoder, in_languages(split), workers=1, precision="fp32", keep_best=LANGUAGE_MEAN)
    assert {LANGUAGE_MEAN} == set(VALIDATION_METRICS) - set(RETRIEVAL_METRICS)
    assert LANGUAGE_MEAN in validate()
