import dataclasses

import numpy as np
import pytest
import torch

from clapkit.encoders.dual import DualEncoder
from clapkit.errors import AudioError, ConfigError, NumericalError
from clapkit.steps.embedding import cosine_similarity, embed_clips, embed_texts, window_samples
from clapkit.types import AudioSpec, SilentReporter

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
