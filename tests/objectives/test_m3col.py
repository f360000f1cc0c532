import math

import numpy as np
import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import infonce
from clapkit.objectives.m3col import build, draw_mixture, mix, mixed_targets, soft_targets
from clapkit.objectives.targets import uniform_targets

EYE = torch.eye(6, dtype=torch.bool)


def make(seed=0, **options):
    torch.manual_seed(seed)
    return build(**options)


def shares(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_two_clips_by_hand():
    # a~_0 = norm(0.75 a_0 + 0.25 a_1), a~_1 = a_1; orthogonal axes: norm sqrt(0.5625 + 0.0625) = sqrt(0.625).
    vectors = torch.eye(2, dtype=torch.float64)
    partner, share = torch.tensor([1, 0]), shares(0.75, 1.0)
    mixture = mix(vectors, partner, share)
    assert mixture[0].tolist() == pytest.approx([0.75 / math.sqrt(0.625), 0.25 / math.sqrt(0.625)], abs=1e-7)
    assert mixture[1].tolist() == [0, 1]
    assert mixed_targets(vectors, partner, share).tolist() == [[0.75, 0.25], [0, 1]]


def test_a_row_that_is_its_own_partner_keeps_all_of_its_target():
    # Writing 1 - lam over the diagonal leaves 0.3 of row 0.
    targets = mixed_targets(torch.eye(3, dtype=torch.float64), torch.tensor([0, 2, 1]), shares(0.7, 0.7, 0.2))
    expected = [[1, 0, 0], [0, 0.7, 0.3], [0, 0.8, 0.2]]
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_targets_sum_to_one_whatever_is_drawn(clones, seed):
    like = torch.zeros(0, dtype=torch.float64)
    partner, share = draw_mixture(np.random.default_rng(seed), torch.arange(6), beta=0.5, mix_share=1.0, like=like)
    assert sorted(partner.tolist()) == list(range(6))
    for positives in (EYE, clones, torch.ones_like(EYE)):
        targets = mixed_targets(uniform_targets(positives, like), partner, share)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(6, dtype=torch.float64))
        assert (targets >= 0).all()


def test_some_permutation_has_a_fixed_point_and_some_has_none():
    like, index = torch.zeros(0), torch.arange(6)
    drawn = [draw_mixture(np.random.default_rng(s), index, beta=1, mix_share=1, like=like)[0] for s in range(30)]
    fixed = [bool((partner == index).any()) for partner in drawn]
    assert any(fixed)
    assert not all(fixed)


def test_half_of_the_rows_are_mixed_most_of_them_little():
    like = torch.zeros(0, dtype=torch.float64)
    generator = np.random.default_rng(0)
    _, share = draw_mixture(generator, torch.arange(20000), beta=0.15, mix_share=0.5, like=like)
    assert (share < 1).double().mean().item() == pytest.approx(0.5, abs=0.02)
    mixed = share[share < 1]
    assert mixed.mean().item() == pytest.approx(0.5, abs=0.02)
    # The standard deviation of Beta(b, b) is 1 / (2 sqrt(2 b + 1)): 0.4385 for b = 0.15.
    assert mixed.std().item() == pytest.approx(0.4385, abs=0.01)
    assert (draw_mixture(generator, torch.arange(9), beta=0.15, mix_share=0.0, like=like)[1] == 1).all()


def test_a_row_has_its_partner_and_share_wherever_it_stands():
    like, index, order = torch.zeros(0), torch.tensor([5, 1, 8, 3]), torch.tensor([2, 0, 3, 1])
    first = draw_mixture(np.random.default_rng(3), index, beta=1, mix_share=1, like=like)
    second = draw_mixture(np.random.default_rng(3), index[order], beta=1, mix_share=1, like=like)
    assert torch.equal(index[order][second[0]], index[first[0]][order])
    assert torch.equal(second[1], first[1][order])


def loop_oracle(audio, text, positives, mixtures, *, tau):
    """The cross-entropies, entry by entry; ``mixtures`` has partner and share of clips and of texts."""
    total, batch_size = 0.0, len(audio)
    for (partner, share), own, other in zip(mixtures, (audio, text), (text, audio), strict=True):
        mixed, targets = [], []
        for i in range(batch_size):
            raw = share[i] * own[i] + (1 - share[i]) * own[partner[i]]
            mixed.append(raw / raw.norm())
            rows = [positives[k].double() / positives[k].sum() for k in (i, int(partner[i]))]
            targets.append(share[i] * rows[0] + (1 - share[i]) * rows[1])
        for i in range(batch_size):
            for j in range(batch_size):
                forwards = math.log(sum(math.exp((mixed[i] @ other[k]).item() / tau) for k in range(batch_size)))
                backwards = math.log(sum(math.exp((mixed[k] @ other[j]).item() / tau) for k in range(batch_size)))
                logit = (mixed[i] @ other[j]).item() / tau
                total += targets[i][j].item() * (forwards + backwards - 2 * logit) / batch_size / 4
    return total


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, score, clones, seed):
    audio, text = make_pairs(seed=seed)
    objective = make(seed, beta=1.0, mix_share=0.7, temperature="fixed")
    generator = objective.draws.generator(torch.arange(6))
    mixtures = [draw_mixture(generator, torch.arange(6), beta=1.0, mix_share=0.7, like=audio) for _ in range(2)]
    output = score(objective, audio, text, clones)
    assert output.total.item() == pytest.approx(loop_oracle(audio, text, clones, mixtures, tau=0.1), abs=1e-7)
    assert output.total.item() == pytest.approx((output.terms["mixed_audio"] + output.terms["mixed_text"]) / 2)


