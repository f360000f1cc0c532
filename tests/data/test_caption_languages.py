from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.data.caption_languages import LanguageDraw, Strategy, even_shares
from clapkit.data.dataset import TrainingBatches
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import RandomBatches
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import AudioSpec, Caption, Clip


def clip_in(number: int, **languages: int) -> Clip:
    """A clip with so many captions of each language; caption ``number-language-i``."""
    captions = [Caption(f"{number}-{tag}-{i}", tag) for tag, count in languages.items() for i in range(count)]
    return Clip(str(number), "a.wav", 1.0, 8000, 1, captions=tuple(captions))


def drawn(draw: LanguageDraw, clips: list[Clip], row: int, epoch: int) -> list[Caption]:
    return [clips[row].captions[n] for n in draw.draw(row, np.random.default_rng([0, epoch, row]))]


def languages_drawn(draw: LanguageDraw, clips: list[Clip], *, epochs: int, which: int = 0) -> Counter[str]:
    return Counter(drawn(draw, clips, row, epoch)[which].lang for epoch in range(epochs) for row in range(len(clips)))


FULL = [clip_in(n, fr=2, en=2, de=2) for n in range(6)]


def test_all_takes_one_caption_of_each_language_in_the_order_of_tags() -> None:
    draw = LanguageDraw(FULL, "all")
    assert draw.languages == ("de", "en", "fr")
    assert draw.captions_per_clip == 3
    for row in range(6):
        assert [caption.lang for caption in drawn(draw, FULL, row, 0)] == ["de", "en", "fr"]


def test_anchor_takes_the_anchor_language_first_and_then_another() -> None:
    draw = LanguageDraw(FULL, "anchor", anchor="fr")
    assert draw.captions_per_clip == 2
    pairs = {tuple(c.lang for c in drawn(draw, FULL, row, epoch)) for row in range(6) for epoch in range(20)}
    assert pairs == {("fr", "de"), ("fr", "en")}


def test_sample_takes_one_caption() -> None:
    draw = LanguageDraw(FULL, "sample")
    assert draw.captions_per_clip == 1
    assert {len(drawn(draw, FULL, row, 0)) for row in range(6)} == {1}


def test_clips_with_all_languages_draw_them_evenly_however_many_captions_each_has() -> None:
    clips = [clip_in(n, en=5, de=1, fr=2) for n in range(4)]
    counts = languages_drawn(LanguageDraw(clips, "sample"), clips, epochs=750)
    # 3000 draws, 1000 each; the standard deviation is sqrt(3000 * 1/3 * 2/3) = 26.
    assert all(abs(counts[tag] - 1000) < 4 * 26 for tag in ("de", "en", "fr"))


def test_captions_of_a_language_are_drawn_evenly() -> None:
    clips = [clip_in(0, en=4, de=2)] * 2
    draw = LanguageDraw(clips, "all")
    pairs = [drawn(draw, clips, 0, epoch) for epoch in range(2000)]
    for column, size in ((0, 2), (1, 4)):
        counts = Counter(pair[column].text for pair in pairs)
        assert len(counts) == size
        assert all(abs(count - 2000 / size) < 4 * 22.4 for count in counts.values())  # sqrt(2000 / 4) = 22.4 at most


@pytest.mark.parametrize("strategy", ["all", "anchor"])
def test_captions_at_the_same_place_come_together_where_languages_have_equally_many(strategy: Strategy) -> None:
    clips = [clip_in(n, en=3, de=3) for n in range(4)]
    draw = LanguageDraw(clips, strategy)
    places = [{c.text.rpartition("-")[2] for c in drawn(draw, clips, row, e)} for row in range(4) for e in range(20)]
    assert all(len(place) == 1 for place in places)
    assert set.union(*places) == {"0", "1", "2"}


