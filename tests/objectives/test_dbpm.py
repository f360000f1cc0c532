import copy
import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.added import with_terms
from clapkit.objectives.dbpm import build, history_of, odd_weights
from clapkit.objectives.pair_weights import pair_losses

EYE = torch.eye(6, dtype=torch.bool)


def step(objective, audio, text, *, index=None, progress=0.5, batches=1):
    """A step of training without its optimiser; gives the last output."""
    index = torch.arange(len(audio)) if index is None else index
    for _ in range(batches):
        output = objective(audio, text, torch.eye(len(audio), dtype=torch.bool), index, progress)
    objective.after_step()
    return output


def with_history(losses, **options):
    """An objective whose row i had loss ``losses[i]``, at the temperature 0.07."""
    objective = build(num_rows=len(losses), **{"warmup": 0.0, **options})
    with torch.no_grad():
        objective.loss_sum.copy_(torch.tensor(losses))
        objective.last_loss.copy_(torch.tensor(losses))
        objective.counted.fill_(1.0)
    return objective


def test_weights_by_hand():
    # Mean 2, deviation 0.5: exp(-(3 - 2)^2 / (2 * 0.25)) = e^-2; a pair that is not odd has 1 whatever its loss.
    losses, odd = torch.tensor([3.0, 3.0, 2.0, 1.0]), torch.tensor([True, False, True, True])
    weights = odd_weights(losses, odd, torch.tensor(2.0), torch.tensor(0.5))
    assert weights.tolist() == pytest.approx([math.exp(-2), 1.0, 1.0, math.exp(-2)])


def test_the_history_by_hand():
    # Row 0 had losses 1 and 3 at 20 and 60 % of the training: (0.2 * 1 + 0.6 * 3) / 0.8 = 2.5. Row 1 had 0.5 once, row 2 none.
    objective = build(num_rows=3)
    objective.remember([(torch.tensor([0, 1]), torch.tensor([1.0, 0.5]), 0.2)])
    objective.remember([(torch.tensor([0]), torch.tensor([3.0]), 0.6)])
    history = objective.history()
    assert history.mean_loss[:2].tolist() == pytest.approx([2.5, 0.5])
    assert history.mean_loss[2].isnan()
    # Mean 1.5, deviation 1 over the two rows seen.
    assert history.score[:2].tolist() == pytest.approx([1.0, -1.0])
    assert history.score[2].isnan()
    assert not history.faulty.any()
    assert history.weight.tolist() == [1.0, 1.0, 1.0]
    assert objective.last_loss.tolist() == [3.0, 0.5, 0.0]


def test_a_row_seen_less_often_is_not_thought_easier(make_pairs):
    often, once = build(num_rows=6), build(num_rows=6)
    step(often, *make_pairs(), progress=0.2)
    for objective in (often, once):
        step(objective, *make_pairs(), progress=0.7)
    torch.testing.assert_close(often.history().mean_loss, once.history().mean_loss)


def test_a_loss_at_the_very_start_counts_too(make_pairs):
    objective = build(num_rows=6)
    step(objective, *make_pairs(), progress=0.0)
    assert objective.history().mean_loss.isfinite().all()


@pytest.mark.parametrize("wrapped", ["infonce", "svr", "siglip", "reweighted"])
def test_no_effect_before_the_warm_up_is_over(make_pairs, wrapped):
    options = {"batch_size": 6} if wrapped == "svr" else {}
    plain = registry.build("loss", wrapped, options)
    objective = build(wrapped=copy.deepcopy(plain), num_rows=6, warmup=0.6, c1=0.5, c2=0.5)
    audio, text = make_pairs()
    for progress in (0.0, 0.3, 0.59):
        expected = plain(audio, text, EYE, torch.arange(6), progress)
        found = step(objective, audio, text, progress=progress)
        assert torch.equal(found.total, expected.total)
        assert found.stats["mean_weight"] == 1.0
    found = step(objective, audio, text, progress=0.6)
    assert found.total < expected.total
    assert found.stats["mean_weight"] < 1.0


def test_odd_pairs_of_both_tails_count_less_and_the_others_fully(make_pairs):
    audio, text = make_pairs()
    # Mean 2, deviation sqrt((4 + 4) / 6) = 1.155: rows 0 and 5 are 1.73 deviations away.
    losses = [0.0, 2.0, 2.0, 2.0, 2.0, 4.0]
    objective = with_history(losses, c1=1.5, c2=1.5)
    now = pair_losses(audio, text, EYE, 1 / 0.07)
    weights, scalars, _ = objective.weigh(audio, text, EYE, torch.arange(6), 0.5)
    expected = (-((now - 2) ** 2) / (2 * 8 / 6)).exp()
    assert weights[1:5].tolist() == [1.0] * 4
    torch.testing.assert_close(weights[[0, 5]], expected[[0, 5]], rtol=1e-6, atol=0)
    assert scalars["faulty_share"].item() == scalars["trivial_share"].item() == pytest.approx(1 / 6)
    assert not objective.history().faulty[:5].any()
    assert objective.history().trivial.tolist() == [True] + [False] * 5


def test_each_tail_has_its_own_limit():
    losses = [0.0, 2.0, 2.0, 2.0, 2.0, 4.0]
    assert with_history(losses, c1=1.7, c2=1.8).history().trivial.sum() == 1
    assert with_history(losses, c1=1.7, c2=1.8).history().faulty.sum() == 0
    assert with_history(losses, c1=1.8, c2=1.7).history().faulty.sum() == 1


