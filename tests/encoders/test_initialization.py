import torch
from torch import nn

from clapkit.encoders.initialization import preserve_variance


def test_activations_keep_their_scale_through_rectified_convolutions() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers)
    planes = torch.randn(4, 64, 16, 16)
    torch_default = model(planes).std()
    preserve_variance(model)
    assert 0.3 < model(planes).std() < 1.5
    assert torch_default < 0.05


def test_linear_layers_keep_unit_variance() -> None:
    torch.manual_seed(0)
    model = nn.Linear(256, 256, bias=False)
    preserve_variance(model)
    assert 0.9 < model(torch.randn(100, 256)).std() < 1.1
