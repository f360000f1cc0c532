import pytest
import torch
from torch import nn
from torch.nn.functional import normalize


@pytest.fixture
def make_pairs():
    """Random unit-norm audio and text [B, D] whose pairs are closer than chance, as in training."""

    def make(batch_size=6, width=5, *, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        shared, audio, text = torch.randn(3, batch_size, width, generator=generator, dtype=torch.float64)
        return normalize(shared + audio, dim=1).to(dtype), normalize(shared + text, dim=1).to(dtype)

    return make


@pytest.fixture
def score():
    """Call an objective on a batch; without ``positives`` every row is its own only positive."""

    def call(objective, audio, text, positives=None, *, progress=0.0):
        batch_size = len(audio)
        if positives is None:
            positives = torch.eye(batch_size, dtype=torch.bool)
        return objective(audio, text, positives, torch.arange(batch_size), progress)

    return call


@pytest.fixture
def clones():
    """Positives of a batch of six in which rows 0 and 3 show one clip, and rows 1, 2 and 5 another."""
    group = torch.tensor([0, 1, 1, 0, 2, 1])
    return group[:, None] == group[None, :]


@pytest.fixture
def per_row():
    """Make a schedule: the temperature of training row i is ``values[i]``."""

    class PerRow(nn.Module):
        def __init__(self, values):
            super().__init__()
            self.values = values

        def forward(self, index, progress):
            return self.values[index]

    return PerRow
