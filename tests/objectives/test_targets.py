import pytest
import torch

from clapkit.errors import ConfigError
from clapkit.objectives.targets import check_policy, further_positives, no_negatives, uniform_targets

POSITIVES = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])


def test_further_positives_leave_the_diagonal_out():
    assert further_positives(POSITIVES).tolist() == [[False, True, False], [True, False, False], [False] * 3]


def test_the_diagonal_is_never_a_negative():
    assert no_negatives(torch.zeros(2, 2, dtype=torch.bool)).tolist() == [[True, False], [False, True]]


def test_the_matrix_of_the_caller_is_left_alone():
    before = POSITIVES.clone()
    further_positives(POSITIVES)
    no_negatives(POSITIVES)
    assert torch.equal(POSITIVES, before)


def test_uniform_targets_share_each_row_evenly():
    targets = uniform_targets(POSITIVES, torch.zeros((), dtype=torch.float64))
    assert targets.tolist() == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert targets.dtype == torch.float64


def test_an_unknown_policy_is_refused():
    assert check_policy("soft") == "soft"
    with pytest.raises(ConfigError, match="targets=hard: expected one of ignore, soft"):
        check_policy("hard")
