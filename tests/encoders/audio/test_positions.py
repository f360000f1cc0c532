from types import SimpleNamespace

import pytest
import torch

from clapkit.encoders.audio._positions import num_times, stretch
from clapkit.errors import ConfigError


def table(rows, columns, width=3):
    return torch.randn(1, 2 + rows * columns, width, generator=torch.Generator().manual_seed(0))


def test_a_table_for_the_same_length_stays_as_it_is():
    positions = table(4, 6)
    torch.testing.assert_close(stretch(positions, rows=4, columns=6), positions)


def test_summary_tokens_are_kept_and_rows_do_not_mix():
    positions = table(2, 6)
    positions[:, 2:8] = 5.0  # the lower frequencies are constant over time
    stretched = stretch(positions, rows=2, columns=9)
    assert stretched.shape == (1, 2 + 2 * 9, 3)
    assert torch.equal(stretched[:, :2], positions[:, :2])
    torch.testing.assert_close(stretched[:, 2:11], torch.full((1, 9, 3), 5.0))


def test_a_ramp_over_time_stays_a_ramp():
    ramp = torch.arange(12.0).repeat(2)[None, :, None]
    stretched = stretch(torch.cat([torch.zeros(1, 2, 1), ramp], dim=1), rows=2, columns=24)[0, 2:, 0].reshape(2, 24)
    # Patch centres: column j of 24 lies at (j + 0.5) / 2 - 0.5; linear interpolation is exact for a ramp away from its ends.
    expected = (torch.arange(24) + 0.5) / 2 - 0.5
    torch.testing.assert_close(stretched[:, 4:-4], expected[4:-4].expand(2, -1))


def test_frames_fewer_than_a_patch_are_refused():
    config = SimpleNamespace(patch_size=16, time_stride=10)
    assert num_times(config, 16) == 1
    assert num_times(config, 1024) == 101
    with pytest.raises(ConfigError, match="window of 15 frames is shorter than a patch of the model, 16 frames"):
        num_times(config, 15)
