import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import infonce
from clapkit.objectives.decoupled import build


@pytest.fixture
def similarity():
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.rand(6, 6, dtype=torch.float64, generator=generator) - 1).requires_grad_()


def loop_oracle(audio, text, positives, *, tau):
    """The paper's sum, entry by entry; ``tau`` is one number for each row."""
    batch_size, total = len(audio), 0.0
    for anchors, candidates, row_of in ((text, audio, positives), (audio, text, positives.T)):
        for i in range(batch_size):
            weight = [math.exp((anchors[i] @ candidates[j]).item() / tau[i]) for j in range(batch_size)]
            positive = [j for j in range(batch_size) if row_of[i, j]]
            negative = sum(weight[j] for j in range(batch_size) if not row_of[i, j])
            total += sum(-math.log(weight[p] / (weight[p] + negative)) for p in positive) / len(positive) / batch_size / 2
    return total


def test_three_pairs_by_hand():
    # Rows 0 and 1 show one clip; all cosines 0. Rows 0, 1: both positives against one negative, ln 2. Row 2: against two, ln 3.
    positives = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    loss = build().one_direction(torch.zeros(3, 3), positives, 1.0)
    assert loss.item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, score, clones, seed):
    audio, text = make_pairs(seed=seed)
    output = score(build(temperature="fixed"), audio, text, clones)
    assert output.total.item() == pytest.approx(loop_oracle(audio, text, clones, tau=[0.07] * 6), abs=1e-8)
    assert output.total.item() == pytest.approx((output.terms["t2a"] + output.terms["a2t"]) / 2)
    # Groups of 2, 3 and 1: (2 * 2 + 3 * 3 + 1) / 6.
    assert output.stats["positives_per_anchor"] == pytest.approx(14 / 6)


def test_one_positive_is_infonce(make_pairs, score):
    audio, text = make_pairs()
    ours, theirs = (score(module, audio, text).total.item() for module in (build(), infonce.build()))
    assert ours == pytest.approx(theirs, abs=1e-8)


def gradient_on_the_second_positive(objective, similarity, first):
    """dL / ds_03 where row 0 has the positives 0 and 3, and s_00 is ``first``."""
    similarity = similarity.detach().clone()
    similarity[0, 0] = first
    similarity.requires_grad_()
    positives = torch.eye(6, dtype=torch.bool)
    positives[0, 3] = positives[3, 0] = True
    objective.one_direction(similarity, positives, 5.0).backward()
    return similarity.grad[0, 3].item()


def test_gradient_on_a_positive_does_not_depend_on_the_score_of_another(similarity):
    low, high = (gradient_on_the_second_positive(build(), similarity, first) for first in (-0.9, 0.9))
    assert low == pytest.approx(high, abs=1e-15)
    assert low < 0  # more of it is better


def test_gradient_on_a_positive_of_a_shared_softmax_does_depend_on_the_score_of_another(similarity):
    soft = infonce.build(targets="soft")
    low, high = (gradient_on_the_second_positive(soft, similarity, first) for first in (-0.9, 0.9))
    assert abs(low - high) > 1e-2


def test_negatives_are_shared_by_the_positives_of_a_row(similarity, clones):
    # dL/ds_in = sum_p softmax of n in { p, negatives } / (|Pos| N tau), here for row 0 with the positives 0 and 3.
    build().one_direction(similarity, clones, 5.0).backward()
    weight = (5.0 * similarity.detach()[0]).exp()
    negative = weight[[1, 2, 4, 5]].sum()
    expected = sum(weight[1] / (weight[p] + negative) for p in (0, 3)) / 2 * 5.0 / 6
    assert similarity.grad[0, 1].item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_row_without_negatives_counts_zero(similarity):
    positives = torch.eye(6, dtype=torch.bool)
    positives[2] = True
    build().one_direction(similarity, positives, 5.0).backward()
    assert similarity.grad.isfinite().all()
    assert torch.equal(similarity.grad[2], torch.zeros(6, dtype=torch.float64))
    everything = torch.ones(6, 6, dtype=torch.bool)
    assert build().one_direction(similarity, everything, 5.0).item() == 0


def test_the_own_partner_is_a_positive_whatever_the_matrix_says(similarity):
    none = torch.zeros(6, 6, dtype=torch.bool)
    losses = [build().one_direction(similarity, positives, 5.0).item() for positives in (none, torch.eye(6, dtype=torch.bool))]
    assert losses[0] == losses[1]


def test_every_row_has_the_temperature_of_its_schedule(make_pairs, score, clones, per_row):
    audio, text = make_pairs()
    tau = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 1.0], dtype=torch.float64)
    total = score(build(schedule=per_row(tau)), audio, text, clones).total.item()
    assert total == pytest.approx(loop_oracle(audio, text, clones, tau=tau.tolist()), abs=1e-8)


def test_swapping_the_towers_changes_nothing(make_pairs, score, clones):
    audio, text = make_pairs()
    objective = build()
    there, back = score(objective, audio, text, clones), score(objective, text, audio, clones)
    assert there.total.item() == pytest.approx(back.total.item(), abs=1e-12)


def test_registry_reads_the_options():
    objective = registry.build("loss", "decoupled", {"temperature": "fixed", "tau": "0.1"})
    assert objective.temperature.tau == 0.1
    assert objective.param_groups(0.1, 0.1) == []
    assert [group["name"] for group in build().param_groups(0.1, 0.1)] == ["temperature"]


def test_bad_input_is_refused(score):
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(), torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ConfigError, match="tau=0"):
        build(tau=0)
