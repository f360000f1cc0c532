import copy
import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.dcl import DCL
from clapkit.objectives.sogclr import build
from clapkit.objectives.temperature import Temperature

EYE = torch.eye(6, dtype=torch.bool)


def make(**options):
    return build(**{"num_rows": 6} | options).double()


def estimates(audio, text, positives, tau):
    """g of every text and every clip, one exponential at a time: two lists."""
    both = []
    for anchors, candidates in ((text, audio), (audio, text)):
        values = []
        for i in range(len(audio)):
            own = (anchors[i] @ candidates[i]).item()
            others = [j for j in range(len(audio)) if j != i and not positives[i, j]]
            values.append(sum(math.exp(((anchors[i] @ candidates[j]).item() - own) / tau) for j in others) / len(others))
        both.append(values)
    return both


def averaged(before, seen):
    return [[0.2 * u + 0.8 * g for u, g in zip(*sides, strict=True)] for sides in zip(before, seen, strict=True)]


def mean_loss(normalisers, tau):
    return sum(tau * math.log(u) for side in normalisers for u in side) / 2 / len(normalisers[0])


def test_the_memory_is_averaged_over_the_visits_of_a_row(make_pairs, score, clones):
    objective, expected = make(gamma=0.8, tau=0.2), None
    for seed in range(3):
        audio, text = make_pairs(seed=seed)
        seen = estimates(audio, text, clones, 0.2)
        expected = seen if expected is None else averaged(expected, seen)
        output = score(objective, audio, text, clones)
        assert output.total.item() == pytest.approx(mean_loss(expected, 0.2), abs=1e-9)
        assert output.total.item() == pytest.approx((output.terms["t2a"] + output.terms["a2t"]) / 2)
        objective.after_step()
        torch.testing.assert_close(objective.log_normaliser.exp(), torch.tensor(expected, dtype=torch.float64))


def gradient_of(objective, make_pairs, score, positives=EYE, seed=0):
    audio, text = (x.requires_grad_() for x in make_pairs(seed=seed))
    score(objective, audio, text, positives).total.backward()
    return audio.grad, text.grad


def test_without_memory_the_gradient_is_that_of_the_log_of_a_mean_exponential(make_pairs, score, clones):
    ours = gradient_of(make(gamma=1.0, tau=0.2), make_pairs, score, clones)
    audio, text = (x.requires_grad_() for x in make_pairs())
    total = 0
    for similarity in (text @ audio.T, audio @ text.T):
        for i in range(6):
            negatives = similarity[i][~clones[i]] - similarity[i, i]
            total = total + 0.2 * (negatives / 0.2).exp().mean().log() / 6 / 2
    total.backward()
    torch.testing.assert_close(ours, (audio.grad, text.grad), rtol=1e-9, atol=1e-12)


def test_without_memory_it_is_dcl_times_its_temperature(make_pairs, score):
    ours = gradient_of(make(gamma=1.0, tau=0.2), make_pairs, score)
    theirs = gradient_of(DCL(Temperature(0.2, "fixed"), None), make_pairs, score)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, 0.2 * other, rtol=1e-9, atol=1e-12)


def test_a_row_that_was_not_seen_has_the_normaliser_of_its_batch(make_pairs, score):
    first = gradient_of(make(gamma=0.3), make_pairs, score)
    torch.testing.assert_close(first, gradient_of(make(gamma=1.0), make_pairs, score), rtol=1e-12, atol=0)


def test_a_larger_normaliser_from_before_makes_a_smaller_gradient(make_pairs, score):
    # u = (1 - gamma) 9 g + gamma g = (9 - 8 gamma) g: gradients are 1 / (9 - 8 * 0.5) = 1 / 5 of those without memory.
    audio, text = make_pairs()
    objective = make(gamma=0.5, tau=0.2)
    objective.log_normaliser += (
        torch.tensor(estimates(audio, text, EYE, 0.2), dtype=torch.float64).log() + math.log(9) + math.inf
    )
    objective.log_normaliser.copy_(torch.tensor(estimates(audio, text, EYE, 0.2), dtype=torch.float64).log() + math.log(9))
    with_memory = gradient_of(objective, make_pairs, score)
    without = gradient_of(make(gamma=1.0, tau=0.2), make_pairs, score)
    for mine, other in zip(with_memory, without, strict=True):
        torch.testing.assert_close(mine, other / 5, rtol=1e-6, atol=0)


