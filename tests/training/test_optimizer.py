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
