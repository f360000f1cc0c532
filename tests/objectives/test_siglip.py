import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.siglip import build


def loop_oracle(audio, text, positives, *, tau, bias, soft):
    """SigLIP entry by entry."""
    batch_size, total = len(audio), 0.0
    for i in range(batch_size):
        for j in range(batch_size):
            logit = (text[i] @ audio[j]).item() / tau + bias
            if i == j or (soft and positives[i, j]):
                total += math.log1p(math.exp(-logit))
            elif not positives[i, j]:
                total += math.log1p(math.exp(logit))
    return total / batch_size


def test_two_orthogonal_pairs_by_hand(score):
    # tau = 1, b = 0: two pairs cost ln(1 + 1/e) = 0.31326 each, two negatives ln 2 = 0.69315 each; the sum over 2.
    rows = torch.eye(2)
    output = score(build(temperature="fixed", tau=1.0, bias_init=0.0), rows, rows)
    assert output.total.item() == pytest.approx(0.313262 + 0.693147, abs=1e-5)
    assert output.terms == pytest.approx({"siglip": 1.006409}, abs=1e-5)
    assert output.stats == pytest.approx({"temperature": 1.0, "bias": 0.0, "positive_cosine": 1.0})


@pytest.mark.parametrize("targets", ["ignore", "soft"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, score, clones, targets, seed):
    audio, text = make_pairs(seed=seed)
    output = score(build(temperature="fixed", bias_init=-2.0, targets=targets), audio, text, clones)
    expected = loop_oracle(audio, text, clones, tau=0.1, bias=-2.0, soft=targets == "soft")
    assert output.total.item() == pytest.approx(expected, abs=1e-10)


def test_softplus_form_equals_logsigmoid_form(make_pairs, score):
    audio, text = make_pairs()
    sign = 2 * torch.eye(6, dtype=torch.float64) - 1
    expected = -logsigmoid(sign * (text @ audio.T / 0.1 - 10)).sum() / 6
    total = score(build(temperature="fixed", bias_init=-10.0), audio, text).total
    torch.testing.assert_close(total, expected, atol=1e-10, rtol=0)


def test_equals_the_sum_of_chunks(make_pairs):
    audio, text = make_pairs()
    objective = build(temperature="fixed", bias_init=-2.0)
    similarity, eye = text @ audio.T, torch.eye(6, dtype=torch.bool)
    whole = objective.one_direction(similarity, eye, 10.0)
    own = sum(objective.one_direction(similarity[k : k + 2, k : k + 2], eye[:2, :2], 10.0) * 2 for k in (0, 2, 4))
    logits = similarity / 0.1 - 2.0
    others = sum(torch.log1p(logits[i, j].exp()) for i in range(6) for j in range(6) if i // 2 != j // 2)
    torch.testing.assert_close(whole, (own + others) / 6, atol=1e-10, rtol=0)


def test_gradient_is_the_sigmoid_error():
    # dL/ds_ij = (sigma(z_ij) - [i = j]) / (N tau)
    similarity = torch.rand(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    objective = build(bias_init=-1.0)
    objective.one_direction(similarity, torch.eye(5, dtype=torch.bool), 1 / 0.2).backward()
    error = (similarity.detach() / 0.2 - 1.0).sigmoid() - torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(similarity.grad, error / (5 * 0.2), atol=1e-10, rtol=0)


def test_order_of_the_batch_and_of_the_towers_does_not_matter(make_pairs, score, clones):
    audio, text = make_pairs()
    objective, order = build(), torch.tensor([3, 5, 0, 1, 4, 2])
    total = score(objective, audio, text, clones).total
    shuffled = score(objective, audio[order], text[order], clones[order][:, order]).total
    swapped = score(objective, text, audio, clones).total
    torch.testing.assert_close(shuffled, total, atol=1e-12, rtol=0)
    torch.testing.assert_close(swapped, total, atol=1e-12, rtol=0)


def test_an_ignored_pair_has_no_influence_at_all():
    objective = build(temperature="fixed", bias_init=-1.0)
    positives = torch.tensor([[True, True], [False, True]])
    similarity = torch.tensor([[0.4, -0.9], [0.1, 0.3]], dtype=torch.float64)
    changed = torch.tensor([[0.4, 0.9], [0.1, 0.3]], dtype=torch.float64)
    assert objective.one_direction(similarity, positives, 10.0) == objective.one_direction(changed, positives, 10.0)


def test_auto_bias_starts_at_the_log_odds_of_a_pair(make_pairs, score):
    # In a batch of 6 one of 6 candidates is the pair: ln(1 / 5).
    assert score(build(), *make_pairs()).stats["bias"] == pytest.approx(-math.log(5))


def test_auto_bias_is_the_same_after_a_restart(make_pairs, score):
    audio, text = make_pairs(dtype=torch.float32)
    objective = build()
    optimizer = torch.optim.Adam(objective.param_groups(0.1, 0.0))
    score(objective, audio, text).total.backward()
    optimizer.step()
    restarted = build()
    restarted.load_state_dict(objective.state_dict())
    assert score(restarted, audio, text).total == score(objective, audio, text).total
    assert objective.bias.item() != 0


def test_scale_and_bias_learn_without_decay(make_pairs, score):
    objective = build()
    score(objective, *make_pairs()).total.backward()
    groups = objective.param_groups(0.1, 0.3)
    assert [group["name"] for group in groups] == ["temperature", "bias"]
    assert all(group["weight_decay"] == 0 and group["params"][0].grad.abs() > 0 for group in groups)


def test_scale_is_clamped():
    objective = build()
    with torch.no_grad():
        objective.temperature.log_scale.fill_(9.0)
    objective.after_step()
    assert objective.temperature.scale(torch.arange(2), 0.0).item() == pytest.approx(100, rel=1e-5)


def test_registry_reads_the_options():
    assert registry.build("loss", "siglip", {"bias_init": "-10"}).bias.item() == -10
    assert registry.build("loss", "siglip", {"bias_init": "auto"}).bias.item() == 0


def test_bad_options_are_refused(score):
    for bias_init in ("prior", math.nan):
        with pytest.raises(ConfigError, match="expected auto or a finite number"):
            build(bias_init=bias_init)
    with pytest.raises(ConfigError, match="targets=hard"):
        build(targets="hard")
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(), torch.ones(1, 2), torch.ones(1, 2))
