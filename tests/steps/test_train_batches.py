import numpy as np
import pytest

from clapkit.config import TrainConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.steps.train_batches import embed_rows, training_batches
from clapkit.training.distributed import OneProcess


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
