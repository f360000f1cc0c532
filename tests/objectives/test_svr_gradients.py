"""The exact gradients of SVR, as derived in docs/objectives.md, against automatic differentiation in float64."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from clapkit.objectives import infonce, siglip
from clapkit.objectives.svr import build

EPSILON = 1e-4
TAU, ALPHA, RADIUS = 0.1, 0.8, 0.4
ROWS = torch.arange(6)


def make(**options):
    plain = {"radius": "fixed", "radius_init": RADIUS, "sides": "uni", "alpha": ALPHA, "tau": TAU}
    objective = build(temperature="fixed", **{**plain, **options}).double()
    if options.get("radius") == "static":  # its start value was rounded to float32
        torch.nn.init.constant_(objective.radius["t2a"].radius, options.get("radius_init", RADIUS))
    return objective


def geometry(audio, text):
    """D [B] and u [B, D] of the text side."""
    distance = ((audio - text).square().sum(dim=1) + EPSILON**2).sqrt()
    return distance, (audio - text) / distance[:, None]


def split(vectors, u):
    """Parts of the rows along and across u."""
    along = (vectors * u).sum(dim=1, keepdim=True) * u
    return along, vectors - along


def anchor_gradients(anchors, audio):
    """(1 / tau) [ sum_j P_ij a_j - a_i ]: gradient of the un-averaged softmax loss on its anchors."""
    probability = (anchors @ audio.T / TAU).softmax(dim=1)
    return (probability @ audio - audio) / TAU, probability


def support_gradient(score, objective, plain, audio, text):
    """Gradient of sum_i L_svr,i on the texts: what SVR adds to its base, freed of alpha, 1/2 and 1/B."""
    text = text.clone().requires_grad_()
    added = score(objective, audio, text).total - score(plain, audio, text).total
    (gradient,) = torch.autograd.grad(added, text)
    return gradient * 2 * len(text) / ALPHA


def test_text_gradient_is_exact_and_the_formula_in_circulation_is_not(make_pairs, score):
    # grad_t = go_par + go_perp + alpha gs_par + alpha (1 - rho) gs_perp, audio held fixed.
    audio, text = make_pairs()
    anchor = text.clone().requires_grad_()
    audio_to_text = cross_entropy(audio @ anchor.T / TAU, ROWS)
    loss = score(make(), audio, anchor).total - audio_to_text / 2  # (L_t2a + alpha L_svr) / 2
    (gradient,) = torch.autograd.grad(loss, anchor)
    gradient = gradient * 2 * 6  # un-averaged

    distance, u = geometry(audio, text)
    rho = (RADIUS / distance)[:, None]
    base, base_probability = anchor_gradients(text, audio)
    support, support_probability = anchor_gradients(text + rho * (audio - text), audio)
    along, across = split(support, u)
    exact = base + ALPHA * along + ALPHA * (1 - rho) * across
    torch.testing.assert_close(gradient, exact, atol=1e-10, rtol=0)

    # In circulation: the factor (1 - rho) on the sideways push of base and support term together.
    base_along, base_across = split(base, u)
    secondary = base_along + ALPHA * along + (1 - rho) * (base_across + ALPHA * across)
    assert (gradient - secondary).norm() > 0.01 * gradient.norm()

    # Per negative j the sideways coefficient is (P_ij + alpha (1 - rho_i) Psup_ij) / tau.
    push = (base_probability + ALPHA * (1 - rho) * support_probability) / TAU
    push = push - torch.diag(push.diagonal())
    own = split(gradient, u)[1] - split(push @ audio, u)[1]
    # What is left sideways comes from the own clip: a_i across u, once plainly and once scaled by (1 - rho).
    base_error, support_error = (1 - p.diagonal()[:, None] for p in (base_probability, support_probability))
    weight = (base_error + ALPHA * (1 - rho) * support_error) / TAU
    # 1e-6: u is shorter than 1 by EPSILON squared / 2, so that splitting twice is not splitting once.
    torch.testing.assert_close(own, -weight * split(audio, u)[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("radius", ["fixed", "static", "ratio", "adaptive"])
def test_every_radius_scales_only_the_sideways_part(make_pairs, score, radius):
    audio, text = make_pairs()
    objective = make(radius=radius, batch_size=6)
    if radius == "adaptive":
        torch.manual_seed(0)
        torch.nn.init.normal_(objective.radius["t2a"].predictor[-1].weight, std=0.1)
    plain = infonce.build(temperature="fixed", tau=TAU)
    gradient = support_gradient(score, objective, plain, audio, text)

    distance, u = geometry(audio, text)
    model = objective.radius["t2a"]
    rho = (model(text @ audio.T, torch.eye(6, dtype=torch.bool), distance) / distance).detach()[:, None]
    along, across = split(anchor_gradients(text + rho * (audio - text), audio)[0], u)
    torch.testing.assert_close(gradient, along + (1 - rho) * across, atol=1e-10, rtol=0)


def test_the_push_taken_from_the_text_is_handed_to_its_clip(make_pairs, score):
    # The audio gets rho gs_perp through the anchors, beside the gradient as a candidate.
    audio, text = make_pairs()
    moving = audio.clone().requires_grad_()
    plain = infonce.build(temperature="fixed", tau=TAU)
    added = score(make(), moving, text).total - score(plain, moving, text).total
    gradient = torch.autograd.grad(added, moving)[0] * 2 * 6 / ALPHA

    distance, u = geometry(audio, text)
    rho = (RADIUS / distance)[:, None]
    support = text + rho * (audio - text)
    by_anchor, probability = anchor_gradients(support, audio)
    as_candidate = (probability - torch.eye(6)).T @ support / TAU
    torch.testing.assert_close(gradient, as_candidate + rho * split(by_anchor, u)[1], atol=1e-10, rtol=0)

    detached = make(detach_pull_target=True)
    added = score(detached, moving, text).total - score(plain, moving, text).total
    gradient = torch.autograd.grad(added, moving)[0] * 2 * 6 / ALPHA
    torch.testing.assert_close(gradient, as_candidate, atol=1e-10, rtol=0)


def test_detaching_the_pull_target_leaves_the_loss_alone(make_pairs, score):
    totals = [score(make(detach_pull_target=flag, sides="bi"), *make_pairs()).total for flag in (False, True)]
    assert torch.equal(*totals)


def test_radius_of_the_distance_leaves_only_the_pull_direction(make_pairs, score):
    audio, text = make_pairs()
    plain = infonce.build(temperature="fixed", tau=TAU)
    objective = make(radius="ratio", radius_init=1.0)
    gradient = support_gradient(score, objective, plain, audio, text)
    along, across = split(gradient, normalize(audio - text, dim=1))
    assert across.abs().max() < 1e-12
    assert along.norm() > 0.1


def test_siglip_anchor_gradient_obeys_the_same_rule(make_pairs, score):
    # gs_i = kappa sum_j c_ij a_j with c_ii = sigma(z_ii) - 1 and c_ij = sigma(z_ij).
    audio, text = make_pairs()
    plain = siglip.build(temperature="fixed", tau=TAU).double()
    gradient = support_gradient(score, make(base="siglip"), plain, audio, text)

    distance, u = geometry(audio, text)
    rho = (RADIUS / distance)[:, None]
    logits = (text + rho * (audio - text)) @ audio.T / TAU - math.log(5)
    coefficient = logits.sigmoid() - torch.eye(6, dtype=torch.float64)
    along, across = split(coefficient @ audio / TAU, u)
    torch.testing.assert_close(gradient, along + (1 - rho) * across, atol=1e-10, rtol=0)


def test_radius_gradient_has_the_closed_form(make_pairs, score):
    # dL_svr,i / dR = (1 / (tau D_i)) sum_j Psup_ij [ (g_ij - s_ij) - (1 - s_ii) ] = gs_i . u_i
    audio, text = make_pairs()
    objective = make(radius="static")
    score(objective, audio, text).total.backward()
    distance, u = geometry(audio, text)
    rho = (RADIUS / distance)[:, None]
    by_anchor, probability = anchor_gradients(text + rho * (audio - text), audio)
    cross, intra = text @ audio.T, audio @ audio.T
    bracket = (intra - cross) - (1 - cross.diagonal())[:, None]
    closed = (probability * bracket).sum(dim=1) / (TAU * distance)
    torch.testing.assert_close(closed, (by_anchor * u).sum(dim=1), atol=1e-10, rtol=0)
    measured = objective.radius["t2a"].radius.grad
    assert measured.item() == pytest.approx(ALPHA * closed.mean().item() / 2, abs=1e-10)
    assert measured.abs() > 1e-3


def test_on_the_sphere_the_sideways_scaling_is_exact_and_the_pull_changes_as_derived(make_pairs, score):
    # e: unit tangent at t towards a. Across e: (1 - rho) of g's tangent part. Along e:
    # (1 - rho sin^2(theta / 2)) (g.e) - (rho / 2) sin(theta) (g.t).
    audio, text = make_pairs()
    raw = text.clone().requires_grad_()
    unit = normalize(raw, dim=1)
    plain = infonce.build(temperature="fixed", tau=TAU)
    added = score(make(), audio, unit).total - score(plain, audio, unit).total
    gradient = torch.autograd.grad(added, raw)[0] * 2 * 6 / ALPHA

    distance, _ = geometry(audio, text)
    rho = RADIUS / distance
    g = anchor_gradients(text + rho[:, None] * (audio - text), audio)[0]
    cosine = (audio * text).sum(dim=1)
    theta = cosine.acos()
    e = normalize(audio - cosine[:, None] * text, dim=1)
    g_e, g_t = (g * e).sum(dim=1), (g * text).sum(dim=1)
    along = (1 - rho * (theta / 2).sin().square()) * g_e - rho / 2 * theta.sin() * g_t
    across = (1 - rho)[:, None] * (g - g_e[:, None] * e - g_t[:, None] * text)
    # 1e-6: the smoothing of D, EPSILON squared = 1e-8, times gradients of order 10.
    torch.testing.assert_close((gradient * e).sum(dim=1), along, atol=1e-6, rtol=0)
    torch.testing.assert_close(split(gradient, e)[1], across, atol=1e-6, rtol=0)


def test_penalty_pulls_on_the_radius_and_not_on_the_encoders(make_pairs, score):
    audio, text = (rows.requires_grad_() for rows in make_pairs())
    gradients = {}
    for beta in (0.0, 0.5):
        objective = make(radius="static", constrain_static=True, beta=beta, radius_init=3.0)
        total = score(objective, audio, text).total
        gradients[beta] = torch.autograd.grad(total, (audio, text, objective.radius["t2a"].radius))
    assert torch.equal(gradients[0.0][0], gradients[0.5][0])
    assert torch.equal(gradients[0.0][1], gradients[0.5][1])
    # Every R = 3 is above every D <= 2: the mean slope is 1.
    assert (gradients[0.5][2] - gradients[0.0][2]).item() == pytest.approx(0.5)


def test_predictor_learns_and_sends_nothing_to_the_encoders(make_pairs, score):
    # With alpha tiny and beta large nearly all that the predictor gets comes from the penalty.
    audio, text = (rows.requires_grad_() for rows in make_pairs())
    gradients = {}
    for beta in (0.0, 1e3):
        torch.manual_seed(0)
        objective = make(radius="adaptive", batch_size=6, beta=beta, radius_init=3.0, sides="bi")
        torch.nn.init.normal_(objective.radius["both"].predictor[-1].weight, std=0.1)
        total = score(objective, audio, text).total
        gradients[beta] = torch.autograd.grad(total, (audio, text, objective.radius["both"].predictor[0].weight))
    assert torch.equal(gradients[0.0][0], gradients[1e3][0])
    assert torch.equal(gradients[0.0][1], gradients[1e3][1])
    assert (gradients[1e3][2] - gradients[0.0][2]).abs().max() > 1
