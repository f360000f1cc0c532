import torch

from clapkit.encoders.audio._convolutional import AttentionPool, RecurrentFrames, sinusoids
from clapkit.encoders.audio.tiny import build


def test_an_embedding_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    tower = build().eval()
    waveforms, num_samples = torch.randn(5, 8000), torch.tensor([8000, 100, 4000, 1, 8000])
    together = tower(waveforms, num_samples)
    alone = torch.cat([tower(waveforms[i : i + 1], num_samples[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    tower = build().train()
    tower(torch.randn(4, 8000), torch.full((4,), 8000)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


def test_pooling_ignores_frames_behind_the_end() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, num_heads=2).eval()
    frames = torch.randn(1, 6, 8)
    disturbed = frames.clone()
    disturbed[:, 4:] = 100.0
    assert torch.equal(pool(frames, torch.tensor([4])), pool(disturbed, torch.tensor([4])))
    assert not torch.equal(pool(frames, torch.tensor([6])), pool(disturbed, torch.tensor([6])))


def test_pooling_hears_the_order_of_events() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, num_heads=2).eval()
    frames = torch.randn(1, 6, 8)
    difference = pool(frames, torch.tensor([6])) - pool(frames.flip(1), torch.tensor([6]))
    assert difference.abs().max() > 1e-3


def test_position_codes_are_distinct() -> None:
    codes = sinusoids(32, 16, torch.zeros(1))
    distances = torch.cdist(codes, codes) + torch.eye(32) * 10
    assert codes.shape == (32, 16)
    assert distances.min() > 0.1


def test_recurrent_frames_tell_an_order_that_their_mean_does_not() -> None:
    torch.manual_seed(0)
    recurrent = RecurrentFrames(8).eval()
    frames, real = torch.randn(1, 6, 8), torch.tensor([6])
    turned = frames.flip(1)
    torch.testing.assert_close(frames.mean(dim=1), turned.mean(dim=1))
    assert (recurrent(frames, real).mean(dim=1) - recurrent(turned, real).mean(dim=1)).abs().max() > 1e-2


def test_recurrent_frames_do_not_read_behind_the_end() -> None:
    torch.manual_seed(0)
    recurrent = RecurrentFrames(8).eval()
    frames = torch.randn(2, 6, 8)
    disturbed = frames.clone()
    disturbed[0, 4:] = 100.0
    real = torch.tensor([4, 6])
    assert torch.equal(recurrent(frames, real), recurrent(disturbed, real))
    assert recurrent(frames, real).shape == frames.shape
    torch.testing.assert_close(recurrent(frames, real)[:1, :4], recurrent(frames[:1, :4], real[:1]))
