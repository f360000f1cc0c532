import contextlib
import dataclasses
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
import torch
import xxhash

from clapkit.data import audio
from clapkit.data.audio import load, span_windows
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import AudioError, ConfigError, NumericalError
from clapkit.steps import embedding
from clapkit.steps.embedding import (
    EmbeddedClip,
    Rejected,
    cosine_similarity,
    embed_clips,
    embed_texts,
    stream_clips,
    window_samples,
)
from clapkit.types import AudioSpec, Clip, SilentReporter

QUIET = SilentReporter()


class PowerEncoder:
    """Embeds a waveform by the power of its quarters: what is expected can be computed by hand."""

    audio_spec = AudioSpec(sample_rate=8000, window_s=1.0)
    embedding_dim = 4

    def __init__(self):
        self.seen = []

    def encode_audio(self, waveform, num_samples):
        self.seen.append((tuple(waveform.shape), num_samples.tolist()))
        return torch.nn.functional.normalize(waveform.reshape(len(waveform), 4, -1).square().mean(dim=2), dim=1)

    def encode_text(self, captions):
        self.seen.append(list(captions))
        return torch.nn.functional.normalize(torch.tensor([[len(c), 1.0, 0.0, 0.0] for c in captions]), dim=1)


class BrokenEncoder(PowerEncoder):
    def encode_audio(self, waveform, num_samples):
        return torch.full((len(waveform), 4), torch.nan)


def test_results_do_not_depend_on_the_batch_size_or_the_number_of_threads(model, corpus):
    expected = embed_clips(model, corpus, reporter=QUIET, batch_size=1, workers=1, hop_s=0.5, pool="none")
    for batch_size, workers in ((2, 3), (5, 1), (64, 2)):
        found = embed_clips(model, corpus, reporter=QUIET, batch_size=batch_size, workers=workers, hop_s=0.5, pool="none")
        np.testing.assert_allclose(found.vectors, expected.vectors, atol=2e-6)
        assert found.clip.tolist() == expected.clip.tolist()
        assert found.spans == expected.spans


def test_results_do_not_depend_on_the_order_of_the_clips(model, corpus):
    turned = dataclasses.replace(corpus, clips=corpus.clips[::-1])
    expected = embed_clips(model, corpus, reporter=QUIET, batch_size=4).vectors
    found = embed_clips(model, turned, reporter=QUIET, batch_size=4).vectors
    np.testing.assert_allclose(found[::-1], expected, atol=2e-6)


def test_windows_cover_a_clip_and_carry_their_spans(corpus):
    found = embed_clips(PowerEncoder(), corpus, reporter=QUIET, pool="none")
    # Durations 0.5, 1.0, 1.5, 2.0, 2.5, 3.0 s in windows of 1 s; the last window is moved back to end with the clip.
    assert found.clip.tolist() == [0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 5]
    assert found.spans[:4] == [(0, 0.5), (0, 1), (0, 1), (0.5, 1.5)]
    assert found.spans[6:9] == [(0, 1), (1, 2), (1.5, 2.5)]
    assert found.num_windows == 12


def test_a_pooled_vector_is_the_normalised_mean_of_its_unit_windows(corpus):
    windows = embed_clips(PowerEncoder(), corpus, reporter=QUIET, pool="none")
    pooled = embed_clips(PowerEncoder(), corpus, reporter=QUIET)
    mean = windows.vectors[windows.clip == 4].mean(axis=0)
    np.testing.assert_allclose(pooled.vectors[4], mean / np.linalg.norm(mean), atol=1e-6)
    assert pooled.spans[4] == (0, 2.5)
    assert pooled.clip.tolist() == list(range(6))
    assert pooled.num_windows == 12


def test_waveforms_are_padded_to_the_window_of_the_model_and_say_how_much_is_real(corpus):
    encoder = PowerEncoder()
    embed_clips(encoder, corpus, reporter=QUIET, batch_size=2, window_s=0.75)
    assert {shape for shape, _ in encoder.seen[:-1]} == {(2, 8000)}
    assert encoder.seen[0][1] == [4000, 6000]  # a clip of 0.5 s, then a window of 0.75 s


