import pytest
import torch

from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.terms.cyclip import build, cross_modal_asymmetry, in_modal_asymmetry

EYE = torch.eye(6, dtype=torch.bool)


def test_two_pairs_by_hand():
    # a = (x, y), t = (x, x): rows of s = t.a are (1, 0), (1, 0). Cross-modal: s_01 - s_10 = -1, twice squared: 2 / B = 1.
    # In-modal: a_0.a_1 = 0 and t_0.t_1 = 1, the diagonals agree: 2 / B = 1.
    audio, text = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert cross_modal_asymmetry(audio, text).item() == 1
    assert in_modal_asymmetry(audio, text).item() == 1
    assert build()(audio, text, torch.eye(2, dtype=torch.bool)).item() == 2


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, seed):
    audio, text = make_pairs(seed=seed)
    cross = in_modal = 0.0
    for i in range(6):
        for j in range(6):
            cross += ((text[i] @ audio[j]).item() - (text[j] @ audio[i]).item()) ** 2 / 6
            in_modal += ((audio[i] @ audio[j]).item() - (text[i] @ text[j]).item()) ** 2 / 6
    assert build(in_modal=False)(audio, text, EYE).item() == pytest.approx(cross, abs=1e-12)
    assert build(cross_modal=False)(audio, text, EYE).item() == pytest.approx(in_modal, abs=1e-12)
    assert build()(audio, text, EYE).item() == pytest.approx(cross + in_modal, abs=1e-12)


def test_both_parts_are_0_where_the_towers_coincide(make_pairs):
    audio, _ = make_pairs()
    assert cross_modal_asymmetry(audio, audio.clone()).item() == 0
    assert in_modal_asymmetry(audio, audio.clone()).item() == 0


def test_the_in_modal_part_compares_shapes_and_not_places(make_pairs):
    audio, _ = make_pairs()
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert in_modal_asymmetry(audio, audio @ turn).item() == pytest.approx(0, abs=1e-12)
    assert cross_modal_asymmetry(audio, audio @ turn).item() > 0.1


def test_swapping_the_towers_changes_nothing(make_pairs):
    audio, text = make_pairs()
    assert build()(audio, text, EYE).item() == pytest.approx(build()(text, audio, EYE).item(), abs=1e-12)


def test_further_positives_count_like_all_pairs(make_pairs, clones):
    audio, text = make_pairs()
    assert torch.equal(build()(audio, text, clones), build()(audio, text, EYE))


def test_neither_part_is_nothing():
    with pytest.raises(ConfigError, match="in_modal=false with cross_modal=false: cyclip has nothing left"):
        build(in_modal=False, cross_modal=False)


def test_towers_of_different_width_are_refused():
    with pytest.raises(ShapeError, match="expected the same"):
        build()(torch.eye(4, 5), torch.eye(4, 6), torch.eye(4, dtype=torch.bool))
