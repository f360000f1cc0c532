import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import row_blocks
from clapkit.objectives.pair_weights import WEIGHABLE, WEIGHABLE_NAMES, WeightedPairs, pair_losses
from clapkit.objectives.row_blocks import weighted_mean

FORMS = [
    ("infonce", {}),
    ("infonce", {"targets": "soft"}),
    ("infonce", {"targets": "ot"}),
    ("siglip", {}),
    ("reweighted", {"sides": "uni"}),
    ("reweighted", {"base": "siglip"}),
    ("svr", {"radius": "ratio"}),
    ("svr", {"radius": "ratio", "sides": "uni"}),
    ("svr", {"radius": "ratio", "base": "siglip"}),
]
forms = pytest.mark.parametrize(("name", "options"), FORMS, ids=str)
WEIGHTS = torch.tensor([0.3, 1.0, 0.1, 0.9, 0.5, 0.7], dtype=torch.float64)


class Given(WeightedPairs):
    """Weights that are given; remembers what it is told."""

    def __init__(self, wrapped=None, weights=None):
        super().__init__(wrapped)
        self.weights, self.told = weights, []

    def weigh(self, audio, text, positives, index, progress):
        assert not torch.is_grad_enabled()
        assert audio.dtype in (torch.float32, torch.float64)
        return self.weights, {"seen": torch.tensor(7)}, index.tolist()

    def remember(self, noted):
        self.told.append(noted)


def call(objective, pairs, positives, **more):
    audio, text = (x.clone().requires_grad_() for x in pairs)
    output = objective(audio, text, positives, torch.arange(len(audio)), 0.0, **more)
    output.total.backward()
    return output, audio.grad, text.grad


def test_a_weighted_mean_is_divided_by_the_number_of_rows():
    # (0.5 * 2 + 1 * 4) / 2, not divided by 1.5: a light row makes the others no heavier.
    assert weighted_mean(torch.tensor([2.0, 4.0]), torch.tensor([0.5, 1.0])).item() == 2.5
    assert weighted_mean(torch.tensor([2.0, 4.0]), None).item() == 3.0


@forms
def test_weights_of_one_change_nothing(make_pairs, clones, name, options):
    objective = registry.build("loss", name, options)
    plain = call(objective, make_pairs(), clones)
    ones = call(objective, make_pairs(), clones, weights=torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(ones[0].total, plain[0].total, rtol=1e-12, atol=0)
    torch.testing.assert_close(ones[1:], plain[1:], rtol=1e-9, atol=1e-12)


@forms
def test_half_the_weight_is_half_the_loss(make_pairs, clones, name, options):
    objective = registry.build("loss", name, options)
    plain = call(objective, make_pairs(), clones)[0]
    half = call(objective, make_pairs(), clones, weights=torch.full((6,), 0.5, dtype=torch.float64))[0]
    assert half.total.item() == pytest.approx(plain.total.item() / 2, abs=1e-12)


@forms
def test_a_pair_counts_as_much_as_its_weight_says(make_pairs, clones, name, options):
    """The loss is linear in the weights: that of all pairs is the sum of those of each."""
    objective = registry.build("loss", name, options)
    whole = call(objective, make_pairs(), clones, weights=WEIGHTS)[0].total
    each = [call(objective, make_pairs(), clones, weights=row)[0].total for row in torch.eye(6, dtype=torch.float64)]
    torch.testing.assert_close(whole, sum(w * part for w, part in zip(WEIGHTS, each, strict=True)))
    assert all(part > 0 for part in each)


def test_a_pair_has_its_weight_in_both_directions():
    # Two orthogonal pairs, tau 1: every row of either direction costs ln(e + 1) - 1 = 0.313262; weights 1 and 0: half of it.
    objective = registry.build("loss", "infonce", {"temperature": "fixed", "tau": 1.0})
    output = call(objective, (torch.eye(2), torch.eye(2)), torch.eye(2, dtype=torch.bool), weights=torch.tensor([1.0, 0.0]))[0]
    assert output.terms == pytest.approx({"t2a": 0.156631, "a2t": 0.156631}, abs=1e-6)


def test_an_entry_of_a_sigmoid_has_the_mean_weight_of_its_two_sides(make_pairs):
    audio, text = make_pairs()
    objective = registry.build("loss", "siglip", {"temperature": "fixed", "bias_init": -1.0})
    found = call(objective, (audio, text), torch.eye(6, dtype=torch.bool), weights=WEIGHTS)[0].total.item()
    expected = 0.0
    for i in range(6):
        for j in range(6):
            logit = (text[i] @ audio[j]).item() / 0.1 - 1.0
            sign = 1 if i == j else -1
            expected += (WEIGHTS[i] + WEIGHTS[j]).item() / 2 * math.log(1 + math.exp(-sign * logit)) / 6
    assert found == pytest.approx(expected, abs=1e-9)


IN_BLOCKS = [form for form in FORMS if form[1].get("targets") != "ot"]


@pytest.mark.parametrize(("name", "options"), IN_BLOCKS, ids=str)
def test_weights_hold_in_blocks_of_rows(make_pairs, monkeypatch, name, options):
    objective = registry.build("loss", name, options)
    positives = torch.eye(11, dtype=torch.bool)
    positives[0, 9] = positives[9, 0] = True
    weights = torch.linspace(0.1, 1.0, 11, dtype=torch.float64)
    whole = call(objective, make_pairs(11, 5), positives, weights=weights)
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 7)
    blocks = call(objective, make_pairs(11, 5), positives, weights=weights)
    assert blocks[0].total.item() == pytest.approx(whole[0].total.item(), abs=1e-12)
    torch.testing.assert_close(blocks[1:], whole[1:], rtol=1e-10, atol=1e-12)


