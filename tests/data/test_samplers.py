import numpy as np
import pytest

from clapkit.data.samplers import RandomBatches
from clapkit.errors import ConfigError


def test_batches_are_equal_disjoint_and_a_function_of_seed_and_epoch() -> None:
    sampler = RandomBatches(10, 3, seed=5)
    batches = sampler.epoch(2)
    assert batches.shape == (3, 3)
    assert len(np.unique(batches)) == 9
    assert np.array_equal(batches, RandomBatches(10, 3, seed=5).epoch(2))
    assert not np.array_equal(batches, sampler.epoch(3))
    assert not np.array_equal(batches, RandomBatches(10, 3, seed=6).epoch(2))


def test_no_row_rests_for_ever() -> None:
    sampler = RandomBatches(10, 4, seed=0)
    seen = {int(row) for epoch in range(10) for row in sampler.epoch(epoch).ravel()}
    assert seen == set(range(10))


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "message"),
    [
        (10, 1, "--batch-size 1: a contrastive batch needs negatives; pass 2 or more"),
        (10, 16, "--batch-size 16: the training split has 10 clips; pass --batch-size 10 or less"),
        (1, 8, "training split: found 1 clip, expected at least 2"),
    ],
)
def test_batches_that_cannot_be_filled_are_refused(num_rows: int, batch_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RandomBatches(num_rows, batch_size, seed=0)