def test_a_span_of_a_file_is_embedded_and_reported_in_seconds_of_the_file(corpus):
    clip = dataclasses.replace(corpus.clips[5], start_s=1.0, end_s=2.5)
    part = dataclasses.replace(corpus, clips=(clip,))
    found = embed_clips(PowerEncoder(), part, reporter=QUIET, pool="none")
    assert found.spans == [(1.0, 2.0), (1.5, 2.5)]


def test_unreadable_files_are_rejected_with_a_reason_and_the_rest_goes_on(corpus, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF nonsense")
    bad = dataclasses.replace(corpus.clips[0], id="bad", audio=str(tmp_path / "bad.wav"))
    missing = dataclasses.replace(corpus.clips[0], id="missing", audio="nowhere.wav")
    mixed = dataclasses.replace(corpus, clips=(bad, *corpus.clips[:2], missing))
    found = embed_clips(PowerEncoder(), mixed, reporter=QUIET)
    assert found.clip.tolist() == [1, 2]
    assert [rejection.item for rejection in found.rejected] == ["bad", "missing"]
    assert "cannot be opened" in found.rejected[1].reason


def test_nothing_usable_is_an_error(corpus):
    missing = dataclasses.replace(corpus.clips[0], audio="nowhere.wav")
    with pytest.raises(AudioError, match=r"none of 1 clips can be embedded; the first reason: .*nowhere.wav"):
        embed_clips(PowerEncoder(), dataclasses.replace(corpus, clips=(missing,)), reporter=QUIET)


def test_embeddings_that_are_not_finite_are_an_error(corpus):
    with pytest.raises(NumericalError, match="6 of 6 embeddings are zero or not finite, the first of 'toy/dog'"):
        embed_clips(BrokenEncoder(), corpus.split("test"), reporter=QUIET)


def test_vectors_have_unit_norm_under_half_precision(model, corpus):
    vectors = embed_clips(model, corpus, reporter=QUIET, precision="bf16").vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


# Streams ----------------------------------------------------------------------------------------------------------------


def stream(model, manifest, **options):
    return list(stream_clips(model, manifest, reporter=QUIET, **options))


def noise(num_frames, num_channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (num_frames, num_channels)).astype(np.float32)


def write_manifest(folder, sounds):
    """A manifest of files, given as name -> (samples, rate)."""
    for name, (samples, rate) in sounds.items():
        soundfile.write(folder / name, samples, rate, subtype="FLOAT" if name.endswith("wav") else None)
    return Manifest(tuple(Clip(name, name) for name in sounds), root=folder, name="toy", fingerprint="toy")


@pytest.fixture(scope="module")
def small_model():
    torch.manual_seed(0)
    return DualEncoder("small", "tiny", embedding_dim=32, text_options={"captions": ["rain"]}).eval()


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_a_stream_gives_what_a_naive_loop_gives(model, tmp_path, pool):
    rate = model.audio_spec.sample_rate
    sounds = {f"{n}.wav": (noise(length, 1 + n % 2, seed=n), 11025) for n, length in enumerate((900, 60_000, 100_000, 5000))}
    manifest = write_manifest(tmp_path, sounds)
    window = model.audio_spec.window_samples
    hop = window // 2
    found = stream(model, manifest, pool=pool, batch_size=3, hop_s=hop / rate)
    for row, clip in enumerate(manifest):
        waveform = load(manifest.audio_path(clip), sample_rate=rate)
        spans = span_windows(len(waveform), window=window, hop=hop)
        alone = []
        for start, end in spans:
            padded = torch.zeros(1, window)
            padded[0, : end - start] = torch.from_numpy(waveform[start:end])
            with torch.inference_mode():
                alone.append(model.encode_audio(padded, torch.tensor([end - start]))[0].double().numpy())
        mean = np.mean(alone, axis=0)
        expected = [mean / np.linalg.norm(mean)] if pool == "mean" else alone
        np.testing.assert_allclose(found[row].vectors, expected, atol=1e-6)
        seconds = [(start / rate, end / rate) for start, end in spans]
        assert found[row].spans == ([(seconds[0][0], seconds[-1][1])] if pool == "mean" else seconds)
        assert (found[row].row, found[row].num_windows) == (row, len(spans))


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"batch_size": 5, "workers": 3}, {"with_content": True}])
def test_neighbours_do_not_change_a_vector(model, corpus, options):
    together = stream(model, corpus, **options)
    for row, clip in enumerate(corpus):
        (alone,) = stream(model, dataclasses.replace(corpus, clips=(clip,)))
        np.testing.assert_allclose(together[row].vectors, alone.vectors, atol=1e-6)


