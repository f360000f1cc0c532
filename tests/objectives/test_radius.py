import math

import pytest
import torch

from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.radius import (
    AdaptiveRadius,
    FixedRadius,
    RatioRadius,
    StaticRadius,
    check_radius_options,
    clamp_ratio,
    hard_bound,
    hard_bound_logit,
    make_radius_model,
    off_diagonal,
    radius_penalty,
    similarity_profile,
    sort_rows_descending,
)

SIMILARITY = torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.6, -0.3], [0.4, 0.8, 0.7]])
EYE = torch.eye(3, dtype=torch.bool)
DISTANCE = torch.tensor([1.0, 0.5, 2.0])


def options(**changed):
    plain = {"kind": "adaptive", "initial": 0.25, "learning_rate": None, "bound": "penalty", "max_ratio": None}
    return {**plain, **changed}


def untied(model):
    """Give a predictor a last layer that depends on its input, as after training."""
    with torch.no_grad():
        model.predictor[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


def test_fixed_radius_is_constant():
    assert FixedRadius(0.3)(SIMILARITY, EYE, DISTANCE).tolist() == pytest.approx([0.3, 0.3, 0.3])


def test_ratio_radius_is_a_share_of_the_distance():
    assert RatioRadius(0.2)(SIMILARITY, EYE, DISTANCE).tolist() == pytest.approx([0.2, 0.1, 0.4])


def test_static_radius_is_one_learned_number():
    model = StaticRadius(0.25)
    radius = model(SIMILARITY, EYE, DISTANCE)
    radius.sum().backward()
    assert radius.tolist() == [0.25, 0.25, 0.25]
    assert model.radius.grad.item() == 3


def test_adaptive_radius_starts_at_its_initial_value():
    radius = AdaptiveRadius(0.25, batch_size=3, order="sorted")(SIMILARITY, EYE, DISTANCE)
    assert radius.tolist() == [0.25, 0.25, 0.25]


def test_adaptive_radius_reacts_to_its_input_once_trained():
    radius = untied(AdaptiveRadius(0.25, batch_size=3, order="sorted"))(SIMILARITY, EYE, DISTANCE)
    assert len(set(radius.tolist())) == 3


def test_adaptive_radius_takes_the_size_of_its_first_batch():
    model = AdaptiveRadius(0.25, batch_size=None, order="sorted")
    assert list(model.parameters()) == []
    model(SIMILARITY, EYE, DISTANCE)
    assert model.predictor[0].in_features == 3


def test_adaptive_radius_refuses_another_batch_size():
    model = AdaptiveRadius(0.25, batch_size=4, order="sorted")
    with pytest.raises(ShapeError, match=r"the batch has 3 pairs, the predictor was made for 4; .*drop the last"):
        model(SIMILARITY, EYE, DISTANCE)


def test_the_seed_decides_the_weights_of_the_predictor():
    def first_weight(seed):
        torch.manual_seed(seed)
        return AdaptiveRadius(0.25, batch_size=3, order="sorted").predictor[0].weight

    assert torch.equal(first_weight(1), first_weight(1))
    assert not torch.equal(first_weight(1), first_weight(2))


def test_sorted_profile_has_the_pair_first_and_negatives_from_the_most_similar_down():
    expected = torch.tensor([[0.5, 0.9, 0.1], [0.6, 0.2, -0.3], [0.7, 0.8, 0.4]])
    assert torch.equal(similarity_profile(SIMILARITY, EYE, order="sorted"), expected)


def test_raw_profile_has_the_pair_first_and_negatives_in_batch_order():
    expected = torch.tensor([[0.5, 0.1, 0.9], [0.6, 0.2, -0.3], [0.7, 0.4, 0.8]])
    assert torch.equal(similarity_profile(SIMILARITY, EYE, order="raw"), expected)


@pytest.mark.parametrize("order", ["sorted", "raw"])
def test_profile_of_a_transposed_matrix_is_that_of_its_copy(order):
    transposed = similarity_profile(SIMILARITY.T, EYE, order=order)
    assert torch.equal(transposed, similarity_profile(SIMILARITY.T.contiguous(), EYE, order=order))


def test_further_positives_are_replaced_by_the_lowest_other_similarity():
    positives = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    # Row 0: 0.9 goes, lowest of 0.5 and 0.1. Row 2: 0.4 goes, lowest of 0.8 and 0.7.
    expected = torch.tensor([[0.5, 0.1, 0.1], [0.6, 0.2, -0.3], [0.7, 0.8, 0.7]])
    assert torch.equal(similarity_profile(SIMILARITY, positives, order="sorted"), expected)


def test_profile_is_finite_when_a_row_has_no_negatives():
    profile = similarity_profile(SIMILARITY, torch.ones(3, 3, dtype=torch.bool), order="sorted")
    assert torch.equal(profile, SIMILARITY.diagonal()[:, None].expand(3, 3))


def test_profile_leaves_its_input_alone_and_carries_no_gradient():
    similarity = SIMILARITY.clone().requires_grad_()
    profile = similarity_profile(similarity, EYE, order="sorted")
    assert not profile.requires_grad
    assert torch.equal(similarity.detach(), SIMILARITY)


def test_sorted_prediction_does_not_depend_on_batch_order(make_pairs, clones):
    audio, text = make_pairs(dtype=torch.float32)
    model, order = untied(AdaptiveRadius(0.25, batch_size=6, order="sorted")), torch.tensor([3, 5, 0, 1, 4, 2])
    similarity, distance = text @ audio.T, torch.ones(6)
    radius = model(similarity, clones, distance)
    shuffled = model(similarity[order][:, order], clones[order][:, order], distance)
    torch.testing.assert_close(shuffled, radius[order])


def test_raw_prediction_depends_on_batch_order(make_pairs):
    audio, text = make_pairs(dtype=torch.float32)
    model, order = untied(AdaptiveRadius(0.25, batch_size=6, order="raw")), torch.tensor([3, 5, 0, 1, 4, 2])
    similarity, eye, distance = text @ audio.T, torch.eye(6, dtype=torch.bool), torch.ones(6)
    shuffled = model(similarity[order][:, order], eye, distance)
    assert not torch.allclose(shuffled, model(similarity, eye, distance)[order])


def test_off_diagonal_keeps_rows_and_order():
    assert off_diagonal(torch.arange(9).view(3, 3)).tolist() == [[1, 2], [3, 5], [6, 7]]


def test_rows_are_sorted_like_torch_sorts_them():
    matrix = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    expected = matrix.sort(dim=1, descending=True).values
    sort_rows_descending(matrix)
    assert torch.equal(matrix, expected)


def test_hard_bound_stays_inside_the_pair():
    radius = hard_bound(torch.tensor([-90.0, 0.0, 10.0]), DISTANCE)
    assert radius[0] >= 0
    assert radius[1].item() == 0.25  # 0.5 sigmoid(0)
    assert radius[2] < 2


def test_hard_bound_starts_at_the_radius_for_orthogonal_pairs():
    distance = torch.tensor([math.sqrt(2)])
    assert hard_bound(torch.tensor([hard_bound_logit(0.25)]), distance).item() == pytest.approx(0.25)


def test_clamp_cuts_at_zero_and_at_the_ratio():
    radius = torch.tensor([-0.1, 0.9, 0.9], requires_grad=True)
    bounded = clamp_ratio(radius, DISTANCE, max_ratio=0.8)
    bounded.sum().backward()
    assert bounded.tolist() == pytest.approx([0.0, 0.4, 0.9])
    assert radius.grad.tolist() == [0.0, 0.0, 1.0]


def test_penalty_is_zero_inside_and_has_slope_one_outside():
    radius = torch.tensor([-0.2, 0.0, 0.3, 0.5, 0.9], requires_grad=True)
    penalty = radius_penalty(radius, torch.full((5,), 0.5))
    penalty.backward()
    # 0.2 below and 0.4 above, over five rows.
    assert penalty.item() == pytest.approx(0.6 / 5)
    assert (radius.grad * 5).tolist() == pytest.approx([-1.0, 0.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("kind", "bound", "expected"),
    [
        ("fixed", "penalty", FixedRadius),
        ("ratio", "penalty", RatioRadius),
        ("static", "hard", StaticRadius),
        ("adaptive", "clamp", AdaptiveRadius),
    ],
)
def test_each_kind_has_its_model(kind, bound, expected):
    model = make_radius_model(kind, initial=0.3, bound=bound, batch_size=3, order="sorted")
    assert isinstance(model, expected)


def test_learned_models_start_at_the_logit_under_the_hard_bound():
    model = make_radius_model("static", initial=0.3, bound="hard", batch_size=None, order="sorted")
    assert model.radius.item() == pytest.approx(hard_bound_logit(0.3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "wide"}, "radius=wide: expected one of adaptive, static, fixed, ratio"),
        ({"bound": "soft"}, "radius_bound=soft: expected one of penalty, hard, clamp"),
        ({"initial": -0.1}, "radius_init=-0.1: expected 0 or more"),
        ({"initial": math.nan}, "radius_init=nan: expected 0 or more"),
        ({"kind": "fixed", "learning_rate": 0.1}, "radius_lr=0.1: radius=fixed learns nothing"),
        ({"learning_rate": -1.0}, "radius_lr=-1.0: expected 0 or more"),
        ({"kind": "ratio", "bound": "hard"}, "radius_bound=hard: radius=ratio learns nothing"),
        ({"bound": "hard", "initial": 0.0}, "radius_init=0.0: radius_bound=hard starts between 0 and 1.41"),
        ({"bound": "hard", "initial": 1.5}, "radius_init=1.5: radius_bound=hard starts between 0 and 1.41"),
        ({"kind": "ratio", "bound": "clamp"}, "radius_bound=clamp: radius=ratio is a constant share"),
        ({"max_ratio": 1.0}, "max_ratio=1.0: radius_bound=penalty has no such limit"),
        ({"bound": "clamp", "max_ratio": 0.0}, "max_ratio=0.0: expected more than 0"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        check_radius_options(**options(**changed))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"kind": "fixed", "initial": 0.0},
        {"kind": "fixed", "bound": "clamp"},
        {"kind": "static", "bound": "hard", "learning_rate": 0.01},
        {"bound": "clamp", "max_ratio": 2.0},
    ],
)
def test_options_that_fit_pass(changed):
    check_radius_options(**options(**changed))
