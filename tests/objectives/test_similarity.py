import math

import pytest
import torch

from clapkit.objectives.similarity import EPSILON, cosine, smooth_norm, support_vectors


def test_rows_of_the_cosine_matrix_are_anchors():
    anchors = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    candidates = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(cosine(anchors, candidates), torch.tensor([[0.0, 1.0], [0.8, 0.6]]))


def test_norm_is_smooth_at_zero():
    vectors = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    norm = smooth_norm(vectors)
    norm.sum().backward()
    assert norm.tolist() == pytest.approx([EPSILON, EPSILON], rel=1e-12)
    assert vectors.grad.abs().max() == 0


def test_norm_of_a_345_triangle():
    # sqrt(9 + 16 + 1e-8) = 5 sqrt(1 + 4e-10) = 5 (1 + 2e-10)
    vectors = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert smooth_norm(vectors).item() == pytest.approx(5.000000001, abs=1e-12)


def test_support_vector_lies_on_the_way_to_the_target():
    anchor, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    # A quarter of the way from (1, 0) to (0, 1).
    torch.testing.assert_close(support_vectors(anchor, target, torch.tensor([0.25])), torch.tensor([[0.75, 0.25]]))


def test_similarity_of_support_vectors_interpolates_cross_and_intra_modal_similarity(make_pairs):
    audio, text = make_pairs()
    rho = torch.linspace(-0.3, 1.4, 6, dtype=torch.float64)
    cross, intra = text @ audio.T, audio @ audio.T
    expected = (1 - rho)[:, None] * cross + rho[:, None] * intra
    torch.testing.assert_close(cosine(support_vectors(text, audio, rho), audio), expected, atol=1e-14, rtol=0)


def test_length_of_a_support_vector_has_the_closed_form(make_pairs):
    audio, text = make_pairs()
    rho = torch.linspace(-0.3, 1.4, 6, dtype=torch.float64)
    squared_distance = (audio - text).square().sum(dim=1)
    expected = 1 - rho * (1 - rho) * squared_distance
    length = support_vectors(text, audio, rho).square().sum(dim=1)
    torch.testing.assert_close(length, expected, atol=1e-14, rtol=0)


def test_normalized_support_vectors_have_unit_norm_and_the_same_direction(make_pairs):
    audio, text = make_pairs()
    rho = torch.full((6,), 0.4, dtype=torch.float64)
    plain, unit = support_vectors(text, audio, rho), support_vectors(text, audio, rho, normalize=True)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(6, dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(unit * plain.norm(dim=1)[:, None], plain, atol=1e-7, rtol=0)


def test_normalizing_opposite_pairs_at_half_way_is_finite():
    # Half way from x to -x is the origin.
    anchor = torch.tensor([[1.0, 0.0]], requires_grad=True)
    support = support_vectors(anchor, -anchor.detach(), torch.tensor([0.5]), normalize=True)
    support.sum().backward()
    assert support.isfinite().all()
    assert anchor.grad.isfinite().all()


def test_jacobians_of_the_support_vector_are_those_of_the_derivation():
    # d/dt = u u' + (1 - rho)(I - u u'), d/da = rho (I - u u'), and the two add up to I.
    generator = torch.Generator().manual_seed(3)
    t, a = torch.randn(2, 1, 4, dtype=torch.float64, generator=generator)
    radius = 0.7

    def support(t, a):
        return support_vectors(t, a, radius / smooth_norm(a - t))

    by_text, by_audio = torch.autograd.functional.jacobian(support, (t, a))
    by_text, by_audio = by_text.reshape(4, 4), by_audio.reshape(4, 4)
    distance = smooth_norm(a - t).item()
    u = ((a - t) / distance).squeeze(0)
    identity, along, rho = torch.eye(4, dtype=torch.float64), torch.outer(u, u), radius / distance
    torch.testing.assert_close(by_text, along + (1 - rho) * (identity - along), atol=1e-12, rtol=0)
    torch.testing.assert_close(by_audio, rho * (identity - along), atol=1e-12, rtol=0)
    torch.testing.assert_close(by_text + by_audio, identity, atol=1e-12, rtol=0)


def test_pull_direction_makes_half_the_pair_angle_with_the_tangent(make_pairs):
    # For unit vectors at angle theta: a.u = sin(theta / 2) = -t.u.
    audio, text = make_pairs()
    u = (audio - text) / smooth_norm(audio - text)[:, None]
    for row in range(6):
        theta = math.acos((audio[row] @ text[row]).item())
        assert (audio[row] @ u[row]).item() == pytest.approx(math.sin(theta / 2), abs=1e-7)
        assert (text[row] @ u[row]).item() == pytest.approx(-math.sin(theta / 2), abs=1e-7)
