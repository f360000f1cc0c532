import pytest
import torch

from clapkit.encoders.audio._front_ends import ClapFrontEnd, SeamlessFrontEnd, WaveformFrontEnd
from clapkit.encoders.spectrograms import KaldiFilterBank


class Echo(torch.nn.Module):
    """Gives power whose decibels are the waveform, one frame a sample."""

    def forward(self, waveform):
        return 10 ** (waveform[:, :, None] / 10)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ("repeatpad", [1, 2, 3, 1, 2, 3, 0, 0]),
        ("repeat", [1, 2, 3, 1, 2, 3, 1, 2]),
        ("pad", [1, 2, 3, 0, 0, 0, 0, 0]),
    ],
)
def test_short_clips_fill_the_window(fill, expected):
    front_end = ClapFrontEnd(Echo(), window_samples=8, fill=fill)
    waveform = torch.tensor([[1.0, 2, 3, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7, 8]])
    decibels, _ = front_end(waveform, torch.tensor([3, 8]))
    torch.testing.assert_close(decibels[:, 0, :, 0], torch.tensor([expected, [1.0, 2, 3, 4, 5, 6, 7, 8]]).float())


def test_a_mel_bin_that_never_changes_becomes_zero():
    front_end = SeamlessFrontEnd(KaldiFilterBank(16000, num_mels=8, window="povey", gain=32768.0), padding_value=1.0)
    features, num_pairs = front_end(torch.zeros(1, 16000), torch.tensor([8000]))
    # 1 + (8000 - 400) // 160 = 48 frames, 24 pairs; what lies behind them has the padding value.
    assert num_pairs.tolist() == [24]
    assert features[0, :24].abs().max() < 1e-3
    assert torch.equal(features[0, 24:], torch.ones_like(features[0, 24:]))


def test_a_waveform_is_normalised_over_its_real_samples():
    front_end = WaveformFrontEnd(normalize=True, min_samples=1)
    waveform = torch.tensor([[1.0, 3.0, 0.0, 0.0]])
    normed, num_samples = front_end(waveform, torch.tensor([2]))
    # Mean 2, variance 1.
    torch.testing.assert_close(normed, torch.tensor([[-1.0, 1.0, 0.0, 0.0]]))
    assert num_samples.tolist() == [2]
    silent, _ = front_end(torch.zeros(1, 4), torch.tensor([4]))
    assert torch.equal(silent, torch.zeros(1, 4))
