"""Batch samplers: which rows go into which batch, a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np

from clapkit.errors import ConfigError


class RandomBatches:
    """Shuffled batches of equal size; the rows left over at the end of an epoch rest until the next shuffle.

    Equal sizes keep the number of negatives constant, which losses with a fixed input width need.

    Args:
        num_rows: training pairs.
        batch_size: rows in a batch.
        seed: of the shuffles.

    Raises:
        ConfigError: if no batch can be filled or a batch holds no negative.
    """

    def __init__(self, num_rows: int, batch_size: int, *, seed: int) -> None:
        if batch_size < 2:
            raise ConfigError(f"--batch-size {batch_size}: a contrastive batch needs negatives; pass 2 or more")
        if batch_size > num_rows:
            raise ConfigError(
                f"--batch-size {batch_size}: the training split has {num_rows} clips; "
                f"pass --batch-size {num_rows} or less, or prepare more data"
                if num_rows > 1
                else f"training split: found {num_rows} clip, expected at least 2; prepare more data"
            )
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.batches_per_epoch = num_rows // batch_size

    def epoch(self, epoch: int) -> np.ndarray:
        """The batches of one epoch, int64 [batches_per_epoch, batch_size]."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        return order[: self.batches_per_epoch * self.batch_size].reshape(-1, self.batch_size)
