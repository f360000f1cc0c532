import math

import pytest
import torch
from torchaudio.compliance import kaldi
from torchaudio.functional import melscale_fbanks

from clapkit.encoders.spectrograms import (
    KaldiFilterBank,
    MelSpectrogram,
    fit,
    is_real,
    mel_filter_bank,
    to_hertz,
    to_mel,
)
from clapkit.errors import ConfigError


def noise(*shape):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", ["htk", "slaney", "kaldi"])
def test_mel_scales_can_be_inverted(scale):
    hertz = torch.tensor([0.0, 60.0, 999.0, 1000.0, 1001.0, 7900.0], dtype=torch.float64)
    torch.testing.assert_close(to_hertz(to_mel(hertz, scale), scale), hertz)


def test_mel_scales_have_their_published_values():
    # HTK: 2595 log10(1 + 1000 / 700) = 999.9855. Slaney: 1000 / (200 / 3) = 15; 27 steps above it is a factor of 6.4.
    assert float(to_mel(torch.tensor(1000.0, dtype=torch.float64), "htk")) == pytest.approx(2595 * math.log10(1 + 10 / 7))
    assert float(to_mel(torch.tensor(1000.0), "slaney")) == pytest.approx(15)
    assert float(to_mel(torch.tensor(6400.0), "slaney")) == pytest.approx(42)
    assert float(to_mel(torch.tensor(700.0), "kaldi")) == pytest.approx(1127 * math.log(2))


@pytest.mark.parametrize(("scale", "equal_area"), [("htk", False), ("slaney", True), ("slaney", False)])
def test_filters_in_hertz_are_those_of_torchaudio(scale, equal_area):
    ours = mel_filter_bank(513, 64, sample_rate=48000, f_min=50, f_max=14000, scale=scale, equal_area=equal_area)
    theirs = melscale_fbanks(513, 50.0, 14000.0, 64, 48000, norm="slaney" if equal_area else None, mel_scale=scale)
    # Theirs are computed in single precision.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.max()))


def test_filters_from_higher_to_lower_are_refused():
    with pytest.raises(ConfigError, match="mel filters from 500 to 400 Hz: expected 0 <= lowest < highest"):
        mel_filter_bank(257, 8, sample_rate=16000, f_min=500, f_max=400, scale="htk")


def test_a_mel_spectrogram_is_the_power_of_every_frame_through_the_filters():
    module = MelSpectrogram(8000, window=64, hop=20, num_mels=6, f_min=0, f_max=4000, scale="htk", equal_area=False)
    waveform = noise(2, 200)
    ours = module(waveform)
    assert ours.shape == (2, 1 + 200 // 20, 6)
    mirrored = torch.nn.functional.pad(waveform[:, None], (32, 32), mode="reflect")[:, 0]
    for frame in range(ours.shape[1]):
        windowed = mirrored[:, 20 * frame : 20 * frame + 64] * torch.hann_window(64)
        power = torch.fft.rfft(windowed).abs() ** 2
        torch.testing.assert_close(ours[:, frame], power @ module.filters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("window", "sample_rate"), [("hanning", 16000), ("povey", 16000), ("hanning", 32000)])
def test_filter_banks_are_those_of_torchaudios_kaldi(window, sample_rate):
    waveform = noise(3, sample_rate) + 0.05
    ours = KaldiFilterBank(sample_rate, num_mels=40, window=window)(waveform)
    for row in range(3):
        theirs = kaldi.fbank(waveform[row : row + 1], sample_frequency=sample_rate, window_type=window, num_mel_bins=40)
        torch.testing.assert_close(ours[row], theirs, rtol=0, atol=1e-3)  # natural logarithms that reach to -15


def test_frames_of_a_padded_waveform_are_those_of_the_waveform():
    bank = KaldiFilterBank(16000, num_mels=20, window="povey", gain=32768.0)
    waveform = noise(1, 5000)
    alone = bank(waveform)
    assert alone.shape[1] == int(bank.num_frames(torch.tensor(5000))) == 1 + (5000 - 400) // 160
    padded = bank(fit(waveform, 9000))
    torch.testing.assert_close(padded[:, : alone.shape[1]], alone)


def test_silence_is_the_logarithm_of_the_smallest_step_of_single_precision():
    silent = KaldiFilterBank(16000, num_mels=20, window="hanning")(torch.zeros(1, 800))
    assert torch.equal(silent, torch.full_like(silent, math.log(2**-23)))


def test_the_gain_is_a_constant_in_the_logarithm():
    waveform = noise(1, 4000)
    plain = KaldiFilterBank(16000, num_mels=20, window="povey")(waveform)
    louder = KaldiFilterBank(16000, num_mels=20, window="povey", gain=4.0)(waveform)
    torch.testing.assert_close(louder, plain + 2 * math.log(4), rtol=0, atol=1e-4)


def test_tables_are_no_part_of_the_state():
    assert KaldiFilterBank(16000, num_mels=20, window="povey").state_dict() == {}
    module = MelSpectrogram(8000, window=64, hop=20, num_mels=6, f_min=0, f_max=4000, scale="htk", equal_area=False)
    assert module.state_dict() == {}
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}


def test_real_positions_are_the_first_ones():
    assert is_real(torch.tensor([0, 2, 3]), 3).tolist() == [[False] * 3, [True, True, False], [True] * 3]


def test_rows_are_cut_or_filled_with_zeros():
    rows = torch.arange(6.0).reshape(1, 3, 2)
    assert fit(rows, 2).tolist() == [[[0, 1], [2, 3]]]
    assert fit(rows, 4).tolist() == [[[0, 1], [2, 3], [4, 5], [0, 0]]]
    assert torch.equal(fit(rows, 3), rows)
