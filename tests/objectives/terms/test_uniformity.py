import math

import pytest
import torch

from clapkit.objectives.terms.uniformity import build, uniformity

EYE = torch.eye(6, dtype=torch.bool)


def loop_oracle(embeddings, positives):
    """Over i < j, as the paper writes it."""
    count = len(embeddings)
    kept = [(i, j) for i in range(count) for j in range(i + 1, count) if not positives[i, j]]
    kernels = [
        math.exp(-2 * sum((x - y).item() ** 2 for x, y in zip(embeddings[i], embeddings[j], strict=True))) for i, j in kept
    ]
    return math.log(sum(kernels) / len(kernels))


def test_opposite_clips_and_orthogonal_captions_by_hand():
    # Audio: distance^2 4, ln exp(-8) = -8. Text: distance^2 2, ln exp(-4) = -4. Half the sum: -6.
    audio, text = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.eye(2)
    assert build()(audio, text, torch.eye(2, dtype=torch.bool)).item() == -6


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, clones, seed):
    audio, text = make_pairs(seed=seed)
    for positives in (EYE, clones):
        expected = (loop_oracle(audio, positives) + loop_oracle(text, positives)) / 2
        assert uniformity(audio, text, positives).item() == pytest.approx(expected, abs=1e-12)


def test_each_modality_is_on_its_own(make_pairs):
    # Turning one modality against the other changes every cross-modal distance and no distance within.
    audio, text = make_pairs()
    turned = text @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert uniformity(audio, text, EYE).item() == pytest.approx(uniformity(audio, turned, EYE).item(), abs=1e-12)


def test_swapping_the_towers_changes_nothing(make_pairs, clones):
    audio, text = make_pairs()
    assert uniformity(audio, text, clones).item() == pytest.approx(uniformity(text, audio, clones).item(), abs=1e-12)


def test_one_clip_twice_is_not_counted_as_a_clump(make_pairs):
    audio, text = make_pairs()
    audio[1] = audio[0]
    twice = EYE.clone()
    twice[0, 1] = twice[1, 0] = True
    # The pair at distance 0 has the largest kernel, 1: with it the mean is higher.
    assert uniformity(audio, text, twice) < uniformity(audio, text, EYE)


def test_descent_spreads_a_clump():
    generator = torch.Generator().manual_seed(0)
    audio, text = torch.nn.functional.normalize(1 + 0.1 * torch.randn(2, 6, 4, generator=generator), dim=2)
    audio, text = audio.requires_grad_(), text.requires_grad_()
    uniformity(audio, text, EYE).backward()
    moved = torch.nn.functional.normalize(audio.detach() - 0.1 * audio.grad, dim=1)
    assert moved.mean(dim=0).norm() < audio.mean(dim=0).norm()
