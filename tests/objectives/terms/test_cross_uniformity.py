import math

import pytest
import torch

from clapkit.objectives.terms.cross_uniformity import build, cross_uniformity

EYE = torch.eye(6, dtype=torch.bool)


def test_two_pairs_by_hand():
    # a_0 = x, a_1 = y, t_0 = -y, t_1 = y: |a_0 - t_1|^2 = 2 and |a_1 - t_0|^2 = 4; ln((exp(-4) + exp(-8)) / 2) = -4.674997.
    audio, text = torch.eye(2), torch.tensor([[0.0, -1.0], [0.0, 1.0]])
    assert build()(audio, text, torch.eye(2, dtype=torch.bool)).item() == pytest.approx(-4.674997, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, clones, seed):
    audio, text = make_pairs(seed=seed)
    for positives in (EYE, clones):
        kept = [(i, j) for i in range(6) for j in range(6) if i != j and not positives[i, j]]
        kernels = [math.exp(-2 * sum((audio[i, d] - text[j, d]).item() ** 2 for d in range(5))) for i, j in kept]
        expected = math.log(sum(kernels) / len(kernels))
        assert cross_uniformity(audio, text, positives).item() == pytest.approx(expected, abs=1e-12)


def test_is_a_push_at_temperature_a_quarter(make_pairs):
    # -2 |a - t|^2 = -4 + 4 a.t
    audio, text = make_pairs()
    cosines = (text @ audio.T)[~EYE]
    expected = -4 + math.log((4 * cosines).exp().mean().item())
    assert cross_uniformity(audio, text, EYE).item() == pytest.approx(expected, abs=1e-12)


def test_swapping_the_towers_changes_nothing(make_pairs, clones):
    audio, text = make_pairs()
    there, back = cross_uniformity(audio, text, clones), cross_uniformity(text, audio, clones)
    assert there.item() == pytest.approx(back.item(), abs=1e-12)


def test_neither_the_own_caption_nor_a_second_one_is_pushed_away(make_pairs, clones):
    # Captions are the axes, so entry j of a gradient is the push that caption j gives. Rows 0 and 3 show one clip.
    audio, _ = make_pairs(6, 6)
    audio.requires_grad_()
    cross_uniformity(audio, torch.eye(6, dtype=torch.float64), clones).backward()
    assert audio.grad[0, [0, 3]].tolist() == [0, 0]
    assert (audio.grad[0, [1, 2, 4, 5]] > 0).all()


def test_without_further_positives_all_other_captions_push(make_pairs):
    audio, _ = make_pairs(6, 6)
    audio.requires_grad_()
    cross_uniformity(audio, torch.eye(6, dtype=torch.float64), EYE).backward()
    assert torch.equal(audio.grad > 0, ~EYE)