def test_the_pair_itself_is_not_in_the_mean_over_negatives(score):
    # All cosines 0.3: every h is 0 and so is log g = log(5 / 5); one negative at h = -1 / 0.2: log((4 + e^-5) / 5).
    audio, text = torch.zeros(6, 7, dtype=torch.float64), torch.zeros(6, 7, dtype=torch.float64)
    audio[:, 0], text[:, 0] = 1.0, 0.3
    text[:, 1] = math.sqrt(1 - 0.09)
    objective = make(tau=0.2)
    assert score(objective, audio, text).total.item() == pytest.approx(0, abs=1e-12)
    objective = make(tau=0.2)
    similarity = (text @ audio.T).requires_grad_()
    with torch.no_grad():
        similarity[:, 0] -= 1
    objective.one_direction(similarity, EYE, torch.arange(6), side=0)
    objective.after_step()
    # Row 1 has the pair at 0.3 and five negatives, of which clip 0 is 1 lower; with the pair: (5 + e^-5) / 6.
    assert objective.log_normaliser[0, 1].item() == pytest.approx(math.log((4 + math.exp(-5)) / 5), abs=1e-9)


def test_nothing_overflows_at_the_lowest_temperature(score):
    # Pairs that are opposite and negatives that coincide: h = 2, exp(2 / 0.001) is beyond float64.
    audio = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    objective = build(num_rows=2, tau=0.001)
    for _ in range(3):
        leaf = audio.clone().requires_grad_()
        output = score(objective, leaf, -audio)
        output.total.backward()
        objective.after_step()
        assert output.total.item() == pytest.approx(2.0)
        assert leaf.grad.isfinite().all()


def test_scoring_twice_is_scoring_once_and_only_a_step_remembers(make_pairs, score):
    audio, text = make_pairs()
    objective = make(gamma=0.5)
    score(objective, *make_pairs(seed=1))
    objective.after_step()
    before = copy.deepcopy(objective.state_dict())
    values = [score(objective, audio, text).total.item() for _ in range(3)]
    assert values[0] == values[1] == values[2]
    assert all(torch.equal(before[key], value) for key, value in objective.state_dict().items())
    objective.after_step()
    assert not torch.equal(before["log_normaliser"], objective.log_normaliser)


def test_nothing_is_remembered_where_nothing_is_learned(make_pairs, score):
    objective = make()
    with torch.no_grad():
        score(objective, *make_pairs())
    score(objective.eval(), *make_pairs())
    objective.after_step()
    assert (objective.log_normaliser == -math.inf).all()


def test_rows_are_remembered_by_their_number_and_the_captions_of_a_clip_share_one(make_pairs):
    audio, text = make_pairs()
    objective, index = make(num_rows=20, tau=0.5), torch.tensor([3, 3, 8, 8, 15, 15])
    positives = index[:, None] == index[None, :]
    objective(audio, text, positives, index, 0.0)
    objective.after_step()
    seen = torch.tensor(estimates(audio, text, positives, 0.5), dtype=torch.float64).log()
    torch.testing.assert_close(objective.log_normaliser[:, [3, 8, 15]], seen.unflatten(1, (3, 2)).mean(dim=2))
    assert (objective.log_normaliser > -math.inf).sum().item() == 6


def test_a_row_without_negatives_counts_zero_and_keeps_its_memory(make_pairs, score):
    audio, text = (x.requires_grad_() for x in make_pairs())
    objective = make(individual=True)
    score(objective, audio, text)
    objective.after_step()
    before = copy.deepcopy(objective.state_dict())
    output = score(objective, audio, text, torch.ones_like(EYE))
    output.total.backward()
    objective.after_step()
    assert output.total.item() == 0
    assert audio.grad.abs().max() == 0
    assert all(torch.equal(before[key], value) for key, value in objective.state_dict().items())


