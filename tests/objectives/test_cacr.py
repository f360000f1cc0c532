import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.cacr import build
from clapkit.objectives.dcl import DCL
from clapkit.objectives.temperature import Temperature

EYE = torch.eye(6, dtype=torch.bool)


def loop_oracle(audio, text, positives, *, attraction, repulsion):
    """The paper's expectations, entry by entry."""
    total = 0.0
    for anchors, candidates in ((text, audio), (audio, text)):
        for i in range(6):
            distance = [(anchors[i] - candidates[j]).square().sum().item() for j in range(6)]
            for sign, factor, kind in ((1, attraction, True), (-1, -repulsion, False)):
                members = [j for j in range(6) if positives[i, j].item() is kind]
                norm = sum(math.exp(factor * distance[j]) for j in members)
                total += sign * sum(math.exp(factor * distance[j]) / norm * distance[j] for j in members) / 6 / 2
    return total


@pytest.mark.parametrize(("attraction", "repulsion"), [(1.0, 1.0), (0.0, 0.0), (2.5, 7.0)])
def test_equals_the_loop(make_pairs, score, clones, attraction, repulsion):
    audio, text = make_pairs()
    for positives in (EYE, clones):
        output = score(build(attraction=attraction, repulsion=repulsion), audio, text, positives)
        expected = loop_oracle(audio, text, positives, attraction=attraction, repulsion=repulsion)
        assert output.total.item() == pytest.approx(expected, abs=1e-12)
        assert output.total.item() == pytest.approx(output.terms["attraction"] + output.terms["repulsion"])
    # Groups of 2, 3 and 1: (2 * 2 + 3 * 3 + 1) / 6.
    assert output.stats["positives_per_anchor"] == pytest.approx(14 / 6)


def test_one_caption_is_attracted_by_its_distance(make_pairs, score):
    audio, text = make_pairs()
    for factor in (0.0, 1.0, 50.0):
        attraction = score(build(attraction=factor), audio, text).terms["attraction"]
        assert attraction == pytest.approx((audio - text).square().sum(dim=1).mean().item(), abs=1e-12)


def test_of_several_captions_the_far_one_pulls_more(make_pairs, clones):
    similarity = torch.zeros(6, 6, dtype=torch.float64).fill_diagonal_(0.9)
    similarity[0, 3] = 0.1  # row 0 has a near caption, at distance 0.2, and a far one, at 1.8
    similarity.requires_grad_()
    build(detach_weights=True).one_direction(similarity, clones)[0].backward()
    near, far = (-similarity.grad[0, column].item() for column in (0, 3))
    # Twice the weights over 6 rows: e^0.2 and e^1.8 over their sum.
    assert near == pytest.approx(2 / 6 / (1 + math.exp(1.6)))
    assert far == pytest.approx(2 / 6 / (1 + math.exp(-1.6)))


def test_near_negatives_push_more(make_pairs):
    similarity = torch.zeros(6, 6, dtype=torch.float64)
    similarity[0, 1] = 0.5
    similarity.requires_grad_()
    build(detach_weights=True).one_direction(similarity, EYE)[1].backward()
    # Distances 1 and four times 2: the near one has the share e^-1 / (e^-1 + 4 e^-2).
    assert similarity.grad[0, 1].item() == pytest.approx(2 / 6 / (1 + 4 * math.exp(-1)))
    assert similarity.grad[0, 2].item() == pytest.approx(2 / 6 / (math.e + 4))


@pytest.mark.parametrize("tau", [0.07, 0.5])
def test_with_constant_weights_the_gradient_is_that_of_dcl_times_twice_its_temperature(make_pairs, score, tau):
    gradients = []
    for objective in (build(repulsion=1 / (2 * tau), detach_weights=True), DCL(Temperature(tau, "fixed"), None)):
        audio, text = (x.requires_grad_() for x in make_pairs())
        score(objective, audio, text).total.backward()
        gradients.append((audio.grad, text.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, 2 * tau * theirs, rtol=1e-10, atol=1e-14)


def test_gradients_pass_through_the_weights_unless_they_are_held(make_pairs, score, clones):
    gradients = []
    for detach in (False, True):
        audio, text = (x.requires_grad_() for x in make_pairs())
        output = score(build(detach_weights=detach), audio, text, clones)
        output.total.backward()
        gradients.append((output.total.item(), text.grad))
    assert gradients[0][0] == gradients[1][0]
    assert not torch.allclose(gradients[0][1], gradients[1][1])


def test_gradient_of_the_whole_loss_is_that_of_small_differences(make_pairs, clones):
    audio, text = (x.requires_grad_() for x in make_pairs())

    def total(audio, text):
        return build()(audio, text, clones, torch.arange(6), 0.0).total

    assert torch.autograd.gradcheck(total, (audio, text))


def test_positives_are_attracted_and_not_repelled(make_pairs, score, clones):
    audio, text = make_pairs()
    audio[3] = text[0]  # the further positive of row 0 comes as close as can be
    near = score(build(), audio, text, clones)
    audio[3] = -text[0]
    far = score(build(), audio, text, clones)
    assert near.terms["attraction"] < far.terms["attraction"]


def test_a_row_without_negatives_only_attracts(make_pairs, score):
    audio, text = (x.requires_grad_() for x in make_pairs())
    output = score(build(), audio, text, torch.ones_like(EYE))
    output.total.backward()
    assert output.terms["repulsion"] == 0
    assert text.grad.isfinite().all()
    assert text.grad.abs().max() > 0


def test_swapping_the_towers_changes_nothing(make_pairs, score, clones):
    audio, text = make_pairs()
    there, back = score(build(), audio, text, clones), score(build(), text, audio, clones)
    assert there.total.item() == pytest.approx(back.total.item(), abs=1e-12)


def test_registry_reads_the_options_and_bad_ones_are_refused(score):
    objective = registry.build("loss", "cacr", {"attraction": "2", "repulsion": "7", "detach_weights": "true"})
    assert (objective.attraction, objective.repulsion, objective.detach_weights) == (2.0, 7.0, True)
    assert objective.param_groups(0.1, 0.1) == []
    with pytest.raises(ConfigError, match="attraction=-1: expected a factor"):
        build(attraction=-1)
    with pytest.raises(ConfigError, match="repulsion=inf: expected a factor"):
        build(repulsion=math.inf)
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(), torch.ones(1, 2), torch.ones(1, 2))