def test_short_clips_share_a_batch(corpus):
    encoder = PowerEncoder()
    stream(encoder, corpus, batch_size=5)
    # 12 windows of six clips.
    assert [len(lengths) for _, lengths in encoder.seen] == [5, 5, 2]


def test_a_clip_is_handed_out_when_its_last_window_is_encoded(corpus):
    encoder = PowerEncoder()
    clips = stream_clips(encoder, corpus, reporter=QUIET, batch_size=4)
    assert next(clips).row == 0
    assert len(encoder.seen) == 1
    assert [next(clips).row for _ in range(2)] == [1, 2]  # 0.5, 1.0 and 1.5 s are four windows of 1 s
    assert len(encoder.seen) == 1
    assert next(clips).row == 3
    assert len(encoder.seen) == 2
    clips.close()


def test_failures_stand_in_their_places(corpus, tmp_path):
    samples = noise(4 * 8000)
    samples[-1] = np.nan  # found when three windows have been handed to the model
    soundfile.write(tmp_path / "late.wav", samples, 8000, subtype="FLOAT")
    late = dataclasses.replace(corpus.clips[0], id="late", audio=str(tmp_path / "late.wav"), end_s=None)
    missing = dataclasses.replace(corpus.clips[0], id="missing", audio="nowhere.wav")
    mixed = dataclasses.replace(corpus, clips=(corpus.clips[0], late, missing, corpus.clips[1]))
    for batch_size in (1, 2, 32):
        found = stream(PowerEncoder(), mixed, batch_size=batch_size)
        assert [type(clip) for clip in found] == [EmbeddedClip, Rejected, Rejected, EmbeddedClip]
        assert [clip.row for clip in found] == [0, 1, 2, 3]
        assert "NaN or infinite at frame 31999" in found[1].reason
        expected = embed_clips(PowerEncoder(), corpus, reporter=QUIET).vectors
        np.testing.assert_allclose(found[3].vectors[0], expected[1], atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_truncated_files_are_rejected_and_leave_the_others_alone(tmp_path, suffix):
    names = [f"{number}.{suffix}" for number in range(3)]
    manifest = write_manifest(tmp_path, {name: (noise(3 * 8000, seed=n), 8000) for n, name in enumerate(names)})
    before = stream(PowerEncoder(), manifest)
    content = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes(content[: len(content) * 6 // 10])
    found = stream(PowerEncoder(), manifest)
    assert f"1.{suffix}: " in found[1].reason
    for row in (0, 2):
        np.testing.assert_array_equal(found[row].vectors, before[row].vectors)


def test_clips_carry_the_hash_of_their_files_if_it_is_asked_for(corpus):
    assert {clip.content for clip in stream(PowerEncoder(), corpus)} == {None}
    contents = [clip.content for clip in stream(PowerEncoder(), corpus, with_content=True)]
    assert contents == [xxhash.xxh3_128_hexdigest(corpus.audio_path(clip).read_bytes()) for clip in corpus]


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_what_is_known_takes_its_place_without_the_model(corpus, pool):
    encoder, kept = PowerEncoder(), {}

    def known(clip, content):
        entry = kept.get(content)
        return None if entry is None else dataclasses.replace(entry, row=99, content=None)

    first = stream(encoder, corpus, known=known, pool=pool)
    assert encoder.seen
    kept |= {clip.content: clip for clip in first}
    del kept[first[2].content]
    encoder.seen.clear()
    again = stream(encoder, corpus, known=known, pool=pool)
    assert [len(lengths) for _, lengths in encoder.seen] == [2]  # of the clip of 1.5 s alone
    for one, other in zip(first, again, strict=True):
        np.testing.assert_allclose(one.vectors, other.vectors, atol=1e-6)
        assert dataclasses.replace(one, vectors=None) == dataclasses.replace(other, vectors=None)


def test_two_spans_of_a_file_are_told_apart(corpus):
    long = corpus.clips[5]
    parts = tuple(dataclasses.replace(long, id=f"{start}", start_s=start, end_s=start + 1) for start in (0.0, 1.5))
    asked = []
    manifest = dataclasses.replace(corpus, clips=parts)
    stream(PowerEncoder(), manifest, known=lambda clip, content: asked.append((clip.start_s, content)))
    assert [start for start, _ in asked] == [0.0, 1.5]
    assert asked[0][1] == asked[1][1]


def test_a_batch_is_encoded_early_when_too_many_known_clips_wait_for_it(corpus, monkeypatch):
    monkeypatch.setattr(embedding, "_MAX_CLIPS_WAITING", 2)
    clips = (corpus.clips[0], *(dataclasses.replace(corpus.clips[1], id=f"known {number}") for number in range(50)))
    kept = stream(PowerEncoder(), dataclasses.replace(corpus, clips=corpus.clips[1:2]))[0]
    encoder, progress = PowerEncoder(), []
    answers = stream_clips(
        encoder,
        dataclasses.replace(corpus, clips=clips),
        reporter=QUIET,
        batch_size=4,
        known=lambda clip, content: progress.append(clip.id) or (kept if clip.id.startswith("known") else None),
    )
    assert next(answers).row == 0
    assert len(progress) < 30  # 4 + 2 clips wait, and 8 are hashed ahead of them
    assert [clip.row for clip in answers] == list(range(1, 51))
    assert len(encoder.seen) == 1


def test_options_are_checked_before_anything_is_taken(corpus):
    with pytest.raises(ConfigError, match="--batch-size 0"):
        stream_clips(PowerEncoder(), corpus, reporter=QUIET, batch_size=0)


def test_progress_counts_clips(corpus):
    class Counting(SilentReporter):
        def __init__(self):
            self.count = 0

        def advance(self, amount=1, **fields):
            self.count += amount

        def track(self, description, total, unit=""):
            assert (description, total, unit) == ("embed audio", 6, "clips")
            return contextlib.nullcontext(self)

    reporter = Counting()
    for number, _ in enumerate(stream_clips(PowerEncoder(), corpus, reporter=reporter)):
        assert reporter.count == number + 1
    assert reporter.count == 6


def test_memory_grows_neither_with_the_clips_nor_with_their_length(tmp_path, monkeypatch):
    # One batch and a half are 192,000 bytes, or 6 s; blocks are 1.25 s.
    monkeypatch.setattr(embedding, "_MIN_BYTES_AHEAD", 0)
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 10_000)

    def peak(manifest):
        tracemalloc.start()
        for _ in stream_clips(PowerEncoder(), manifest, reporter=QUIET, batch_size=4):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    sounds = {f"{seconds}.wav": (noise(seconds * 8000), 8000) for seconds in (1, 20, 100)}
    manifest = write_manifest(tmp_path, sounds)
    short, medium, long = (dataclasses.replace(manifest, clips=(clip,)) for clip in manifest)
    peak(medium)  # whatever is imported on the way
    assert peak(long) < peak(medium) + 100_000  # 80 s more are 2.6 MB
    few, many = (dataclasses.replace(short, clips=short.clips * count) for count in (20, 100))
    assert peak(many) < peak(few) + 500_000  # 80 clips more are 2.6 MB


def test_stereo_is_the_mean_of_its_channels(small_model, tmp_path):
    stereo = noise(8 * 44100, 2)
    manifest = write_manifest(tmp_path, {"stereo.wav": (stereo, 44100), "mono.wav": (stereo.mean(axis=1), 44100)})
    two, one = stream(small_model, manifest)
    np.testing.assert_allclose(two.vectors, one.vectors, atol=1e-6)


def test_a_sound_is_itself_at_every_sample_rate(small_model, tmp_path):
    # Below 7 kHz, so that 16 kHz hold all of it.
    sounds = {}
    for name in ("bells", "wind"):
        time = np.arange(8 * 14000) / 14000
        strokes = np.exp(-3 * (time % 1.0)) * np.sin(2 * np.pi * 2093 * time)
        tone = strokes if name == "bells" else np.cumsum(noise(len(time))[:, 0]) / 40
        for rate in (44100, 48000, 32000, 16000):
            sounds[f"{name}{rate}.wav"] = (0.5 * soxr.resample(tone, 14000, rate, quality="VHQ"), rate)
    vectors = np.concatenate([clip.vectors for clip in stream(small_model, write_manifest(tmp_path, sounds))])  # [8, D]
    cosines = vectors @ vectors.T
    assert cosines[:4, :4].min() > 0.99
    assert cosines[4:, 4:].min() > 0.99
    assert cosines[:4, 4:].max() < 0.99  # another sound is not


# Text -------------------------------------------------------------------------------------------------------------------


def test_equal_sentences_are_encoded_once_and_keep_their_places():
    encoder = PowerEncoder()
    vectors = embed_texts(encoder, ["rain", "a dog", "rain", "wind x"], reporter=QUIET, batch_size=2)
    assert encoder.seen == [["rain", "a dog"], ["wind x"]]
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert vectors[1, 0] == pytest.approx(5 / np.sqrt(26))


def test_equal_sentences_in_two_languages_are_two_for_a_model_that_asks_for_them(polyglot):
    texts, languages = ["rain", "rain", "rain", "dog"], ["en", "de", "en", "de"]
    vectors = embed_texts(polyglot, texts, languages=languages, reporter=QUIET)
    assert polyglot.text_tower.seen == [("rain", "en"), ("rain", "de"), ("dog", "de")]
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    # Each as if it had been asked alone.
    for row, (text, language) in enumerate(zip(texts, languages, strict=True)):
        alone = embed_texts(polyglot, [text], languages=[language], reporter=QUIET)[0]
        np.testing.assert_allclose(vectors[row], alone, atol=2e-6)


def test_a_model_that_asks_is_told_english_where_nothing_is_known(polyglot):
    np.testing.assert_allclose(
        embed_texts(polyglot, ["rain"], reporter=QUIET),
        embed_texts(polyglot, ["rain"], languages=["en"], reporter=QUIET),
        atol=2e-6,
    )


def test_equal_sentences_are_one_for_a_model_that_does_not_ask_for_languages():
    encoder = PowerEncoder()
    vectors = embed_texts(encoder, ["rain", "rain"], languages=["en", "de"], reporter=QUIET)
    assert encoder.seen == [["rain"]]
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_sentences_that_are_cut_are_counted_and_said(reporter):
    torch.manual_seed(0)
    model = DualEncoder("tiny", "small", embedding_dim=4, text_options={"captions": ["rain"]}).eval()
    long = ["rain and " * 200, "wind and " * 200]
    embed_texts(model, ["rain", long[0], "rain", long[0], long[1]], reporter=reporter)
    assert reporter.warned == [
        f"2 of 3 sentences are longer than the {model.captions_cut[1]} tokens that the model reads; their ends are not embedded"
    ]
    embed_texts(model, ["rain"], reporter=reporter)
    assert len(reporter.warned) == 1


def test_texts_do_not_depend_on_the_batch_size(model):
    texts = ["a dog is heard", "rain", "the sound of a bell and of a bird", "x"]
    expected = embed_texts(model, texts, reporter=QUIET, batch_size=1)
    np.testing.assert_allclose(embed_texts(model, texts, reporter=QUIET, batch_size=4), expected, atol=2e-6)


def test_equal_vectors_have_equal_similarities_wherever_they_stand():
    generator = np.random.default_rng(0)
    audio = generator.normal(size=(37, 129)).astype(np.float32)
    audio[[0, 17, 36]] = audio[5]
    similarity = cosine_similarity(audio, generator.normal(size=(23, 129)).astype(np.float32))
    assert similarity.dtype == np.float32
    for row in (0, 17, 36):
        np.testing.assert_array_equal(similarity[row], similarity[5])


def test_window_and_hop_default_to_the_model():
    spec = AudioSpec(sample_rate=100, window_s=2.0)
    assert window_samples(spec, window_s=None, hop_s=None) == (200, 200)
    assert window_samples(spec, window_s=1.0, hop_s=None) == (100, 100)
    assert window_samples(spec, window_s=1.0, hop_s=0.25) == (100, 25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_s": 3.0}, "--window-s 3.0: expected more than 0 and at most 1.0"),
        ({"window_s": 0.0}, "--window-s 0.0"),
        ({"hop_s": 2.0}, "--hop-s 2.0: expected more than 0 and at most the window of 1.0 s"),
        ({"hop_s": -1.0}, "--hop-s -1.0"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"workers": 0}, "--workers 0: expected at least 1"),
    ],
)
def test_options_out_of_range_are_refused(corpus, options, message):
    with pytest.raises(ConfigError, match=message):
        embed_clips(PowerEncoder(), corpus, reporter=QUIET, **options)