def test_languages_come_equally_often_where_clips_lack_some() -> None:
    # Two clips in English, six in both. Even is 4 and 4: of the six, German is drawn with 4/6 and English with 2/6.
    clips = [clip_in(n, en=1) for n in range(2)] + [clip_in(n, en=1, de=1) for n in range(2, 8)]
    shares = even_shares({("en",): 2, ("de", "en"): 6})
    assert shares[("de", "en")] == pytest.approx([4 / 6, 2 / 6], abs=1e-6)
    counts = languages_drawn(LanguageDraw(clips, "sample"), clips, epochs=500)
    # 3000 draws of the six are binomial, sqrt(3000 * 2/3 * 1/3) = 26.
    assert abs(counts["de"] - 2000) < 4 * 26
    assert abs(counts["en"] - 2000) < 4 * 26


def test_the_other_language_of_a_pair_is_balanced_likewise() -> None:
    # Beside English: four clips have German only, four German and French. Even is 4 and 4: the latter draw French.
    clips = [clip_in(n, en=1, de=1) for n in range(4)] + [clip_in(n, en=1, de=1, fr=1) for n in range(4, 8)]
    counts = languages_drawn(LanguageDraw(clips, "anchor"), clips, epochs=250, which=1)
    assert abs(counts["fr"] - 1000) < 20
    assert counts["fr"] + counts["de"] == 2000


def test_shares_follow_from_one_weight_a_language() -> None:
    # {de, en} 4 times and {en, fr} 4 times: 8/3 each needs 2/3 of German from the first and 2/3 of French from the second.
    shares = even_shares({("de", "en"): 4, ("en", "fr"): 4})
    assert shares[("de", "en")] == pytest.approx([2 / 3, 1 / 3], abs=1e-6)
    assert shares[("en", "fr")] == pytest.approx([1 / 3, 2 / 3], abs=1e-6)


def test_a_language_that_is_too_rare_for_even_counts_is_drawn_wherever_it_is() -> None:
    shares = even_shares({("en",): 10, ("de", "en"): 2})
    assert shares[("de", "en")] == pytest.approx([1, 0], abs=1e-6)
    # a cannot come down to its third; b and c share what is left as evenly as they can.
    shares = even_shares({("a",): 100, ("a", "b"): 3, ("b", "c"): 3})
    assert shares[("a", "b")] == pytest.approx([0, 1], abs=2e-3)
    assert shares[("b", "c")] == pytest.approx([0, 1], abs=2e-3)


def test_a_language_that_never_shares_a_clip_changes_nothing() -> None:
    shares = even_shares({("de",): 2, ("en",): 30})
    assert [row.tolist() for row in shares.values()] == [[1.0], [1.0]]


kinds = st.sets(st.sampled_from("abcd"), min_size=1).map(lambda own: tuple(sorted(own)))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(kinds, st.integers(1, 50), min_size=1, max_size=6))
def test_nobody_can_do_better_than_the_shares(count: dict[tuple[str, ...], int]) -> None:
    """Of the most even counts this is the mark: a clip draws a language that is not among its rarest ones (almost) never."""
    shares = even_shares(count)
    clips = sum(count.values())
    expected: Counter[str] = Counter()
    for own, row in shares.items():
        assert row.sum() == pytest.approx(1)
        assert (row >= 0).all()
        for language, share in zip(own, row, strict=True):
            expected[language] += share * count[own]
    for own, row in shares.items():
        rarest = min(expected[language] for language in own)
        for language, share in zip(own, row, strict=True):
            assert share * (expected[language] - rarest) < 0.01 * clips


@pytest.fixture
def spoken(tmp_path: Path) -> Manifest:
    soundfile.write(tmp_path / "a.wav", np.arange(8000) / 8000, 8000, subtype="FLOAT")
    clips = [clip_in(n, en=2, de=2, fr=2) for n in range(8)]
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="spoken")