def test_without_mixing_it_is_infonce_in_value_and_gradient(make_pairs, score, clones):
    for positives, targets in ((EYE, "ignore"), (EYE, "soft"), (clones, "soft")):
        gradients = []
        for objective in (make(mix_share=0.0), infonce.build(tau=0.1, targets=targets)):
            audio, text = (x.requires_grad_() for x in make_pairs())
            total = score(objective, audio, text, positives).total
            total.backward()
            gradients.append((total.detach(), audio.grad, text.grad))
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_opposite_vectors_may_cancel_out(score):
    audio = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    mixture = mix(audio, torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    mixture.sum().backward()
    assert mixture.isfinite().all()
    assert audio.grad.isfinite().all()


def test_later_targets_follow_the_texts(make_pairs, score, clones):
    audio, text = make_pairs()
    objective = make(mix_until=0.33, temperature="fixed", tau=0.1, target_temperature=0.5)
    output = score(objective, audio, text, clones, progress=0.33)
    expected = 0.0
    for i in range(6):
        like = [1.0 if clones[i, j] else (text[i] @ text[j]).item() for j in range(6)]
        norm = sum(math.exp(value / 0.5) for value in like)
        for anchors, candidates in ((text, audio), (audio, text)):
            logits = [(anchors[i] @ candidates[j]).item() / 0.1 for j in range(6)]
            log_norm = math.log(sum(math.exp(value) for value in logits))
            expected += sum(math.exp(like[j] / 0.5) / norm * (log_norm - logits[j]) for j in range(6)) / 6 / 2
    assert output.total.item() == pytest.approx(expected, abs=1e-9)
    assert set(output.terms) == {"t2a", "a2t"}
    assert set(score(objective, audio, text, clones, progress=0.32).terms) == {"mixed_audio", "mixed_text"}


def test_soft_targets_carry_no_gradient_and_end_in_one_partner(make_pairs):
    _, text = make_pairs()
    text.requires_grad_()
    assert not soft_targets(text, EYE, 0.125).requires_grad
    torch.testing.assert_close(soft_targets(text, EYE, 1e-3), torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(soft_targets(text, EYE, 1e9), torch.full((6, 6), 1 / 6, dtype=torch.float64))


def test_every_step_mixes_anew_and_a_restored_one_goes_on(make_pairs, score):
    audio, text = make_pairs()
    objective, other = make(mix_share=1.0), make(9, mix_share=1.0)
    first = score(objective, audio, text).total
    assert score(objective, audio, text).total == first  # a second pass over the batch
    objective.after_step()
    second = score(objective, audio, text).total
    assert second != first
    other.load_state_dict(objective.state_dict())
    assert score(other, audio, text).total == second


def test_every_row_has_the_temperature_of_its_schedule(make_pairs, score, per_row):
    audio, text = make_pairs()
    flat, fixed = make(schedule=per_row(torch.full((6,), 0.2, dtype=torch.float64))), make(temperature="fixed", tau=0.2)
    for progress in (0.0, 0.9):
        values = [score(objective, audio, text, progress=progress).total.item() for objective in (flat, fixed)]
        assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_registry_reads_the_options_and_bad_ones_are_refused(score):
    objective = registry.build("loss", "m3col", {"beta": "0.5", "mix_until": "1", "temperature": "fixed"})
    assert (objective.beta, objective.mix_until, objective.temperature.tau) == (0.5, 1.0, 0.1)
    with pytest.raises(ConfigError, match="beta=0: expected more than 0"):
        build(beta=0)
    with pytest.raises(ConfigError, match="target_temperature=-1: expected more than 0"):
        build(target_temperature=-1)
    with pytest.raises(ConfigError, match="mix_share=2: expected a share"):
        build(mix_share=2)
    with pytest.raises(ConfigError, match="mix_until=-1: expected a share"):
        build(mix_until=-1)
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(), torch.ones(1, 2), torch.ones(1, 2))
