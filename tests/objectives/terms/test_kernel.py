import math

import pytest
import torch

from clapkit.objectives.terms._kernel import log_mean_kernel, squared_distances


def test_squared_distances_are_those_of_the_differences(make_pairs):
    left, right = make_pairs()
    naive = [[sum((x - y).item() ** 2 for x, y in zip(a, b, strict=True)) for b in right] for a in left]
    torch.testing.assert_close(squared_distances(left, right), torch.tensor(naive, dtype=torch.float64), atol=1e-12, rtol=0)


def test_two_opposite_rows_have_exactly_minus_8():
    # The one distance is 2: ln exp(-2 * 4) = -8.
    rows = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    assert log_mean_kernel(rows, rows, torch.eye(2, dtype=torch.bool)).item() == -8


def test_rows_that_are_all_the_same_have_0():
    rows = torch.ones(4, 4) / 2
    assert log_mean_kernel(rows, rows, torch.eye(4, dtype=torch.bool)).item() == pytest.approx(0, abs=1e-6)


def test_equals_the_loop_over_negatives(make_pairs, clones):
    left, right = make_pairs()
    kept = [(i, j) for i in range(6) for j in range(6) if i != j and not clones[i, j]]
    values = [math.exp(-2 * (left[i] - right[j]).square().sum().item()) for i, j in kept]
    expected = math.log(sum(values) / len(values))
    assert log_mean_kernel(left, right, clones).item() == pytest.approx(expected, abs=1e-12)


def test_without_negatives_it_is_a_constant_0(make_pairs):
    left, right = (x.requires_grad_() for x in make_pairs())
    value = log_mean_kernel(left, right, torch.ones(6, 6, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert not left.grad.any()
    assert not right.grad.any()


def test_the_diagonal_never_counts(make_pairs):
    left, right = make_pairs()
    with_diagonal, without = torch.eye(6, dtype=torch.bool), torch.zeros(6, 6, dtype=torch.bool)
    assert torch.equal(log_mean_kernel(left, right, with_diagonal), log_mean_kernel(left, right, without))