def test_memory_is_in_the_state_of_the_objective(make_pairs, score):
    objective, restored = make(individual=True, gamma=0.5), make(individual=True, gamma=0.5)
    for seed in range(3):
        score(objective, *make_pairs(seed=seed))
        objective.after_step()
    restored.load_state_dict(objective.state_dict())
    assert set(objective.state_dict()) == {"log_normaliser", "individual.tau", "individual.gradient"}
    for seed in (7, 8):
        ours, theirs = (score(x, *make_pairs(seed=seed)).total.item() for x in (objective, restored))
        assert ours == theirs
        objective.after_step()
        restored.after_step()


def test_individual_temperatures_are_those_of_their_rows_and_sides(make_pairs):
    audio, text = make_pairs()
    objective = make(individual=True, gamma=1.0, rho=0.5, num_rows=9)
    index = torch.tensor([8, 0, 2, 5, 4, 1])
    objective.individual.tau.copy_(0.1 + 0.01 * torch.arange(18, dtype=torch.float64).view(2, 9))
    output = objective(audio, text, EYE, index, 0.0)
    expected = 0.0
    for side, similarity in enumerate((text @ audio.T, audio @ text.T)):
        for i in range(6):
            tau = 0.1 + 0.01 * (9 * side + index[i].item())
            others = [math.exp((similarity[i, j] - similarity[i, i]).item() / tau) for j in range(6) if j != i]
            expected += (tau * math.log(sum(others) / 5) + 0.5 * tau) / 6 / 2
    assert output.total.item() == pytest.approx(expected, abs=1e-9)
    # Clip of row 8 and text of row 0.
    assert output.stats["temperature_max"] == pytest.approx(0.27)
    assert output.stats["temperature_min"] == pytest.approx(0.10)


def test_registry_reads_the_options():
    objective = registry.build("loss", "sogclr", {"individual": "true", "rho": "0.5", "gamma": "0.9", "num_rows": 3})
    assert (objective.individual.rho, objective.gamma, objective.temperature) == (0.5, 0.9, None)
    fixed = registry.build("loss", "sogclr", {"tau": "0.05", "num_rows": 3})
    assert (fixed.individual, fixed.temperature.tau) == (None, 0.05)
    assert fixed.param_groups(0.1, 0.1) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": None}, "sogclr: it keeps a number for every training row"),
        ({"gamma": 0}, "gamma=0: expected a share above 0"),
        ({"gamma": 1.2}, "gamma=1.2: expected a share above 0"),
        ({"tau": 0}, "tau=0: expected a positive temperature"),
        ({"rho": 0.5}, "rho=0.5: there is one temperature for all"),
        ({"tau_lr": 0.5}, "tau_lr=0.5: there is one temperature for all"),
        ({"individual": True, "tau": 0.001}, "tau=0.001: expected 0.01 to 1.0"),
        ({"individual": True, "tau_max": math.inf}, "tau_max=inf: expected a finite"),
        ({"individual": True, "tau_lr": -1}, "tau_lr=-1: expected a step size"),
        ({"individual": True, "tau_momentum": 0}, "tau_momentum=0: expected a share"),
        ({"individual": True, "rho": 6, "batch_size": 24}, r"rho=6: expected 0 to less than 3\.14"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_a_budget_that_no_batch_of_this_size_reaches_is_refused(make_pairs, score):
    with pytest.raises(ConfigError, match=r"rho=2: expected 0 to less than 1\.61"):
        score(make(individual=True, rho=2), *make_pairs())


def test_one_pair_is_refused(score):
    with pytest.raises(ShapeError, match="no negatives"):
        score(make(individual=True, rho=2), torch.ones(1, 2), torch.ones(1, 2))
