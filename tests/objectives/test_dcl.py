import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import infonce
from clapkit.objectives.dcl import build, pull_and_push


@pytest.fixture
def similarity():
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.rand(6, 6, dtype=torch.float64, generator=generator) - 1).requires_grad_()


EYE = torch.eye(6, dtype=torch.bool)


def loop_oracle(audio, text, positives, *, tau, sigma=None):
    """DCL entry by entry; ``tau`` is one number for each row."""
    batch_size, total = len(audio), 0.0
    concentration = [math.exp((audio[i] @ text[i]).item() / sigma) if sigma else 1.0 for i in range(batch_size)]
    for anchors, candidates, row_of in ((text, audio, positives), (audio, text, positives.T)):
        for i in range(batch_size):
            weight = 2 - concentration[i] / (sum(concentration) / batch_size)
            negatives = [j for j in range(batch_size) if j != i and not row_of[i, j]]
            push = math.log(sum(math.exp((anchors[i] @ candidates[j]).item() / tau[i]) for j in negatives))
            total += (push - weight * (anchors[i] @ candidates[i]).item() / tau[i]) / batch_size / 2
    return total


def test_two_orthogonal_pairs_by_hand(score):
    # s = identity, tau = 1: each row gives -1 + ln e^0 = -1; InfoNCE is ln(1 + e^-1) = 0.31326.
    rows = torch.eye(2)
    output = score(build(temperature="fixed", tau=1.0), rows, rows)
    assert output.total.item() == pytest.approx(-1.0)
    assert output.terms == pytest.approx({"t2a": -1.0, "a2t": -1.0})
    assert output.stats == pytest.approx({"temperature": 1.0, "positive_cosine": 1.0, "infonce": 0.313262}, abs=1e-6)


