import pytest
import torch

from clapkit.objectives.terms.alignment import alignment, build

EYE = torch.eye(6, dtype=torch.bool)


def test_two_pairs_by_hand():
    # Pair 0 coincides, |x - x|^2 = 0; pair 1 is orthogonal, |y - x|^2 = 2. Mean 1.
    audio, text = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert build()(audio, text, torch.eye(2, dtype=torch.bool)).item() == pytest.approx(1.0, abs=1e-7)


def test_equals_the_loop(make_pairs):
    audio, text = make_pairs()
    expected = sum(sum((audio[i, d] - text[i, d]).item() ** 2 for d in range(5)) for i in range(6)) / 6
    assert alignment(audio, text, EYE).item() == pytest.approx(expected, abs=1e-12)


def test_is_2_minus_2_cosines(make_pairs):
    audio, text = make_pairs()
    expected = (2 - 2 * (audio * text).sum(dim=1)).mean().item()
    assert alignment(audio, text, EYE).item() == pytest.approx(expected, abs=1e-12)


def test_is_0_exactly_where_the_towers_coincide(make_pairs):
    audio, _ = make_pairs(dtype=torch.float32)
    assert alignment(audio, audio.clone(), EYE).item() == 0
    moved = audio.clone()
    moved[3] = moved[3].flip(0)
    assert alignment(audio, moved, EYE).item() > 0


def test_opposite_towers_are_4_apart(make_pairs):
    audio, _ = make_pairs()
    assert alignment(audio, -audio, EYE).item() == pytest.approx(4.0, abs=1e-12)


def test_further_positives_are_not_pulled(make_pairs, clones):
    audio, text = make_pairs()
    assert torch.equal(alignment(audio, text, clones), alignment(audio, text, EYE))
