import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.schedules import cosine, mmts
from clapkit.objectives.triplet import build

REDUCTIONS = ["sum", "max", "mean", "weighted"]


def loop_oracle(audio, text, positives, *, margin, reduction):
    """The four reductions, anchor by anchor; ``margin`` is one number or one for each row."""
    batch_size, total = len(audio), 0.0
    margins = margin if isinstance(margin, list) else [margin] * batch_size
    for anchors, candidates in ((text, audio), (audio, text)):
        for i in range(batch_size):
            p = (anchors[i] @ candidates[i]).item()
            negatives = [(anchors[i] @ candidates[j]).item() for j in range(batch_size) if not positives[i, j]]
            hinges = [max(0.0, margins[i] - p + n) for n in negatives]
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
        assert build(reduction=reduction).one_direction(similarity, positives, 0.2).item() == pytest.approx(expected)
    # weighted, row 0: 0.2 * 0.25 - 0.7 * 0.5 + 0.5 = 0.2, and 0.9 * 0.16 - 0.4 * 0.4 + 0.03 = 0.014; the sum over 2.
    assert build(reduction="weighted").one_direction(similarity, positives, 0.2).item() == pytest.approx(0.107)


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
    reference = objective.one_direction(similarity, positives, 0.2).item()
    similarity[0, 1] = similarity[1, 0] = 0.99
    assert objective.one_direction(similarity, positives, 0.2).item() == reference
    everything_free = objective.one_direction(similarity, torch.eye(3, dtype=torch.bool), 0.2).item()
    assert everything_free != reference


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_batch_without_negatives_costs_nothing_and_has_finite_gradients(reduction):
    similarity = torch.rand(3, 3, requires_grad=True)
    loss = build(reduction=reduction).one_direction(similarity, torch.ones(3, 3, dtype=torch.bool), 0.2)
    loss.backward()
    assert loss.item() == 0
    assert similarity.grad.abs().max() == 0


def test_gradient_of_the_mean_counts_active_hinges():
    similarity = torch.tensor([[0.5, 0.4], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    build(reduction="mean").one_direction(similarity, torch.eye(2, dtype=torch.bool), 0.2).backward()
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


# Schedules.


def by_cluster(**options):
    return mmts.build(quantity="margin", cluster_sizes=torch.tensor([1, 2, 2, 4, 4, 7]), **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("progress", [0.0, 0.03, 0.1])
def test_a_schedule_equals_the_loop_with_a_margin_for_each_anchor(make_pairs, score, clones, reduction, progress):
    audio, text = make_pairs(seed=1)
    margins = by_cluster()(torch.arange(6), progress).tolist()
    assert len(set(margins)) == 4
    total = score(build(schedule=by_cluster(), reduction=reduction), audio, text, clones, progress=progress).total.item()
    assert total == pytest.approx(loop_oracle(audio, text, clones, margin=margins, reduction=reduction), abs=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [0.2, 0.37])
def test_a_constant_schedule_is_the_fixed_margin_bit_for_bit(make_pairs, score, clones, reduction, dtype, margin):
    audio, text = (rows.requires_grad_() for rows in make_pairs(dtype=dtype))
    flat = by_cluster(amplitude=0.0, shift_min=margin, shift_max=margin)
    results = []
    for objective in (build(margin=margin, reduction=reduction), build(schedule=flat, reduction=reduction)):
        total = score(objective, audio, text, clones, progress=0.3).total
        results.append((total, *torch.autograd.grad(total, (audio, text))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_mean_is_that_of_all_hinges_of_both_directions(make_pairs, score):
    # Flattened as in MM-TS: 2 N (N - 1) hinges, the zeros among them.
    audio, text = make_pairs()
    margins = by_cluster()(torch.arange(6), 0.0)[:, None]
    similarity, off = text @ audio.T, ~torch.eye(6, dtype=torch.bool)
    positive = similarity.diagonal()[:, None]
    hinges = torch.cat([(margins - positive + s).clamp(min=0)[off] for s in (similarity, similarity.T)])
    assert hinges.numel() == 2 * 6 * 5
    assert (hinges == 0).any()
    output = score(build(schedule=by_cluster(), reduction="mean"), audio, text)
    assert output.total.item() == pytest.approx(hinges.mean().item(), abs=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pairs_that_win_by_more_than_the_largest_margin_cost_nothing(score, reduction):
    # The largest margin is 0.30 + 0.10 = 0.4; orthogonal pairs win by 1.
    rows = torch.eye(6)
    assert score(build(schedule=by_cluster(), reduction=reduction), rows, rows).total.item() == 0


def test_each_active_hinge_of_the_mean_has_the_same_gradient():
    similarity = (0.4 * torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    margins = by_cluster()(torch.arange(6), 0.1)
    objective = build(schedule=by_cluster(), reduction="mean")
    # One direction at a time, halved as in the total: 1 / (2 N (N - 1)) = 1 / 60 for an active hinge, otherwise 0.
    (objective.one_direction(similarity, torch.eye(6, dtype=torch.bool), margins) / 2).backward()
    active = (margins[:, None] - similarity.diagonal()[:, None] + similarity > 0).detach().fill_diagonal_(False)
    off = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(similarity.grad[off], active.double()[off] / 60, atol=1e-15, rtol=0)
    assert 0 < active.sum() < 30


def test_a_margin_belongs_to_its_anchor_in_both_directions(score):
    # Pair 0 has a margin of 0.4, pair 1 one of 0.27; every cosine of a pair is 1 and of a negative 0.7: only the
    # hinges of anchor 0 are active, 0.4 - 1 + 0.7 = 0.1, once in each direction. By columns it would be anchor 1.
    schedule = mmts.build(quantity="margin", cluster_sizes=torch.tensor([5, 1]))
    rows = torch.tensor([[1.0, 0.0], [0.7, math.sqrt(0.51)]], dtype=torch.float64)
    objective = build(schedule=schedule, reduction="sum")
    output = score(objective, rows, rows)
    assert output.terms == pytest.approx({"t2a": 0.05, "a2t": 0.05})
    crossed = torch.tensor([[1.0, 0.7], [0.5, 1.0]], dtype=torch.float64)
    margins = schedule(torch.arange(2), 0.0)
    directions = [objective.one_direction(s, torch.eye(2, dtype=torch.bool), margins).item() for s in (crossed, crossed.T)]
    assert directions == pytest.approx([0.05, 0.0])


def test_the_log_shows_the_margins_of_a_schedule(make_pairs, score):
    output = score(build(schedule=by_cluster()), *make_pairs())
    assert output.stats["margin_min"] == pytest.approx(0.27)
    assert output.stats["margin_max"] == pytest.approx(0.40)
    assert 0.27 < output.stats["margin"] < 0.40
    assert "margin" not in score(build(), *make_pairs()).stats


def test_a_cosine_schedule_gives_all_anchors_one_margin(make_pairs, score):
    schedule = cosine.build(quantity="margin", tau_min=0.1, tau_max=0.4, oscillations=1)
    scheduled = score(build(schedule=schedule), *make_pairs(), progress=0.5).total
    torch.testing.assert_close(scheduled, score(build(margin=0.1), *make_pairs()).total, atol=1e-12, rtol=0)


def test_a_margin_beside_a_schedule_is_refused():
    with pytest.raises(ConfigError, match="margin=0.2: the schedule gives every anchor its margin; leave margin out"):
        build(margin=0.2, schedule=by_cluster())
    assert build().margin == 0.2
