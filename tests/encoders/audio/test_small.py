import torch

from clapkit.encoders.audio.small import build


def test_it_has_one_to_two_million_parameters_and_a_five_second_window() -> None:
    tower = build()
    assert 1_000_000 <= sum(p.numel() for p in tower.parameters()) <= 2_000_000
    assert (tower.audio_spec.sample_rate, tower.audio_spec.window_s) == (16000, 5.0)


def test_the_window_is_an_option() -> None:
    tower = build(window_s=1.0).eval()
    embedded = tower(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    assert embedded.shape == (2, tower.embedding_dim)
    assert torch.isfinite(embedded).all()
