import math

import pytest
import torch
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import infonce
from clapkit.objectives.mochi import build, hardest_negatives, mixed_cosines, query_mixed_cosines


@pytest.fixture
def make():
    def make_one(seed=0, **options):
        torch.manual_seed(seed)
        return build(**{"start": 0.0} | options)

    return make_one


def drawn(batch_size, count, width, seed=3):
    return torch.rand(batch_size, count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def synthetic_rows(anchors, candidates, positives, mixed, query_mixed, *, count):
    """The paper's mixtures, one by one: [B, S, D]; the inputs are what the objective draws."""
    rows = []
    for i, anchor in enumerate(anchors):
        negatives = [j for j in range(len(candidates)) if not positives[i, j] and j != i]
        hardest = sorted(negatives, key=lambda j, a=anchor: -(a @ candidates[j]).item())[:count]
        made = []
        for which, other, share in mixed[i].tolist():
            first = int(which * len(hardest))
            second = (first + 1 + int(other * max(1, len(hardest) - 1))) % len(hardest)
            made.append(share * candidates[hardest[first]] + (1 - share) * candidates[hardest[second]])
        for which, share in query_mixed[i].tolist():
            made.append(share / 2 * anchor + (1 - share / 2) * candidates[hardest[int(which * len(hardest))]])
        rows.append(normalize(torch.stack(made), dim=1))
    return torch.stack(rows)


def synthetic_cosines(anchors, candidates, positives, mixed, query_mixed, *, count):
    similarity = anchors @ candidates.T
    hard = hardest_negatives(similarity, positives, count)
    of_pairs = mixed_cosines(similarity, candidates, hard, mixed)
    return torch.cat([of_pairs, query_mixed_cosines(similarity, anchors, candidates, hard, query_mixed)], dim=1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_cosines_are_those_of_unit_norm_mixtures_of_the_hardest_negatives(make_pairs, clones, count):
    audio, text = make_pairs()
    mixed, query_mixed = drawn(6, 7, 3), drawn(6, 4, 2)
    rows = synthetic_rows(text, audio, clones, mixed, query_mixed, count=count)
    cosines = synthetic_cosines(text, audio, clones, mixed, query_mixed, count=count)
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(6, 11, dtype=torch.float64))
    torch.testing.assert_close(cosines, torch.einsum("bd,bsd->bs", text, rows), rtol=0, atol=1e-7)


def test_gradients_reach_the_anchors_as_if_the_mixtures_were_constants_and_nothing_else(make_pairs):
    audio, text = (x.requires_grad_() for x in make_pairs())
    eye = torch.eye(6, dtype=torch.bool)
    mixed, query_mixed = drawn(6, 7, 3), drawn(6, 4, 2)
    synthetic_cosines(text, audio.detach(), eye, mixed, query_mixed, count=3).square().sum().backward()
    rows = synthetic_rows(text.detach(), audio.detach(), eye, mixed, query_mixed, count=3)
    anchors = text.detach().clone().requires_grad_()
    torch.einsum("bd,bsd->bs", anchors, rows).square().sum().backward()
    torch.testing.assert_close(text.grad, anchors.grad, rtol=0, atol=1e-6)


def test_two_of_a_kind_are_mixed_wherever_there_are_two():
    candidates = torch.eye(4, dtype=torch.float64)
    anchors = torch.tensor([[0.5, 0.4, 0.3, 0.2]], dtype=torch.float64).expand(4, 4)
    hard = hardest_negatives(anchors @ candidates.T, torch.eye(4, dtype=torch.bool), 3)
    # Half of each of two different axes: norm sqrt(1/2). Row 0 has the negatives 1, 2 and 3.
    halves = torch.cat([drawn(4, 50, 2), torch.full((4, 50, 1), 0.5, dtype=torch.float64)], dim=2)
    found = {round(value, 6) for value in mixed_cosines(anchors @ candidates.T, candidates, hard, halves)[0].tolist()}
    assert found == {round(pair / 2 * math.sqrt(2), 6) for pair in (0.4 + 0.3, 0.4 + 0.2, 0.3 + 0.2)}


def test_positives_are_never_mixed(make_pairs, clones):
    audio, text = make_pairs()
    eye = torch.eye(6, dtype=torch.bool)
    # The texts of group 0, 3 would be their own hardest negatives.
    hard = hardest_negatives(text @ text.T, clones, 5)
    for row in range(6):
        used = hard.rows[row, : hard.available[row, 0]].tolist()
        assert used
        assert not any(clones[row, place] for place in used)
    # Rows 0 and 3 have four negatives, 1, 2 and 5 three, row 4 five.
    assert hard.available.flatten().tolist() == [4, 3, 3, 4, 5, 3]
    assert hardest_negatives(text @ audio.T, eye, 2).available.flatten().tolist() == [2] * 6


def test_the_embedding_of_a_positive_changes_no_synthetic_negative(make_pairs, clones):
    audio, text = make_pairs()
    moved = audio.clone()
    moved[3] = -moved[3]  # a further positive of row 0
    draws = drawn(6, 9, 3)
    before, after = (mixed_cosines(text @ x.T, x, hardest_negatives(text @ x.T, clones, 4), draws)[0] for x in (audio, moved))
    assert torch.equal(before, after)


def test_the_gradient_of_the_loss_is_that_with_constant_columns(make_pairs, score, clones, make):
    objective = make(num_hardest=3, num_mixed=4, num_query_mixed=2, temperature="fixed", tau=0.5)
    ours, theirs = ([x.requires_grad_() for x in make_pairs()] for _ in range(2))
    score(objective, *ours, clones).total.backward()
    generator, total = objective.draws.generator(torch.arange(6)), 0
    for anchors, candidates in (theirs[::-1], theirs):
        mixed, query_mixed = (torch.from_numpy(generator.random((6, count, width))) for count, width in ((4, 3), (2, 2)))
        synthetic = synthetic_rows(anchors.detach(), candidates.detach(), clones, mixed, query_mixed, count=3)
        logits = anchors @ candidates.T / 0.5
        masked = logits.masked_fill(clones & ~torch.eye(6, dtype=torch.bool), -math.inf)
        columns = torch.cat([masked, torch.einsum("bd,bsd->bs", anchors, synthetic) / 0.5], dim=1)
        total = total + (columns.logsumexp(dim=1) - logits.diagonal()).mean() / 2
    total.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_sum_with_further_columns(make_pairs, score, clones, make, seed):
    audio, text = make_pairs(seed=seed)
    objective = make(num_hardest=3, num_mixed=4, num_query_mixed=2, temperature="fixed", tau=0.1)
    generator = objective.draws.generator(torch.arange(6))
    expected = 0.0
    for anchors, candidates, rows in ((text, audio, clones), (audio, text, clones.T)):
        mixed, query_mixed = (torch.from_numpy(generator.random((6, count, width))) for count, width in ((4, 3), (2, 2)))
        synthetic = synthetic_rows(anchors, candidates, rows, mixed, query_mixed, count=3)
        for i in range(6):
            columns = [candidates[j] for j in range(6) if j == i or not rows[i, j]] + list(synthetic[i])
            weights = [math.exp((anchors[i] @ column).item() / 0.1) for column in columns]
            expected += (math.log(sum(weights)) - (anchors[i] @ candidates[i]).item() / 0.1) / 6 / 2
    assert score(objective, audio, text, clones).total.item() == pytest.approx(expected, abs=1e-6)


def test_nothing_synthetic_is_infonce_bit_for_bit(make_pairs, score, clones, make):
    audio, text = make_pairs()
    reference = score(infonce.build(), audio, text, clones)
    for objective, progress in ((make(num_mixed=0, num_query_mixed=0), 0.5), (make(start=0.3), 0.29)):
        output = score(objective, audio, text, clones, progress=progress)
        assert output.total == reference.total
        assert output.terms == reference.terms
        assert output.stats["synthetic_share"] == 0


def test_it_starts_after_the_share_of_the_training(make_pairs, score, make):
    audio, text = make_pairs()
    objective = make(start=0.3)
    early, late = (score(objective, audio, text, progress=progress).total for progress in (0.29, 0.3))
    assert late > early


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_never_below_infonce(make_pairs, score, clones, make, seed):
    audio, text = make_pairs(seed=seed)
    output = score(make(seed), audio, text, clones)
    plain = score(infonce.build(), audio, text, clones).total.item()
    assert output.total.item() > plain
    assert output.stats["infonce"] == pytest.approx(plain)
    assert 0 < output.stats["synthetic_share"] < 1


def test_a_row_without_negatives_counts_zero(make_pairs, score, make):
    audio, text = (x.requires_grad_() for x in make_pairs())
    output = score(make(), audio, text, torch.ones(6, 6, dtype=torch.bool))
    output.total.backward()
    assert output.total.item() == 0
    assert audio.grad.abs().max() == 0


def test_a_learned_temperature_has_a_finite_gradient_beside_rows_without_negatives(make_pairs, score, make):
    audio, text = make_pairs()
    positives = torch.eye(6, dtype=torch.bool)
    positives[2] = positives[:, 2] = True
    objective = make()
    score(objective, audio, text, positives).total.backward()
    assert objective.temperature.log_scale.grad.isfinite()


def test_every_step_mixes_anew_and_a_restored_one_goes_on(make_pairs, score, make):
    audio, text = make_pairs()
    objective, other = make(), make(seed=9)
    first = score(objective, audio, text).total
    assert score(objective, audio, text).total == first  # a second pass over the batch
    objective.after_step()
    second = score(objective, audio, text).total
    assert second != first
    other.load_state_dict(objective.state_dict())
    assert score(other, audio, text).total == second


def test_counts_follow_the_batch_unless_given(make):
    assert make().counts(32, 0.5) == (8, 4, 4)
    assert make().counts(3, 0.5) == (1, 1, 1)
    assert make(num_hardest=100, num_mixed=7, num_query_mixed=0).counts(8, 0.5) == (7, 7, 0)


def test_every_row_has_the_temperature_of_its_schedule(make_pairs, score, make, per_row):
    audio, text = make_pairs()
    same = torch.full((6,), 0.1, dtype=torch.float64)
    flat, fixed = make(schedule=per_row(same)), make(temperature="fixed", tau=0.1)
    assert score(flat, audio, text).total.item() == pytest.approx(score(fixed, audio, text).total.item(), abs=1e-9)


def test_registry_reads_the_options_and_bad_ones_are_refused(score):
    objective = registry.build("loss", "mochi", {"num_hardest": "12", "num_mixed": "0", "start": "0.5"})
    assert (objective.num_hardest, objective.num_mixed, objective.num_query_mixed, objective.start) == (12, 0, None, 0.5)
    with pytest.raises(ConfigError, match="num_hardest=0: expected at least 1"):
        build(num_hardest=0)
    with pytest.raises(ConfigError, match="num_mixed=-1: expected a number of 0 or more"):
        build(num_mixed=-1)
    with pytest.raises(ConfigError, match="num_query_mixed=-2"):
        build(num_query_mixed=-2)
    with pytest.raises(ConfigError, match=r"start=1\.5: expected a share"):
        build(start=1.5)
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(), torch.ones(1, 2), torch.ones(1, 2))
