import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import infonce, row_blocks
from clapkit.objectives.transport import Rectification, make_rectification, transport_plan

SIX = torch.eye(6, dtype=torch.bool)


def random_similarity(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(size, size, generator=generator, dtype=torch.float64) - 1


def naive_plan(similarity, eps):
    """Sinkhorn entry by entry, without logarithms."""
    size = len(similarity)
    plan = [[math.exp(similarity[i, j].item() / eps) for j in range(size)] for i in range(size)]
    for _ in range(2000):
        plan = [[value / sum(row) for value in row] for row in plan]
        sums = [sum(plan[i][j] for i in range(size)) for j in range(size)]
        plan = [[plan[i][j] / sums[j] for j in range(size)] for i in range(size)]
    return torch.tensor(plan, dtype=torch.float64)


def test_two_rows_by_hand():
    # A doubly stochastic [[p, q], [q, p]] with p^2 / q^2 = e^((1 + 1 - 0 - 0) / 1): p / q = e, p = e / (1 + e) = 0.731059.
    plan = transport_plan(torch.eye(2, dtype=torch.float64), eps=1.0)
    assert plan.flatten().tolist() == pytest.approx([0.731059, 0.268941, 0.268941, 0.731059], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_is_that_of_the_loop(seed):
    similarity = random_similarity(seed=seed)
    torch.testing.assert_close(transport_plan(similarity, eps=0.5), naive_plan(similarity, 0.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("eps", "left"), [(1.0, 1e-6), (0.2, 1e-6), (0.05, 2e-2)])  # a sharp plan takes longer to settle
def test_rows_and_columns_of_the_plan_sum_to_one(make_pairs, eps, left):
    audio, text = make_pairs(32, 16)
    plan = transport_plan(text @ audio.T, eps=eps)
    ones = torch.ones(32, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(dim=1), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(plan.sum(dim=0), ones, rtol=0, atol=left)
    assert (plan >= 0).all()


def test_pairs_far_ahead_of_all_others_keep_their_mass():
    torch.testing.assert_close(transport_plan(2 * torch.eye(5), eps=0.05), torch.eye(5))


def test_two_identical_pairs_share_their_mass_equally():
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[0, 1] = similarity[1, 0] = 1.0
    plan = transport_plan(similarity, eps=0.02)
    torch.testing.assert_close(plan[:2, :2], torch.full((2, 2), 0.5, dtype=torch.float64), rtol=0, atol=1e-9)


def test_adding_a_constant_to_a_row_or_column_does_not_move_mass():
    similarity = random_similarity()
    shifted = similarity + torch.arange(6)[:, None] * 0.1 - torch.arange(6)[None, :] * 0.2
    torch.testing.assert_close(transport_plan(shifted, eps=0.5), transport_plan(similarity, eps=0.5), rtol=0, atol=1e-6)


def test_cosines_far_below_the_range_of_exponentials_do_not_overflow():
    plan = transport_plan(random_similarity(seed=3).float(), eps=1e-4)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("positives", [SIX, torch.ones_like(SIX), torch.zeros_like(SIX)], ids=["pairs", "full", "empty"])
def test_rectified_targets_sum_to_one_even_where_the_plan_does_not(positives):
    rough = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = Rectification(0.3, 0.05).targets(positives, rough)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6, dtype=torch.float64))
    assert (targets > 0).all()


def test_further_positives_share_what_is_not_moved(clones):
    plan = torch.eye(6, dtype=torch.float64)
    # Row 1 has positives 1, 2 and 5: 0.6 / 3 each, and 0.4 from the plan for its own partner.
    assert Rectification(0.4, 0.05).targets(clones, plan)[1].tolist() == pytest.approx([0, 0.6, 0.2, 0, 0, 0.2])


def test_the_loss_is_that_of_the_loop(make_pairs, score):
    audio, text = make_pairs()
    similarity = text @ audio.T
    targets = 0.6 * torch.eye(6, dtype=torch.float64) + 0.4 * naive_plan(similarity, 0.5)
    expected = 0.0
    for matrix, wanted in ((similarity, targets), (similarity.T, targets.T)):
        for i in range(6):
            logits = [matrix[i, j].item() / 0.07 for j in range(6)]
            log_sum = math.log(sum(math.exp(logit) for logit in logits))
            expected += sum(wanted[i, j].item() * (log_sum - logits[j]) for j in range(6)) / 12
    found = score(infonce.build(temperature="fixed", targets="ot", ot_share=0.4, ot_eps=0.5), audio, text)
    assert found.total.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["infonce", "svr", "reweighted"])
def test_a_share_of_zero_leaves_the_loss_alone(make_pairs, score, clones, name):
    audio, text = make_pairs()
    radius = {"radius": "ratio"} if name == "svr" else {}
    for positives, policy in ((SIX, "ignore"), (clones, "soft")):
        plain = score(registry.build("loss", name, {"targets": policy, **radius}), audio, text, positives)
        none = score(registry.build("loss", name, {"targets": "ot", "ot_share": 0.0, **radius}), audio, text, positives)
        torch.testing.assert_close(none.total, plain.total, rtol=1e-12, atol=0)


def test_a_faulty_negative_is_pushed_less(make_pairs):
    # Clip 1 sounds like clip 0: the push of text 0 away from it is what targets decide.
    audio, text = make_pairs(6, 16)
    audio[1] = audio[0]
    similarity = text @ audio.T
    pushes = []
    for options in ({}, {"targets": "ot"}):
        cosines = similarity.clone().requires_grad_()
        infonce.build(**options).one_direction(cosines, SIX, 1 / 0.07).backward()
        pushes.append(cosines.grad[0, 1].item())
    assert 0 < pushes[0]
    assert pushes[1] < pushes[0]


def test_the_plan_has_no_gradient(make_pairs):
    audio, text = make_pairs()
    objective = infonce.build(targets="ot", ot_share=1.0)
    cosines = (text @ audio.T).requires_grad_()
    plan = objective.plan(cosines)
    assert not plan.requires_grad
    # With constant targets Y the gradient is scale (softmax - Y) / B.
    objective.one_direction(cosines, SIX, 5.0, plan=plan).backward()
    torch.testing.assert_close(cosines.grad, 5.0 * ((5.0 * cosines.detach()).softmax(dim=1) - plan) / 6)


def test_both_directions_and_support_vectors_have_one_plan(make_pairs, monkeypatch, score):
    seen = []

    def counted(similarity, *, eps):
        seen.append(similarity)
        return transport_plan(similarity, eps=eps)

    monkeypatch.setattr(infonce, "transport_plan", counted)
    audio, text = make_pairs()
    score(registry.build("loss", "svr", {"targets": "ot", "radius": "ratio"}), audio, text)
    (similarity,) = seen
    torch.testing.assert_close(similarity, text @ audio.T)


def test_targets_of_support_vectors_are_those_of_their_pairs(make_pairs, score):
    """At radius 0 a support vector is its text: svr with alpha 1 is twice the base."""
    audio, text = make_pairs()
    base = score(infonce.build(targets="ot"), audio, text).total
    svr = registry.build("loss", "svr", {"targets": "ot", "radius": "fixed", "radius_init": 0.0})
    torch.testing.assert_close(score(svr, audio, text).total, 2 * base)


@pytest.mark.parametrize("name", ["infonce", "svr", "reweighted"])
def test_a_batch_in_blocks_is_refused(make_pairs, score, monkeypatch, name):
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 5)
    with pytest.raises(ShapeError, match="targets=ot: a batch of 6 pairs is scored in blocks"):
        score(registry.build("loss", name, {"targets": "ot"}), *make_pairs())


