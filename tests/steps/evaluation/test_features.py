import numpy as np
import pytest
import torch

from clapkit.errors import NumericalError
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation.features import TowerAndProjection, embed_features


def features_of(model, manifest, reporter):
    return embed_features(model, manifest, reporter=reporter, batch_size=3, precision="fp32", device="cpu", workers=1)


def test_the_projection_half_is_the_embedding(model, corpus, reporter):
    found = features_of(model, corpus, reporter)
    expected = embed_clips(model, corpus, reporter=reporter)
    np.testing.assert_allclose(found.projection, expected.vectors, atol=1e-6)
    np.testing.assert_array_equal(found.clip, expected.clip)


def test_the_tower_half_is_the_mean_over_windows_of_what_comes_before_the_head(model, corpus, reporter):
    class TowerAlone(TowerAndProjection):
        embedding_dim = model.audio_tower.embedding_dim

        def encode_audio(self, waveform, num_samples):
            return torch.nn.functional.normalize(model.audio_tower(waveform, num_samples).float(), dim=1)

    found = features_of(model, corpus, reporter)
    assert found.tower.shape == (len(corpus), model.audio_tower.embedding_dim)
    np.testing.assert_allclose(found.tower, embed_clips(TowerAlone(model), corpus, reporter=reporter).vectors, atol=1e-6)


def test_both_halves_of_a_window_weigh_the_same(model):
    spec = model.audio_spec
    waveform = torch.randn(2, spec.window_samples, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        both = TowerAndProjection(model).encode_audio(waveform, torch.tensor([spec.window_samples] * 2))
    tower, projection = both.split([model.audio_tower.embedding_dim, model.embedding_dim], dim=1)
    for half in (tower, projection):
        torch.testing.assert_close(half.norm(dim=1), torch.full((2,), 0.5**0.5))


def test_a_clip_that_cannot_be_read_is_rejected(model, retag, reporter):
    found = features_of(model, retag(lambda clip: {"audio": "gone.wav"} if clip.id == "toy/dog" else {}), reporter)
    assert [rejected.item for rejected in found.rejected] == ["toy/dog"]
    assert found.clip.tolist() == [1, 2, 3, 4, 5]


def test_a_tower_that_gives_zeros_is_refused(model, corpus, reporter, monkeypatch):
    monkeypatch.setattr(model.audio_tower, "forward", lambda waveform, _: torch.zeros(len(waveform), 1))
    monkeypatch.setattr(model.audio_head, "forward", lambda features: torch.ones(len(features), model.embedding_dim))
    monkeypatch.setattr(model.audio_tower, "embedding_dim", 1)
    with pytest.raises(NumericalError, match="zero or not finite, the first of 'toy/dog'"):
        features_of(model, corpus, reporter)


def test_sentences_do_not_come_here(model):
    with pytest.raises(AssertionError, match="1 sentences for an audio tower"):
        TowerAndProjection(model).encode_text(["a"])


def test_both_halves_are_fused_as_the_model_fuses_embeddings(model, attentive):
    assert TowerAndProjection(model).fusion == "mean"
    both = TowerAndProjection(attentive)
    assert both.fusion == "attention"
    draw = torch.Generator().manual_seed(0)
    halves = [torch.nn.functional.normalize(torch.randn(2, 3, width, generator=draw), dim=2) for width in (both.tower_dim, 16)]
    windows, is_window = torch.cat(halves, dim=2) * 0.5**0.5, torch.tensor([[True] * 3, [True, True, False]])
    tower, projection = both.fuse_windows(windows, is_window).split([both.tower_dim, 16], dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(projection, dim=1), attentive.fuse_windows(halves[1], is_window))
    weights = attentive.window_weights(halves[1], is_window)
    expected = torch.nn.functional.normalize((weights[:, :, None] * halves[0]).sum(dim=1), dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(tower, dim=1), expected)


def test_the_projection_half_is_the_embedding_of_a_model_with_attention(attentive, corpus, reporter):
    found = features_of(attentive, corpus, reporter)
    np.testing.assert_allclose(found.projection, embed_clips(attentive, corpus, reporter=reporter).vectors, atol=1e-5)
