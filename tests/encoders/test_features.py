import builtins

import pytest
import torch

from clapkit.encoders.features import LogMel, RandomFilter, SpectrogramMasking, mel_filters
from clapkit.errors import ConfigError


def test_a_tone_lands_in_the_bin_of_its_pitch() -> None:
    log_mel = LogMel(16000)
    for pitch in (500.0, 2000.0, 6000.0):
        tone = torch.sin(2 * torch.pi * pitch * torch.arange(16000) / 16000)[None]
        loudest = log_mel(tone)[0].mean(dim=0).argmax()
        frequencies = torch.linspace(0, 8000, 257)
        peak = frequencies[log_mel.filters[:, loudest].argmax()]
        assert abs(peak - pitch) < 0.06 * pitch


def test_ten_times_the_amplitude_is_two_more_in_log_power_decades() -> None:
    # Power grows by 100; log10(100) = 2.
    noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    log_mel = LogMel(16000)
    difference = log_mel(10 * noise) - log_mel(noise)
    torch.testing.assert_close(difference, torch.full_like(difference, 2.0), atol=5e-2, rtol=0)


def test_frames_are_one_per_hop_and_one_more() -> None:
    assert LogMel(16000, hop=320)(torch.zeros(2, 80000)).shape == (2, 251, 64)


def test_the_front_end_ignores_autocast() -> None:
    noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    log_mel = LogMel(16000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = log_mel(noise)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, log_mel(noise))


def test_masking_zeroes_bands_in_training_only() -> None:
    torch.manual_seed(0)
    masking = SpectrogramMasking(max_mels=8, max_frames_share=0.2)
    ones = torch.ones(64, 100, 32)
    masked = masking.train()(ones)
    bins = (masked.amax(dim=1) == 0).sum(dim=1)  # [64], mel bins that are silent throughout
    frames = (masked.amax(dim=2) == 0).sum(dim=1)
    assert 0 < bins.float().mean() <= 16
    assert bins.max() <= 16
    assert 0 < frames.float().mean() <= 40
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masking.eval()(ones), ones)


def test_a_torchaudio_that_does_not_load_names_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("torchaudio"):
            raise OSError("libcudart.so.13: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ConfigError, match=r"torchaudio does not load beside torch .*libcudart.*pip install"):
        mel_filters(257, 64, sample_rate=16000, f_min=40, f_max=8000)


def test_the_random_filter_moves_levels_and_bins_in_training_only() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(32.0).expand(400, 3, 32)
    still = RandomFilter(gain_db=0.0, max_shift=2)
    moved = still.train()(ramp)
    assert set((moved[:, 0, 10] - 10).tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert moved.min() == 0
    assert moved.max() == 31  # edges repeat, nothing wraps around
    assert torch.equal(moved[:, 0], moved[:, 2])  # the same for all frames of a clip
    loud = RandomFilter(gain_db=4.0, max_shift=0).train()(torch.zeros(2000, 1, 33))
    assert abs(float(loud[:, 0, 0].std()) - 0.4) < 0.03  # 4 dB in units of ten
    assert loud[0, 0].diff().abs().max() < 0.3  # smooth over frequency
    assert torch.equal(still.eval()(ramp), ramp)
