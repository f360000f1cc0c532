import math

import pytest
import torch

from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import infonce, siglip, svr
from clapkit.objectives.reweighted import build

FORMS = [(base, sides) for base in ("infonce", "siglip") for sides in ("bi", "uni")]
forms = pytest.mark.parametrize(("base", "sides"), FORMS)


def value_and_gradients(objective, pairs, positives, score):
    audio, text = (x.clone().requires_grad_() for x in pairs)
    output = score(objective, audio, text, positives)
    output.total.backward()
    return [output.total.detach(), audio.grad, text.grad, *(p.grad for p in objective.base.parameters())]


def test_two_pairs_by_hand(score):
    # Texts (x, y), clips (x, x), tau 1. Text to audio: both rows of s are equal, (1, 1) and (0, 0): ln 2 each.
    # Audio to text: both rows are (1, 0): ln(e + 1) - 1 = 0.313262 and ln(e + 1) - 0 = 1.313262, mean 0.813262.
    text, audio = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    t2a, a2t = math.log(2), math.log(math.e + 1) - 0.5
    uni = score(build(sides="uni", alpha=0.5, temperature="fixed", tau=1.0), audio, text)
    assert uni.total.item() == pytest.approx((1.5 * t2a + a2t) / 2, abs=1e-6)
    bi = score(build(sides="bi", alpha=0.5, temperature="fixed", tau=1.0), audio, text)
    assert bi.total.item() == pytest.approx(1.5 * (t2a + a2t) / 2, abs=1e-6)
    assert uni.terms == bi.terms == pytest.approx({"t2a": t2a, "a2t": a2t}, abs=1e-6)


@forms
@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("targets", ["ignore", "soft"])
def test_equals_svr_at_radius_0_in_value_and_gradient(make_pairs, score, clones, base, sides, alpha, targets):
    shared = {"base": base, "sides": sides, "alpha": alpha, "targets": targets}
    control = value_and_gradients(build(**shared), make_pairs(), clones, score)
    fixed = value_and_gradients(svr.build(radius="fixed", radius_init=0.0, **shared), make_pairs(), clones, score)
    for found, expected in zip(control, fixed, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@forms
def test_differs_from_svr_at_another_radius(make_pairs, score, clones, base, sides):
    control = score(build(base=base, sides=sides), *make_pairs(), clones)
    moved = score(svr.build(base=base, sides=sides, radius="fixed", radius_init=0.25), *make_pairs(), clones)
    assert abs(control.total.item() - moved.total.item()) > 1e-3


@forms
def test_alpha_0_is_the_base(make_pairs, score, clones, base, sides):
    plain = {"infonce": infonce, "siglip": siglip}[base].build()
    expected, found = (
        score(objective, *make_pairs(), clones) for objective in (plain, build(base=base, sides=sides, alpha=0.0))
    )
    assert torch.equal(found.total, expected.total)
    assert found.terms == expected.terms
    assert found.stats == expected.stats


def test_both_sides_scale_the_gradient_of_the_base(make_pairs, score, clones):
    plain, weighted = infonce.build(), build(alpha=2.0)
    (audio, text), gradients = make_pairs(), []
    for objective in (plain, weighted):
        probe = audio.clone().requires_grad_()
        score(objective, probe, text, clones).total.backward()
        gradients.append(probe.grad)
    torch.testing.assert_close(gradients[1], 3 * gradients[0], atol=1e-12, rtol=0)


class Warmer(torch.nn.Module):
    """A temperature of 0.1 for even training rows, 0.3 for odd ones, and 0.2 more at the end."""

    def forward(self, index, progress):
        return 0.1 + 0.2 * (index % 2) + 0.2 * progress


@pytest.mark.parametrize("sides", ["bi", "uni"])
def test_a_schedule_reaches_the_base(make_pairs, score, clones, sides):
    audio, text = make_pairs()
    control = score(build(sides=sides, schedule=Warmer()), audio, text, clones, progress=0.5)
    fixed = svr.build(sides=sides, radius="fixed", radius_init=0.0, schedule=Warmer())
    expected = score(fixed, audio, text, clones, progress=0.5)
    assert control.total.item() == pytest.approx(expected.total.item(), abs=1e-6)
    assert control.stats["temperature"] == pytest.approx(0.3)  # half at 0.2, half at 0.4
    constant = score(build(sides=sides, temperature="fixed", tau=0.3), audio, text, clones)
    assert abs(constant.total.item() - control.total.item()) > 1e-3


def test_groups_and_limits_are_those_of_the_base():
    objective = build(base="siglip")
    assert [group["name"] for group in objective.param_groups(0.1, 0.2)] == ["temperature", "bias"]
    with torch.no_grad():
        objective.base.temperature.log_scale.fill_(9.0)
    objective.after_step()
    assert objective.base.temperature.log_scale.item() == pytest.approx(math.log(100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "triplet"}, "base=triplet: expected one of infonce, siglip"),
        ({"sides": "left"}, "sides=left: expected one of bi, uni"),
        ({"alpha": -1.0}, "alpha=-1.0: expected a weight of 0 or more"),
        ({"alpha": math.nan}, "alpha=nan: expected a weight of 0 or more"),
        ({"bias_init": -10.0}, "bias_init=-10.0: base=infonce has no bias"),
        ({"base": "siglip", "schedule": Warmer()}, "schedule: base=siglip"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_a_single_pair_is_refused(make_pairs, score):
    with pytest.raises(ShapeError, match="at least 2 pairs"):
        score(build(), *make_pairs(1))
