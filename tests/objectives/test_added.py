import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError, UnknownNameError
from clapkit.objectives import siglip
from clapkit.objectives.added import AddedTerms, read_additions, with_terms
from clapkit.objectives.terms.alignment import alignment
from clapkit.objectives.terms.uniformity import uniformity


def test_total_is_the_objective_plus_weighted_terms(make_pairs, score, clones):
    audio, text = make_pairs()
    objective = registry.build("loss", "infonce")
    plain = score(objective, audio, text, clones)
    output = score(with_terms(objective, ["alignment=0.5", "uniformity=0.25"]), audio, text, clones)
    align, unif = alignment(audio, text, clones).item(), uniformity(audio, text, clones).item()
    assert output.total.item() == pytest.approx(plain.total.item() + 0.5 * align + 0.25 * unif, abs=1e-12)
    assert output.terms == pytest.approx(plain.terms | {"added_alignment": align, "added_uniformity": unif})
    assert output.stats == plain.stats


def test_two_orthogonal_pairs_that_are_crossed_by_hand(score):
    # a = (x, y), t = (y, x): s = 0 on the diagonal, 1 off it; siglip at tau 1, b 0: 2 softplus(0) / 2 + 2 softplus(1) / 2
    # = 0.693147 + 1.313262. Alignment |x - y|^2 = 2, weight 0.1.
    rows = torch.eye(2)
    objective = siglip.build(temperature="fixed", tau=1.0, bias_init=0.0)
    output = score(with_terms(objective, ["alignment=0.1"]), rows, rows.flip(0))
    assert output.total.item() == pytest.approx(0.693147 + 1.313262 + 0.2, abs=1e-5)
    assert output.terms["added_alignment"] == pytest.approx(2.0)


def test_gradient_is_the_weighted_sum_of_gradients(make_pairs, score):
    def gradients(objective):
        audio, text = (x.requires_grad_() for x in make_pairs())
        score(objective, audio, text).total.backward()
        return torch.stack([audio.grad, text.grad])

    objective = registry.build("loss", "infonce")
    both = gradients(with_terms(objective, ["alignment=2"]))
    audio, text = make_pairs()
    # d mean_i |a_i - t_i|^2 / d a_i = 2 (a_i - t_i) / B, and the opposite for t_i.
    pull = 2 * (audio - text) / len(audio)
    torch.testing.assert_close(both - gradients(objective), 2 * torch.stack([pull, -pull]), atol=1e-12, rtol=0)


def test_weight_0_measures_and_changes_nothing(make_pairs, score):
    def run(objective):
        audio, text = (x.requires_grad_() for x in make_pairs(dtype=torch.float32))
        output = score(objective, audio, text)
        output.total.backward()
        return output, audio.grad, text.grad

    objective = registry.build("loss", "infonce")
    plain, plain_audio, plain_text = run(objective)
    measured, audio_grad, text_grad = run(with_terms(objective, ["cyclip=0"]))
    assert torch.equal(measured.total, plain.total)
    assert torch.equal(audio_grad, plain_audio)
    assert torch.equal(text_grad, plain_text)
    assert measured.terms["added_cyclip"] > 0


def test_no_gradient_is_taken_where_gradients_are_off(make_pairs, score):
    with torch.no_grad():
        output = score(with_terms(registry.build("loss", "infonce"), ["alignment=1"]), *make_pairs())
    assert not output.total.requires_grad


def test_without_additions_the_objective_itself_comes_back():
    objective = registry.build("loss", "triplet")
    assert with_terms(objective, []) is objective


def test_parameters_groups_and_limits_are_those_of_the_objective():
    objective = registry.build("loss", "siglip")
    added = with_terms(objective, ["uniformity=0.1"])
    assert added.objective is objective
    assert [id(p) for p in added.parameters()] == [id(p) for p in objective.parameters()]
    assert [group["name"] for group in added.param_groups(0.1, 0.2)] == ["temperature", "bias"]
    with torch.no_grad():
        objective.temperature.log_scale.fill_(9.0)
    added.after_step()
    assert objective.temperature.log_scale.item() == pytest.approx(4.60517)  # ln 100


def test_options_reach_the_term(make_pairs, score):
    audio, text = make_pairs()
    half = with_terms(registry.build("loss", "infonce"), ["cyclip=1"], options={"cyclip": {"in_modal": "false"}})
    expected = registry.build("term", "cyclip", {"in_modal": False})(audio, text, torch.eye(6, dtype=torch.bool))
    assert score(half, audio, text).terms["added_cyclip"] == pytest.approx(expected.item())


@pytest.mark.parametrize("name", registry.names("term"))
def test_autocast_does_not_reach_the_terms(make_pairs, score, name):
    audio, text = make_pairs(dtype=torch.float32)
    objective = with_terms(registry.build("loss", "infonce"), [f"{name}=0.5"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = score(objective, audio, text)
    outside = score(objective, audio, text)
    assert inside.total.dtype == torch.float32
    assert torch.equal(inside.total, outside.total)
    assert inside.terms == outside.terms


def test_additions_are_read_in_order():
    assert list(read_additions(["uniformity=1e-3", " alignment = 2 "]).items()) == [("uniformity", 0.001), ("alignment", 2.0)]


@pytest.mark.parametrize("text", ["alignment", "=0.1", "", "  "])
def test_an_addition_is_an_assignment(text):
    with pytest.raises(ConfigError, match=f"--add {text}: expected NAME=WEIGHT, for example --add alignment=0.1"):
        read_additions([text])


@pytest.mark.parametrize("weight", ["", "much", "0.1.2", "0.1=2"])
def test_a_weight_is_a_number(weight):
    with pytest.raises(ConfigError, match=f"--add alignment={weight}: the weight is no number"):
        read_additions([f"alignment={weight}"])


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "-0.1"])
def test_a_weight_is_finite_and_not_negative(weight):
    with pytest.raises(ConfigError, match=f"--add alignment={weight}: expected a finite weight of 0 or more"):
        read_additions([f"alignment={weight}"])


def test_an_unknown_term_offers_the_closest():
    with pytest.raises(UnknownNameError, match="unknown term 'alignmnet': did you mean 'alignment'\\?") as caught:
        read_additions(["alignmnet=1"])
    assert tuple(caught.value.known) == registry.names("term")


def test_a_term_is_added_once():
    with pytest.raises(ConfigError, match="--add alignment is given twice; give it once"):
        read_additions(["alignment=1", "uniformity=1", "alignment=2"])


def test_options_of_a_term_that_is_not_added_are_refused():
    with pytest.raises(ConfigError, match="options for the term cyclip: it is not added; give --add cyclip=WEIGHT"):
        with_terms(registry.build("loss", "infonce"), ["alignment=1"], options={"cyclip": {"in_modal": False}})


def test_a_term_is_logged_beside_what_the_objective_logs_under_the_same_name(make_pairs, score):
    pairs = make_pairs()
    objective = registry.build("loss", "infonce")
    output = score(AddedTerms(objective, {"t2a": alignment}, {"t2a": 1.0}), *pairs)
    assert output.terms["t2a"] == score(objective, *pairs).terms["t2a"]
    assert output.terms["added_t2a"] == pytest.approx((pairs[0] - pairs[1]).square().sum(dim=1).mean().item())


def test_a_single_pair_is_refused(make_pairs, score):
    with pytest.raises(ShapeError, match="at least 2 pairs"):
        score(with_terms(registry.build("loss", "infonce"), ["alignment=1"]), *make_pairs(1))
