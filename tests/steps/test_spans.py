"""Windows, spans, filters and grouping, from files to the places in them, with an encoder whose answers are known."""

import numpy as np
import pytest
import soundfile
import torch

from clapkit.config import EmbedConfig, RetrieveConfig
from clapkit.encoders import numpy_text
from clapkit.steps import embed, inputs, retrieve
from clapkit.types import AudioSpec

RATE, LENGTH_S, WINDOW_S, HOP_S = 8000, 120, 2.0, 1.0
AMPLITUDE = 0.3
BANDS_HZ = {"low": 500, "middle": 1500, "high": 3000}
# Start and end of the tones of two files: one in the midst, one that ends with its file, one that is longer than a window.
TRUTH = {
    "first": {"low": (31.3, 32.7), "middle": (118.5, 120.0), "high": (77.0, 81.0)},
    "second": {"low": (1.3, 2.7), "middle": (88.5, 90.0), "high": (47.0, 51.0)},
}
# A window of which the tone fills a share s scores s / sqrt(s^2 + 1). Of a tone that fills one, 0.707 - 0.1 is the lowest score
# of its span, or s = 0.76: windows that it fills by half do not belong to it. "low" fills 0.7 of the window from 31 s, and 0.35
# of those before and behind; "middle" 0.75 of the window from 118 s (88 s), 0.5 of that from 89 s and 0.25 of that before.
SPANS = {
    "first": {"low": (31, 33), "middle": (118, 120), "high": (77, 81)},
    "second": {"low": (1, 3), "middle": (88, 90), "high": (47, 51)},
}


class BandEncoder:
    """Embeds a window by the power of three bands beside a constant, that of a tone which fills it; words are bands."""

    audio_spec = AudioSpec(sample_rate=RATE, window_s=WINDOW_S)
    embedding_dim = 4
    notes: tuple[str, ...] = ()

    def encode_audio(self, waveform, num_samples):
        power = torch.fft.rfft(waveform).abs().square() / waveform.shape[1] ** 2  # [B, F]
        middles = [round(frequency * WINDOW_S) for frequency in BANDS_HZ.values()]
        bands = [power[:, middle - 200 : middle + 200].sum(dim=1) for middle in middles]
        constant = torch.full_like(bands[0], AMPLITUDE**2 / 4)
        return torch.nn.functional.normalize(torch.stack([*bands, constant], dim=1), dim=1)

    def encode_text(self, captions, languages=None):
        return torch.eye(4)[[list(BANDS_HZ).index(caption) for caption in captions]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of two minutes with three tones each."""
    folder = tmp_path_factory.mktemp("long")
    for name, truth in TRUTH.items():
        samples = np.random.default_rng(0).normal(0, 1e-3, LENGTH_S * RATE)
        for sound, (start_s, end_s) in truth.items():
            first, last = round(start_s * RATE), round(end_s * RATE)
            samples[first:last] += AMPLITUDE * np.sin(2 * np.pi * BANDS_HZ[sound] * np.arange(last - first) / RATE)
        soundfile.write(folder / f"{name}.flac", samples, RATE, subtype="PCM_16")
    return folder


@pytest.fixture
def ask(folder, runs_root, make_run, reporter, monkeypatch):
    """Embed both files; gives a function from the name of a tone to the hits."""
    monkeypatch.setattr(inputs, "load_model", lambda path, *, device: BandEncoder())
    monkeypatch.setattr(numpy_text, "open_text_encoder", lambda folder: None)

    def embedded(**options):
        run_dir = make_run("embed", "long")
        config = EmbedConfig(inputs=(str(folder),), runs_root=runs_root, device="cpu", store="fp32", **options)
        run_dir.finish(embed.run(config, run_dir, reporter))

        def ask(sound, **options):
            config = RetrieveConfig(query=(sound,), runs_root=runs_root, device="cpu", **options)
            return retrieve.run(config, None, reporter)["results"][0]["hits"]

        return ask

    return embedded


def in_file(folder, name):
    return f"path == {str(folder / f'{name}.flac')!r}"


def test_the_top_hit_in_each_file_is_a_window_at_the_place_of_the_sound(ask, folder):
    search = ask(pool="none", hop_s=HOP_S)
    for name, truth in TRUTH.items():
        for sound, (start_s, end_s) in truth.items():
            hit = search(sound, where=in_file(folder, name), k=1)[0]
            assert hit["end_s"] - hit["start_s"] == WINDOW_S
            assert start_s - HOP_S < hit["start_s"] < end_s, (name, sound)
            assert start_s < hit["end_s"] < end_s + HOP_S or hit["end_s"] == LENGTH_S, (name, sound)


def test_windows_of_one_sound_are_one_span_of_their_file(ask, folder):
    search = ask(pool="none", hop_s=HOP_S)
    for sound in BANDS_HZ:
        found = search(sound, group_by="file")
        assert {hit["path"]: (hit["start_s"], hit["end_s"]) for hit in found} == {
            str(folder / f"{name}.flac"): spans[sound] for name, spans in SPANS.items()
        }
        assert [len(hit["spans"]) for hit in found] == [1, 1]


def test_a_search_of_one_file_finds_the_same_span_as_a_search_of_all(ask, folder):
    search = ask(pool="none", hop_s=HOP_S)
    of_all = {hit["path"]: hit["spans"] for hit in search("high", group_by="file")}
    for name in TRUTH:
        (hit,) = search("high", group_by="file", where=in_file(folder, name))
        assert hit["spans"] == of_all[hit["path"]]


def test_the_score_is_that_of_the_share_of_the_window_that_the_sound_fills(ask, folder):
    search = ask(pool="none", hop_s=HOP_S)
    for sound, share in {"low": 0.7, "middle": 0.75, "high": 1.0}.items():
        hit = search(sound, where=in_file(folder, "first"), k=1)[0]
        assert hit["score"] == pytest.approx(share / np.sqrt(share**2 + 1), abs=0.005)


def test_a_shorter_hop_places_the_window_closer_to_the_sound(ask, folder):
    hit = ask(pool="none", hop_s=0.25)("low", where=in_file(folder, "first"), k=1)[0]
    # The tone is within [30.75, 32.75), [31, 33) and [31.25, 33.25) alike.
    assert (hit["start_s"], hit["end_s"]) in {(30.75, 32.75), (31.0, 33.0), (31.25, 33.25)}


def test_pooled_files_have_no_place_but_their_whole(ask):
    for hit in ask(pool="mean")("low"):
        assert (hit["start_s"], hit["end_s"]) == (0, LENGTH_S)