def test_weights_by_hand():
    # s_ii = 0.5 and 0, sigma = 0.5: softmax(1, 0) = e / (e + 1), 1 / (e + 1) = 0.73106, 0.26894; w = 2 - 2 softmax.
    weights = build(weighted=True).weights(torch.tensor([[0.5, 0.9], [-0.3, 0.0]]))
    torch.testing.assert_close(weights, torch.tensor([0.537883, 1.462117]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [None, 0.5, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, score, clones, sigma, seed):
    audio, text = make_pairs(seed=seed)
    options = {} if sigma is None else {"weighted": True, "sigma": sigma}
    total = score(build(temperature="fixed", **options), audio, text, clones).total.item()
    assert total == pytest.approx(loop_oracle(audio, text, clones, tau=[0.07] * 6, sigma=sigma), abs=1e-9)


def test_infonce_of_a_row_is_the_softplus_of_its_dcl(similarity):
    pull, push = pull_and_push(similarity, EYE, 1 / 0.2)
    cross_entropy = -(similarity / 0.2).log_softmax(dim=1).diagonal()
    torch.testing.assert_close(torch.nn.functional.softplus(push - pull), cross_entropy, atol=1e-12, rtol=0)


def test_gradient_of_infonce_is_that_of_dcl_times_one_minus_the_probability_of_the_pair(similarity):
    gradients = [
        torch.autograd.grad(objective.one_direction(similarity, EYE, 1 / 0.2), similarity)[0]
        for objective in (infonce.build(), build())
    ]
    probability = (similarity.detach() / 0.2).softmax(dim=1).diagonal()
    torch.testing.assert_close(gradients[0], (1 - probability)[:, None] * gradients[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_logs_the_infonce_that_infonce_gives(make_pairs, score, clones, weighted):
    audio, text = make_pairs()
    expected = score(infonce.build(), audio, text, clones).total.item()
    assert score(build(weighted=weighted), audio, text, clones).stats["infonce"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_weights_are_one_on_average_and_higher_for_less_similar_pairs(similarity, sigma):
    weights = build(weighted=True, sigma=sigma).weights(similarity)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(weights.argsort(), similarity.diagonal().argsort(descending=True))


def test_equally_similar_pairs_have_weight_one(score):
    rows = torch.eye(4)
    plain, weighted = (score(build(weighted=weighted), rows, rows).total.item() for weighted in (False, True))
    assert plain == pytest.approx(weighted)


def test_weights_carry_no_gradient(similarity):
    # dL/ds_ii = -w_i / (N tau), without a share that comes through w.
    objective = build(weighted=True)
    objective.one_direction(similarity, EYE, 1 / 0.2).backward()
    expected = -objective.weights(similarity) / (6 * 0.2)
    torch.testing.assert_close(similarity.grad.diagonal(), expected, atol=1e-12, rtol=0)


def test_a_pair_far_ahead_of_the_others_is_pushed_apart(make_pairs, score):
    # sigma = 0.1, s_ii = 1, 0, 0: softmax(10, 0, 0) is nearly 1, w_1 = 2 - 3.
    similarity = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert build(weighted=True, sigma=0.1).weights(similarity)[0].item() == pytest.approx(-1, abs=1e-3)
    audio, text = make_pairs()
    stats = score(build(weighted=True), audio, text).stats
    lowest = build(weighted=True).weights(text @ audio.T).min().item()
    assert stats["lowest_weight"] == pytest.approx(lowest)


def test_the_pull_does_not_depend_on_the_negatives(similarity):
    for shift in (-3.0, 0.0, 3.0):
        moved = (similarity + shift * ~EYE).detach().requires_grad_()
        build().one_direction(moved, EYE, 5.0).backward()
        torch.testing.assert_close(moved.grad.diagonal(), torch.full((6,), -5.0 / 6, dtype=torch.float64))


def test_a_row_without_negatives_only_pulls(similarity):
    # What is left of the gradient when negatives become ever more dissimilar: -1 / (N tau) on the pair, nothing else.
    positives = EYE.clone()
    positives[2] = True
    loss = build().one_direction(similarity, positives, 5.0)
    loss.backward()
    expected = torch.zeros(6, dtype=torch.float64)
    expected[2] = -5.0 / 6
    assert loss.isfinite()
    torch.testing.assert_close(similarity.grad[2], expected, atol=1e-12, rtol=0)
    assert similarity.grad.isfinite().all()


def test_a_batch_without_negatives_is_the_mean_pull(make_pairs, score):
    audio, text = (x.requires_grad_() for x in make_pairs())
    output = score(build(temperature="fixed"), audio, text, torch.ones(6, 6, dtype=torch.bool))
    output.total.backward()
    assert output.total.item() == pytest.approx(-(audio * text).sum(dim=1).mean().item() / 0.07)
    assert output.stats["infonce"] == 0
    assert audio.grad.isfinite().all()
    assert text.grad.isfinite().all()


def test_every_row_has_the_temperature_of_its_schedule(make_pairs, score, clones, per_row):
    audio, text = make_pairs()
    tau = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 1.0], dtype=torch.float64)
    output = score(build(schedule=per_row(tau)), audio, text, clones)
    assert output.total.item() == pytest.approx(loop_oracle(audio, text, clones, tau=tau.tolist()), abs=1e-9)
    assert output.stats["temperature"] == pytest.approx(tau.mean().item())


def test_a_constant_schedule_is_a_fixed_temperature(make_pairs, score, per_row):
    audio, text = make_pairs()
    constant = per_row(torch.full((6,), 0.2, dtype=torch.float64))
    outputs = [score(objective, audio, text) for objective in (build(schedule=constant), build(temperature="fixed", tau=0.2))]
    assert outputs[0].total.item() == pytest.approx(outputs[1].total.item(), abs=1e-12)
    assert outputs[0].stats["infonce"] == pytest.approx(outputs[1].stats["infonce"], abs=1e-12)


def test_swapping_the_towers_changes_nothing(make_pairs, score, clones):
    audio, text = make_pairs()
    objective = build(weighted=True)
    there, back = score(objective, audio, text, clones), score(objective, text, audio, clones)
    assert there.total.item() == pytest.approx(back.total.item(), abs=1e-12)


def test_registry_reads_the_options():
    objective = registry.build("loss", "dcl", {"weighted": "true", "sigma": "0.3", "temperature": "fixed", "tau": "0.1"})
    assert (objective.sigma, objective.temperature.tau) == (0.3, 0.1)
    assert objective.param_groups(0.1, 0.1) == []
    assert [group["name"] for group in build().param_groups(0.1, 0.1)] == ["temperature"]


def test_bad_input_is_refused(score):
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(), torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ConfigError, match="sigma=0: expected more than 0"):
        build(weighted=True, sigma=0)
    with pytest.raises(ConfigError, match="sigma=0.3: without weighted=true"):
        build(sigma=0.3)
    with pytest.raises(ConfigError, match="tau=0"):
        build(tau=0)