def test_weights_are_above_0_and_at_most_1_however_small_the_deviation(make_pairs):
    audio, text = make_pairs()
    for spread in (1e-4, 0.01, 0.1, 1.0, 30.0):
        objective = with_history([2 + spread, 2.0, 2.0, 2.0, 2.0, 2 - spread], c1=1.0, c2=1.0)
        weights = objective.weigh(audio, text, EYE, torch.arange(6), 0.5)[0]
        assert (weights > 0).all()
        assert (weights <= 1).all()


def test_a_deviation_of_0_leaves_all_weights_at_1(make_pairs):
    objective = with_history([2.0] * 6)
    output = step(objective, *make_pairs())
    assert output.stats["mean_weight"] == 1.0
    assert output.total.isfinite()
    alike = with_history([2.0] * 6).history()
    assert not (alike.faulty | alike.trivial).any()
    assert alike.score.tolist() == [0.0] * 6


def test_without_any_history_all_weights_are_1(make_pairs):
    output = step(build(num_rows=6, warmup=0.0), *make_pairs())
    assert output.stats["mean_weight"] == 1.0


def test_weights_carry_no_gradient(make_pairs):
    audio, text = (rows.requires_grad_() for rows in make_pairs())
    objective = with_history([0.0, 2.0, 2.0, 2.0, 2.0, 4.0], c1=1.0, c2=1.0)
    weights = objective.weigh(audio.detach(), text.detach(), EYE, torch.arange(6), 0.5)[0]
    step(objective, audio, text).total.backward()
    found, audio.grad = audio.grad, None
    objective.wrapped(audio, text, EYE, torch.arange(6), 0.5, weights).total.backward()
    assert torch.equal(found, audio.grad)


def test_planted_wrong_captions_end_in_the_high_tail():
    generator = torch.Generator().manual_seed(0)
    num_rows, width = 200, 16
    audio = torch.nn.functional.normalize(torch.randn(num_rows, width, generator=generator), dim=1)
    noise = torch.randn(num_rows, width, generator=generator)
    text = torch.nn.functional.normalize(audio + 0.15 * noise, dim=1)
    wrong = torch.arange(0, num_rows, 20)  # ten of them, in a circle
    text[wrong] = text[wrong.roll(1)]
    objective = build(num_rows=num_rows, warmup=0.5)
    for number in range(30):
        for rows in torch.randperm(num_rows, generator=generator).split(40):
            step(objective, audio[rows], text[rows], index=rows, progress=number / 30)
    history = objective.history()
    assert set(history.score.argsort(descending=True)[:10].tolist()) == set(wrong.tolist())
    found = history.faulty.nonzero().flatten()
    assert set(found.tolist()) <= set(wrong.tolist())
    assert len(found) >= 8
    assert (history.weight[found] < 0.2).all()


def test_the_history_is_written_once_in_a_step_however_often_the_loss_is_computed(make_pairs):
    objective = with_history([0.0, 2.0, 2.0, 2.0, 2.0, 4.0], c1=1.0, c2=1.0)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    pairs = make_pairs()
    first, second = (objective(*pairs, EYE, torch.arange(6), 0.5) for _ in range(2))
    assert torch.equal(first.total, second.total)
    assert all(torch.equal(objective.state_dict()[name], tensor) for name, tensor in before.items())
    objective.after_step()
    assert (objective.counted == 2.0).all()  # 1, and 0.5 for each batch


def test_accumulated_batches_make_the_history_of_one_batch_each(make_pairs):
    together, apart = build(num_rows=12), build(num_rows=12)
    batches = [(*make_pairs(seed=seed), torch.arange(6) + 6 * seed) for seed in range(2)]
    for audio, text, index in batches:
        together(audio, text, EYE, index, 0.4)
        step(apart, audio, text, index=index, progress=0.4)
    together.after_step()
    for name, tensor in apart.state_dict().items():
        assert torch.equal(together.state_dict()[name], tensor)


def test_two_captions_of_a_clip_share_its_history():
    objective = build(num_rows=2)
    objective.remember([(torch.tensor([1, 1]), torch.tensor([1.0, 4.0]), 0.5)])
    assert objective.counted.tolist() == [0.0, 1.0]
    assert objective.history().mean_loss[1].item() == objective.last_loss[1].item() == 2.5


def test_a_resumed_objective_goes_on_bit_for_bit(make_pairs):
    options = {"num_rows": 6, "warmup": 0.3, "c1": 0.5, "c2": 0.5}
    whole, first, second = (build(**options) for _ in range(3))
    for number in range(3):
        for objective in (whole, first):
            step(objective, *make_pairs(seed=number), progress=number / 6)
    second.load_state_dict(first.state_dict())
    for number in range(3, 6):
        for objective in (whole, second):
            output = step(objective, *make_pairs(seed=number), progress=number / 6)
    assert output.stats["mean_weight"] < 1
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)


def test_a_history_is_found_below_added_terms():
    assert history_of(with_terms(build(num_rows=3), ["alignment=0.1"])).mean_loss.shape == (3,)
    assert history_of(registry.build("loss", "infonce")) is None


def test_a_row_that_is_none_of_the_training_set_is_refused(make_pairs):
    with pytest.raises(ShapeError, match="dbpm: the batch has rows 0 to 5, but only rows 0 to 4 have a history"):
        step(build(num_rows=5), *make_pairs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "dbpm: keeps a history of every training row; clapkit train supplies num_rows"),
        ({"num_rows": 0}, "num_rows=0: expected at least 1"),
        ({"num_rows": 3, "warmup": 1.5}, "warmup=1.5: expected a share of the training"),
        ({"num_rows": 3, "c1": 0.0}, "c1=0.0: expected more than 0 standard deviations"),
        ({"num_rows": 3, "c2": -1.0}, "c2=-1.0: expected more than 0 standard deviations"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
