import math

import pytest
import torch
from torch import nn

from clapkit.training.optimizer import build_optimizer, learning_rate_factor, parameter_groups, set_learning_rate


def factor(step: int, schedule: str = "cosine") -> float:
    return learning_rate_factor(step, total_steps=110, warmup_steps=10, schedule=schedule)


def test_warm_up_is_linear_and_the_cosine_ends_at_zero() -> None:
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx(0.5)  # half of the 100 steps behind the warm-up
    assert factor(35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factor(110) == pytest.approx(0.0)
    assert factor(500, "constant") == 1.0
    assert factor(4, "constant") == 0.5


def test_gains_biases_and_positions_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model.register_parameter("positions", nn.Parameter(torch.zeros(5, 3)))
    model[0].weight.requires_grad_(True)
    decayed, free = parameter_groups(model, lr=0.1, weight_decay=0.2)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.2, 0.0)
    assert sum(p.numel() for p in free["params"]) == 4 + 4 + 4 + 15


class Layered(nn.Module):
    """Two layers and a head, whose rates it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

    def learning_rate_scales(self, decay: float) -> dict[str, float]:
        exponents = {"first": 2, "second": 1, "head": 0}
        return {name: decay ** exponents[name.split(".")[0]] for name, _ in self.named_parameters()}


def test_without_layer_decay_there_are_two_groups_as_ever() -> None:
    model = Layered()
    groups = parameter_groups(model, lr=0.1, weight_decay=0.2)
    assert [group["name"] for group in groups] == ["decayed", "undecayed"]
    assert [group["params"] for group in groups] == [
        [model.first.weight, model.second.weight, model.head.weight],
        [model.first.bias, model.second.bias, model.head.bias],
    ]


def test_layer_decay_makes_a_pair_of_groups_per_rate() -> None:
    model = Layered()
    model.second.bias.requires_grad_(False)
    groups = parameter_groups(model, lr=0.1, weight_decay=0.2, layer_decay=0.5)
    named = {group["name"]: group for group in groups}
    assert list(named) == ["decayed x1", "undecayed x1", "decayed x0.5", "undecayed x0.5", "decayed x0.25", "undecayed x0.25"]
    assert named["decayed x0.25"]["params"] == [model.first.weight]
    assert named["undecayed x0.25"]["params"] == [model.first.bias]
    assert named["undecayed x0.5"]["params"] == []
    # 0.1, 0.1 * 0.5, 0.1 * 0.5^2
    assert [named[f"decayed x{scale}"]["lr"] for scale in ("1", "0.5", "0.25")] == pytest.approx([0.1, 0.05, 0.025])
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0] * 3
    optimizer = build_optimizer(groups)
    assert len(optimizer.param_groups) == 5
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.05)  # the log shows the rate of the heads


def test_every_group_keeps_its_ratio_to_the_schedule() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [
        {"name": "a", "params": [a], "lr": 0.1, "weight_decay": 0.0},
        {"name": "b", "params": [b], "lr": 0.01, "weight_decay": 0.0},
        {"name": "empty", "params": [], "lr": 1.0, "weight_decay": 0.0},
    ]
    optimizer = build_optimizer(groups)
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.005])