class LastWindow(PowerEncoder):
    """Takes the last window of a clip for all of it."""

    fusion = "attention"

    def __init__(self):
        super().__init__()
        self.fused = []

    def fuse_windows(self, windows, is_window):
        assert is_window.all()
        self.fused.append(tuple(windows.shape))
        return windows[:, -1]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_a_model_with_a_fusion_of_its_own_makes_the_vector_of_a_clip(corpus, batch_size):
    model = LastWindow()
    found = embed_clips(model, corpus, reporter=QUIET, batch_size=batch_size)
    alone = embed_clips(PowerEncoder(), corpus, reporter=QUIET, pool="none")
    last = [np.flatnonzero(alone.clip == clip)[-1] for clip in range(len(corpus))]
    np.testing.assert_allclose(found.vectors, alone.vectors[last], atol=1e-6)
    assert found.spans == embed_clips(PowerEncoder(), corpus, reporter=QUIET).spans
    # One clip at a time, and none of one window.
    assert model.fused == [(1, 2, 4), (1, 2, 4), (1, 3, 4), (1, 3, 4)]
    windows = embed_clips(LastWindow(), corpus, reporter=QUIET, pool="none")
    np.testing.assert_array_equal(windows.vectors, alone.vectors)


def test_an_attention_pools_as_it_does_in_training(attentive, corpus):
    found = embed_clips(attentive, corpus, reporter=QUIET, batch_size=4)
    alone = embed_clips(attentive, corpus, reporter=QUIET, pool="none")
    for clip in range(len(corpus)):
        windows = torch.from_numpy(alone.vectors[alone.clip == clip])[None]
        with torch.inference_mode():
            expected = attentive.fuse_windows(windows, torch.ones(windows.shape[:2], dtype=torch.bool))[0]
        np.testing.assert_allclose(found.vectors[clip], expected.numpy(), atol=2e-6)
    np.testing.assert_allclose(embed_clips(attentive, corpus, reporter=QUIET, batch_size=1).vectors, found.vectors, atol=2e-6)
