import math

import pytest
import torch
from torch import nn

from clapkit.encoders.heads import ClapHead, ProjectionHead, make_head
from clapkit.errors import UnknownNameError


def fill(linear: nn.Linear, weight: list[list[float]], bias: list[float]) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weight))
        linear.bias.copy_(torch.tensor(bias))


def test_the_clap_head_is_linear_relu_linear() -> None:
    head = ClapHead(2, 2)
    fill(head.linear1, [[1.0, 0.0], [0.0, 1.0]], [0.0, -5.0])
    fill(head.linear2, [[2.0, 7.0], [-1.0, 0.0]], [0.5, 0.0])
    # (3, 4) -> (3, -1) -> relu (3, 0) -> (2 * 3 + 0.5, -3)
    assert head(torch.tensor([[3.0, 4.0]])).tolist() == [[6.5, -3.0]]


def test_the_mlp_head_refines_behind_a_shortcut_and_norms() -> None:
    head = ProjectionHead(1, 2)
    fill(head.project, [[1.0], [-1.0]], [0.0, 0.0])
    fill(head.refine, [[1.0, 0.0], [0.0, 0.0]], [0.0, 3.0])
    with torch.no_grad():
        head.norm.weight.copy_(torch.tensor([10.0, 10.0]))
    # 2 -> projected (2, -2); gelu(2) = 2 * 0.5 * (1 + erf(2 / sqrt 2)) = 1.9545; refined (1.9545, 3)
    # sum (3.9545, 1); the norm of two values is +-1 up to its eps: half their difference is d = 1.47725,
    # d / sqrt(d^2 + 1e-5) = 0.9999977; times the gain 10
    d = (2 + 0.5 * 2 * (1 + math.erf(math.sqrt(2))) - 1) / 2
    expected = 10 * d / math.sqrt(d**2 + 1e-5)
    torch.testing.assert_close(head(torch.tensor([[2.0]])), torch.tensor([[expected, -expected]]))
    # Without the shortcut the second value, 3 against 1.9545, would be the larger one.
    assert head(torch.tensor([[2.0]]))[0].argmax() == 0


@pytest.mark.parametrize(("kind", "made"), [("mlp", ProjectionHead), ("clap", ClapHead)])
def test_a_head_is_made_by_its_name(kind: str, made: type[nn.Module]) -> None:
    head = make_head(kind, 3, 5)
    assert type(head) is made
    assert head(torch.ones(2, 3)).shape == (2, 5)


def test_an_unknown_head_offers_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="unknown projection head 'clip': did you mean 'clap'"):
        make_head("clip", 3, 5)