def test_without_ot_there_is_nothing_to_rectify():
    assert make_rectification("soft", None, None) is None
    assert make_rectification("ot", None, 0.2) == Rectification(0.3, 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ot_share": 0.2}, "ot_share=0.2: targets=ignore is not rectified"),
        ({"ot_eps": 0.2, "targets": "soft"}, "ot_eps=0.2: targets=soft"),
        ({"targets": "ot", "ot_share": 1.1}, "ot_share=1.1: expected a share"),
        ({"targets": "ot", "ot_eps": 0.0}, "ot_eps=0.0: expected more than 0"),
        ({"targets": "optimal"}, "targets=optimal: expected one of ignore, soft, ot"),
    ],
)
@pytest.mark.parametrize("name", ["infonce", "svr", "reweighted"])
def test_options_without_meaning_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        registry.build("loss", name, options)


@pytest.mark.parametrize("name", ["svr", "reweighted"])
def test_a_sigmoid_has_no_targets_to_move(name):
    with pytest.raises(ConfigError, match="targets=ot: base=siglip"):
        registry.build("loss", name, {"base": "siglip", "targets": "ot"})
    with pytest.raises(ConfigError, match="ot_eps=0.1: targets=ignore is not rectified"):
        registry.build("loss", name, {"base": "siglip", "ot_eps": 0.1})
    with pytest.raises(ConfigError, match="targets=ot: expected one of ignore, soft"):
        registry.build("loss", "siglip", {"targets": "ot"})
