import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clapkit.config import TrainConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError
from clapkit.steps.train_batches import anchor_language, embed_rows, language_draw, training_batches
from clapkit.training.distributed import OneProcess
from clapkit.types import Caption, Clip


@pytest.fixture
def batches_of(tones, tiny_encoder, reporter, tmp_path):
    """The batches of a run on 16 clips in batches of 4, so that an epoch has 4 steps."""

    def make(**options):
        config = resolve(TrainConfig, options)
        data = Manifest.load(tones).split("train")
        return training_batches(
            config,
            data,
            tiny_encoder,
            size=4,
            clusters=None,
            workers=1,
            reporter=reporter,
            processes=OneProcess(),
            cache_dir=tmp_path,
        )

    return make


@pytest.mark.parametrize(
    "options", [{"epochs": 4}, {"max_steps": 16}, {"epochs": 99, "max_steps": 13}, {"epochs": 2, "mine_every": 2}]
)
def test_a_training_that_ends_before_the_first_search_is_warned_of(options, batches_of, reporter):
    batches_of(sampler="mined", **options)
    assert [message.split(":")[0] for message in reporter.warned] == ["--sampler mined"]
    assert "pass a smaller --mine-every or train longer" in reporter.warned[0]


@pytest.mark.parametrize("options", [{"epochs": 5}, {"max_steps": 17}, {"epochs": 2, "mine_neighbours": 0}])
def test_a_training_that_searches_or_is_told_not_to_is_not_warned_of(options, batches_of, reporter):
    batches_of(sampler="mined", **options)
    assert reporter.warned == []


def test_rows_are_embedded_in_evaluation_mode_and_the_modes_come_back(batches_of, tiny_encoder):
    batches = batches_of()
    expected = embed_rows(tiny_encoder, batches, np.array([3, 0]))
    tiny_encoder.train()
    tiny_encoder.freeze("audio")
    modes = [module.training for module in tiny_encoder.modules()]
    embedded = embed_rows(tiny_encoder, batches, np.array([3, 0]))
    assert [module.training for module in tiny_encoder.modules()] == modes
    for part, wanted in zip(embedded, expected, strict=True):
        assert part.shape == (2, 16)
        np.testing.assert_allclose(part, wanted, atol=1e-6)


def test_windows_that_no_clip_is_long_enough_for_are_warned_of(batches_of, tiny_encoder, reporter):
    assert tiny_encoder.audio_spec.window_s >= 1  # the clips are of 1 s
    batches_of(windows=3)
    assert [message.split(":")[0] for message in reporter.warned] == ["--windows 3"]
    assert "no training clip is longer than the" in reporter.warned[0]


def test_windows_are_not_warned_of_where_a_clip_brings_several(batches_of, monkeypatch, tiny_encoder, reporter):
    spec = dataclasses.replace(tiny_encoder.audio_spec, window_s=0.75)
    monkeypatch.setattr(type(tiny_encoder), "audio_spec", spec)
    assert batches_of(windows=3).num_of_several_windows == 16
    assert batches_of().num_of_several_windows == 0
    assert reporter.warned == []


def test_captions_without_false_variants_are_counted_and_warned_of(batches_of, reporter):
    # 16 clips with two captions each, none of which says what comes first.
    batches_of(loss="compa", variants="order")
    (warning,) = reporter.warned
    assert warning.startswith("--loss compa: 32 of the first 32 captions have no false variant")


@pytest.mark.parametrize("given", [{"false_variants": 0, "true_variants": 1}, {"variants": "order, given"}])
def test_variants_that_are_there_or_not_asked_for_are_not_warned_of(given, batches_of, tones, monkeypatch, reporter):
    data = Manifest.load(tones)
    clips = tuple(dataclasses.replace(clip, extra={"hard_captions": ["silence"]}) for clip in data.clips)
    monkeypatch.setattr(Manifest, "load", lambda path: dataclasses.replace(data, clips=clips))
    batches_of(loss="compa", **given)
    assert reporter.warned == []


def test_a_batch_has_variants_where_the_loss_is_about_them(batches_of):
    batch = next(batches_of(loss="compa", false_variants=2, true_variants=1, variants="given").epoch(0))
    assert len(batch.variants) == 4 * 3
    assert batch.variant_truth.tolist() == [[0, 0, 0]] * 4  # tones have neither false captions nor parts
    plain = next(batches_of().epoch(0))
    assert (plain.variants, plain.variant_truth) == ([], None)


@pytest.mark.parametrize(("strategy", "size"), [(None, None), ("sample", 1), ("all", 2), ("anchor", 2)])
def test_captions_are_drawn_by_language_where_there_is_a_strategy(strategy, size):
    clips = [Clip(id=str(n), audio="x", captions=(Caption("a"), Caption("b", "de"))) for n in range(3)]
    draw = language_draw(resolve(TrainConfig, {"language_strategy": strategy}), Manifest(tuple(clips), Path(), "x", ""))
    assert (draw and draw.captions_per_clip) == size


def test_the_anchor_is_english_unless_said_otherwise():
    clips = [Clip(id=str(n), audio="x", captions=(Caption("a", "fr"), Caption("b", "de"))) for n in range(3)]
    data, given = Manifest(tuple(clips), Path(), "x", ""), {"language_strategy": "anchor"}
    with pytest.raises(ConfigError, match="--anchor-language en: no caption is in it; pass one of de, fr"):
        language_draw(resolve(TrainConfig, given), data)
    assert language_draw(resolve(TrainConfig, given | {"anchor_language": "de"}), data).draw(0, np.random.default_rng(0)) == [
        1,
        0,
    ]
    capital = resolve(TrainConfig, given | {"anchor_language": "DE"})
    assert anchor_language(capital) == language_draw(capital, data)._anchor == "de"