def batches(manifest: Manifest, strategy: Strategy, *, seed: int = 0, workers: int = 1) -> TrainingBatches:
    return TrainingBatches(
        manifest,
        AudioSpec(sample_rate=8000, window_s=1.0),
        sampler=RandomBatches(len(manifest), 4, seed=seed),
        positives="clip",
        seed=seed,
        workers=workers,
        caption_draw=LanguageDraw(manifest.clips, strategy),
    )


@pytest.mark.parametrize(("strategy", "each"), [("sample", 1), ("all", 3), ("anchor", 2)])
def test_what_a_batch_gets_is_a_function_of_seed_epoch_and_row(spoken: Manifest, strategy: Strategy, each: int) -> None:
    one, other = batches(spoken, strategy), batches(spoken, strategy, workers=2)
    list(one.epoch(0))  # what came before does not matter
    first, again = list(one.epoch(3)), list(other.epoch(3))
    assert [batch.captions for batch in first] == [batch.captions for batch in again]
    assert all(len(batch.captions) == 4 * each for batch in first)
    for batch in first:
        for row, caption, language in zip(batch.index.tolist(), batch.captions, batch.languages, strict=True):
            assert caption.startswith(f"{row}-{language}-")
    by_epoch = {tuple(one.example(0, epoch).captions) for epoch in range(12)}
    by_seed = {tuple(batches(spoken, strategy, seed=seed).example(0, 0).captions) for seed in range(12)}
    assert len(by_epoch) > 1
    assert len(by_seed) > 1


def test_a_batch_of_all_languages_has_each_as_often_as_clips(spoken: Manifest) -> None:
    batch = next(batches(spoken, "all").epoch(0))
    assert batch.languages == ["de", "en", "fr"] * 4
    assert batch.audio_row.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_all_names_clips_that_lack_a_language() -> None:
    clips = [clip_in(0, en=1, de=1, fr=1), clip_in(1, en=1, de=1), clip_in(2, en=1), clip_in(3, fr=1, en=1)]
    message = (
        r"--language-strategy all: 3 of 4 training clips lack captions in a language \(de in 2, fr in 2\), first 1 \(fr\); "
        "add them, leave these clips out, or pass --language-strategy sample"
    )
    with pytest.raises(ManifestError, match=f"^{message}$"):
        LanguageDraw(clips, "all")


def test_anchor_names_clips_without_the_anchor_or_without_another() -> None:
    clips = [clip_in(0, en=1, de=1), clip_in(1, en=1), clip_in(2, de=1, fr=1), replace(clip_in(3), captions=())]
    message = (
        "--language-strategy anchor: of 4 training clips 2 have no caption in en and 1 in no other language, first 1; "
        "add them, leave these clips out, or pass --language-strategy sample"
    )
    with pytest.raises(ManifestError, match=f"^{message}$"):
        LanguageDraw(clips, "anchor")


@pytest.mark.parametrize("strategy", ["sample", "all", "anchor"])
def test_a_corpus_in_one_language_is_refused(strategy: Strategy) -> None:
    message = rf"--language-strategy {strategy}: the training split has captions in one language only \(en\); leave it out"
    with pytest.raises(ConfigError, match=message):
        LanguageDraw([clip_in(0, en=2), clip_in(1, en=1)], strategy)
    with pytest.raises(ConfigError, match=r"in one language only \(none\)"):
        LanguageDraw([clip_in(0)], strategy)


def test_an_anchor_that_no_caption_is_in_is_refused() -> None:
    with pytest.raises(ConfigError, match="--anchor-language ja: no caption is in it; pass one of de, en, fr"):
        LanguageDraw(FULL, "anchor", anchor="ja")


def test_tags_that_training_cannot_tell_apart_are_refused() -> None:
    clips = [clip_in(n, **{"zh-Hant-HK": 1, "zh-Hant-TW": 1}) for n in range(2)]
    with pytest.raises(ConfigError, match="zh-Hant-HK and zh-Hant-TW are equal in their first 7 letters"):
        LanguageDraw(clips, "all")
    assert LanguageDraw(clips, "sample").languages == ("zh-Hant-HK", "zh-Hant-TW")