# How surprising a pair is


def test_losses_of_pairs_are_the_rows_of_infonce(make_pairs, clones):
    audio, text = make_pairs()
    objective = registry.build("loss", "infonce", {"temperature": "fixed", "tau": 0.1})
    losses = pair_losses(audio, text, clones, 10.0)
    for row, weights in enumerate(torch.eye(6, dtype=torch.float64)):
        alone = call(objective, (audio, text), clones, weights=weights)[0].total  # a sixth of the row
        assert losses[row].item() == pytest.approx(6 * alone.item(), abs=1e-12)


def test_losses_of_pairs_are_the_same_in_blocks_and_have_no_gradient(make_pairs, monkeypatch):
    audio, text = (rows.requires_grad_() for rows in make_pairs(11, 5))
    positives = torch.eye(11, dtype=torch.bool)
    positives[0, 9] = positives[9, 0] = True
    scale = torch.linspace(5, 10, 11, dtype=torch.float64)[:, None]
    whole = pair_losses(audio, text, positives, scale)
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 7)
    torch.testing.assert_close(pair_losses(audio, text, positives, scale), whole, rtol=1e-12, atol=0)
    assert not whole.requires_grad


# The wrapper


def test_the_default_is_infonce():
    assert isinstance(Given().wrapped, WEIGHABLE[0])


@pytest.mark.parametrize("name", WEIGHABLE_NAMES)
def test_a_wrapped_loss_gets_the_weights_and_keeps_its_numbers(make_pairs, clones, name):
    wrapped = registry.build("loss", name, {"batch_size": 6} if name == "svr" else {})
    expected = call(wrapped, make_pairs(), clones, weights=WEIGHTS)
    found = call(Given(wrapped, WEIGHTS), make_pairs(), clones)
    assert torch.equal(found[0].total, expected[0].total)
    assert found[0].terms == expected[0].terms
    assert found[0].stats == expected[0].stats | {"seen": 7.0}
    groups = Given(wrapped).param_groups(0.1, 0.2)
    assert [group["name"] for group in groups] == [group["name"] for group in wrapped.param_groups(0.1, 0.2)]


@pytest.mark.parametrize("name", ["dcl", "decoupled", "triplet"])
def test_a_loss_that_takes_no_weights_is_refused(name):
    with pytest.raises(ConfigError, match="takes no weights of pairs; expected one of infonce, siglip, svr, reweighted"):
        Given(registry.build("loss", name))


def test_what_was_seen_is_remembered_once_after_the_step(make_pairs, score):
    objective = Given()
    objective.after_step()
    assert objective.told == []
    score(objective, *make_pairs(4))
    score(objective, *make_pairs(2))
    assert objective.told == []
    objective.after_step()
    assert objective.told == [[[0, 1, 2, 3], [0, 1]]]
    objective.after_step()
    assert len(objective.told) == 1


def test_limits_of_the_wrapped_loss_are_kept():
    objective = Given()
    with torch.no_grad():
        objective.temperature.log_scale.fill_(9.0)
    objective.after_step()
    assert objective.temperature.log_scale.item() == pytest.approx(math.log(100))


def test_a_single_pair_is_refused(make_pairs, score):
    with pytest.raises(ShapeError, match="at least 2"):
        score(Given(), *make_pairs(1))
