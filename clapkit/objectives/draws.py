"""Random numbers for objectives: the same for a batch in every process, in every pass over it, and in a resumed run.

What is drawn depends on a seed, on how many steps were taken, and on the training rows of the batch; neither on the order
of the batch nor on torch's generators. The first two are in the checkpoint.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Draws(nn.Module):
    """Makes the generator of a batch; an objective calls ``advance`` after every step.

    The seed comes from torch's generator, as the weights of a new module do.
    """

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        seed = int(torch.randint(2**31, ()))
        self.register_buffer("state", torch.tensor([seed, 0]))  # seed, steps taken

    def generator(self, index: Tensor) -> np.random.Generator:
        """The generator of a batch with the training rows ``index`` [B]: always the same one until ``advance``."""
        return np.random.default_rng(torch.cat([self.state, index.sort().values]).tolist())

    def advance(self) -> None:
        """A step was taken: the same rows draw something else next time."""
        self.state[1] += 1


def by_row(drawn: np.ndarray, index: Tensor, *, like: Tensor) -> Tensor:
    """Hand out what was drawn in the order of the training rows, so that a row gets the same wherever it stands.

    Args:
        drawn: [B, ...].
        index: int64 [B], training rows.
        like: a tensor of the wanted type and device.

    Returns:
        [B, ...].
    """
    place = index.argsort(stable=True).argsort(stable=True)  # [B]
    return torch.from_numpy(drawn).to(like.device, like.dtype)[place]
