import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.triplet import build

REDUCTIONS = ["sum", "max", "mean", "weighted"]


def loop_oracle(audio, text, positives, *, margin, reduction):
    """The four reductions, anchor by anchor."""
    batch_size, total = len(audio), 0.0
    for anchors, candidates in ((text, audio), (audio, text)):
        for i in range(batch_size):
            p = (anchors[i] @ candidates[i]).item()
            negatives = [(anchors[i] @ candidates[j]).item() for j in range(batch_size) if not positives[i, j]]
            hinges = [max(0.0, margin - p + n) for n in negatives]
            if reduction == "sum":
                total += sum(hinges) / batch_size
            elif reduction == "max":
                total += max(hinges, default=0.0) / batch_size
            elif reduction == "mean":
                total += sum(hinges) / (2 * batch_size * (batch_size - 1))
            elif max(hinges, default=0.0) > 0:
                n = max(negatives)
                total += max(0.0, 0.2 * p**2 - 0.7 * p + 0.5) / batch_size
                total += max(0.0, 0.9 * n**2 - 0.4 * n + 0.03) / batch_size
    return total


def test_one_violated_margin_by_hand():
    # Row 0: 0.2 - 0.5 + 0.4 = 0.1; row 1: 0.2 - 0.9 + 0.1 < 0.
    similarity = torch.tensor([[0.5, 0.4], [0.1, 0.9]], dtype=torch.float64)
    positives = torch.eye(2, dtype=torch.bool)
    for reduction, expected in (("sum", 0.05), ("max", 0.05), ("mean", 0.05)):
        assert build(reduction=reduction).one_direction(similarity, positives).item() == pytest.approx(expected)
    # weighted, row 0: 0.2 * 0.25 - 0.7 * 0.5 + 0.5 = 0.2, and 0.9 * 0.16 - 0.4 * 0.4 + 0.03 = 0.014; the sum over 2.
    assert build(reduction="weighted").one_direction(similarity, positives).item() == pytest.approx(0.107)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, score, clones, reduction, seed):
    audio, text = make_pairs(seed=seed)
    output = score(build(margin=0.4, reduction=reduction), audio, text, clones)
    expected = loop_oracle(audio, text, clones, margin=0.4, reduction=reduction)
    assert output.total.item() == pytest.approx(expected, abs=1e-12)
    assert expected > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pairs_that_win_by_the_margin_cost_nothing(score, reduction):
    rows = torch.eye(3, 4)
    assert score(build(margin=0.9, reduction=reduction), rows, rows).total.item() == 0


def test_the_hardest_negative_costs_no_more_than_all(make_pairs, score):
    audio, text = make_pairs(batch_size=12)
    largest, summed = (score(build(reduction=r), audio, text).total.item() for r in ("max", "sum"))
    assert 0 < largest < summed


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_another_caption_of_the_same_clip_never_contributes(reduction):
    objective = build(reduction=reduction)
    positives = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    similarity = torch.tensor([[0.3, 0.0, 0.2], [0.0, 0.3, 0.2], [0.2, 0.2, 0.3]], dtype=torch.float64)
    reference = objective.one_direction(similarity, positives).item()
    similarity[0, 1] = similarity[1, 0] = 0.99
    assert objective.one_direction(similarity, positives).item() == reference
    everything_free = objective.one_direction(similarity, torch.eye(3, dtype=torch.bool)).item()
    assert everything_free != reference


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_without_negatives_costs_nothing_and_has_finite_gradients(reduction):
    similarity = torch.rand(3, 3, requires_grad=True)
    loss = build(reduction=reduction).one_direction(similarity, torch.ones(3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert similarity.grad.abs().max() == 0


def test_gradient_of_the_mean_counts_active_hinges():
    similarity = torch.tensor([[0.5, 0.4], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    build(reduction="mean").one_direction(similarity, torch.eye(2, dtype=torch.bool)).backward()
    # Two hinges in one direction, one of them active.
    assert similarity.grad.tolist() == [[-0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_swapping_the_towers_changes_nothing(make_pairs, score, reduction):
    audio, text = make_pairs()
    objective = build(reduction=reduction)
    there, back = score(objective, audio, text), score(objective, text, audio)
    assert there.total.item() == pytest.approx(back.total.item(), abs=1e-12)
    assert there.terms["t2a"] == pytest.approx(back.terms["a2t"], abs=1e-12)


def test_nothing_is_learned():
    objective = registry.build("loss", "triplet", {"margin": "0.3", "reduction": "max"})
    objective.after_step()
    assert objective.param_groups(0.1, 0.1) == []
    assert objective.margin == 0.3


def test_bad_input_is_refused(score):
    for margin in (0.0, 2.0, math.nan):
        with pytest.raises(ConfigError, match="expected more than 0 and less than 2"):
            build(margin=margin)
    with pytest.raises(ConfigError, match="reduction=median: expected one of sum, max, mean, weighted"):
        build(reduction="median")
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(), torch.ones(1, 2), torch.ones(1, 2))
