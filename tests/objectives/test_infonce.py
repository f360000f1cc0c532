import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.infonce import build
from clapkit.objectives.schedules import cosine, mmts


def loop_oracle(audio, text, positives, *, tau, soft):
    """InfoNCE entry by entry."""
    batch_size, total = len(audio), 0.0
    for anchors, candidates, row_of in ((text, audio, positives), (audio, text, positives.T)):
        for i in range(batch_size):
            logit = [(anchors[i] @ candidates[j]).item() / tau for j in range(batch_size)]
            if soft:
                targets = [j for j in range(batch_size) if row_of[i, j]]
                allowed = range(batch_size)
            else:
                targets = [i]
                allowed = [j for j in range(batch_size) if j == i or not row_of[i, j]]
            log_sum = math.log(sum(math.exp(logit[j]) for j in allowed))
            total += sum(log_sum - logit[j] for j in targets) / len(targets) / batch_size / 2
    return total


def test_two_orthogonal_pairs_by_hand(score):
    # s = identity, tau = 1: each row gives -1 + ln(e + 1) = 0.31326.
    rows = torch.eye(2)
    output = score(build(temperature="fixed", tau=1.0), rows, rows)
    assert output.total.item() == pytest.approx(math.log(math.e + 1) - 1, abs=1e-6)
    assert output.terms == pytest.approx({"t2a": 0.313262, "a2t": 0.313262}, abs=1e-5)
    assert output.stats == pytest.approx({"temperature": 1.0, "positive_cosine": 1.0})


@pytest.mark.parametrize("targets", ["ignore", "soft"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_loop(make_pairs, score, clones, targets, seed):
    audio, text = make_pairs(seed=seed)
    output = score(build(temperature="fixed", targets=targets), audio, text, clones)
    expected = loop_oracle(audio, text, clones, tau=0.07, soft=targets == "soft")
    assert output.total.item() == pytest.approx(expected, abs=1e-10)


def test_total_is_the_mean_of_its_terms(make_pairs, score):
    output = score(build(), *make_pairs())
    assert output.total.item() == pytest.approx((output.terms["t2a"] + output.terms["a2t"]) / 2)


def test_equal_embeddings_cost_the_log_of_the_batch_size(score):
    rows = torch.ones(5, 4) / 2
    assert score(build(), rows, rows).total.item() == pytest.approx(math.log(5), abs=1e-5)


def test_a_constant_on_a_row_leaves_its_direction_alone():
    objective = build()
    similarity, positives = torch.rand(4, 4, dtype=torch.float64), torch.eye(4, dtype=torch.bool)
    shifted = similarity + torch.tensor([0.0, 1.0, -2.0, 3.0], dtype=torch.float64)[:, None]
    before, after = (objective.one_direction(s, positives, 2.0).item() for s in (similarity, shifted))
    assert before == pytest.approx(after, abs=1e-12)


def test_swapping_the_towers_changes_nothing(make_pairs, score, clones):
    audio, text = make_pairs()
    objective = build()
    there, back = score(objective, audio, text, clones), score(objective, text, audio, clones)
    assert there.total.item() == pytest.approx(back.total.item(), abs=1e-12)


@pytest.mark.parametrize("targets", ["ignore", "soft"])
def test_gradient_is_probability_minus_target(clones, targets):
    # dL/ds_ij = (P_ij - y_ij) / (N tau)
    similarity = torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    build(targets=targets).one_direction(similarity, clones, 1 / 0.2).backward()
    eye = torch.eye(6, dtype=torch.bool)
    if targets == "soft":
        y, logits = clones.double() / clones.sum(dim=1, keepdim=True), similarity / 0.2
    else:
        y, logits = eye, (similarity / 0.2).masked_fill(clones & ~eye, -math.inf)
    expected = (logits.softmax(dim=1) - y.double()) / (6 * 0.2)
    torch.testing.assert_close(similarity.grad, expected.detach(), atol=1e-12, rtol=0)


def test_cold_limit_is_the_hardest_violation():
    # tau L -> max(0, max_j s_ij - s_ii): row 0 violates by 0.3, row 1 not at all; the mean is 0.15.
    similarity = torch.tensor([[0.2, 0.5], [0.1, 0.6]], dtype=torch.float64)
    loss = build().one_direction(similarity, torch.eye(2, dtype=torch.bool), 1e3)
    assert 1e-3 * loss.item() == pytest.approx(0.15, abs=1e-9)


def test_a_masked_entry_has_no_influence_at_all():
    # Masking behind the softmax would leave the entry in the sum; a finite mask would show at this temperature.
    objective = build()
    positives = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    similarity = torch.tensor([[0.1, -0.9, 0.3], [0.5, 0.2, 0.1], [0.0, 0.4, 0.2]], dtype=torch.float64)
    reference = objective.one_direction(similarity, positives, 100.0).item()
    for value in (-1.0, 0.0, 1.0):
        changed = similarity.clone()
        changed[0, 1] = value
        assert objective.one_direction(changed, positives, 100.0).item() == reference


def test_masking_a_dissimilar_pair_does_not_turn_it_into_a_hard_negative():
    # A logit that is multiplied by a large negative number instead becomes huge where the cosine is negative.
    objective = build()
    similarity = torch.tensor([[0.5, -0.8], [-0.8, 0.5]], dtype=torch.float64)
    loss = objective.one_direction(similarity, torch.ones(2, 2, dtype=torch.bool), 1 / 0.07)
    assert loss.item() == 0  # nothing left to beat


def test_soft_targets_without_further_positives_are_hard_targets(make_pairs, score):
    audio, text = make_pairs()
    hard, soft = (score(build(targets=targets), audio, text).total.item() for targets in ("ignore", "soft"))
    assert hard == pytest.approx(soft, abs=1e-12)


def test_learnable_scale_gets_a_gradient_and_is_clamped(make_pairs, score):
    objective = build(tau=0.02)
    (group,) = objective.param_groups(1.0, 0.1)
    optimizer = torch.optim.SGD([{**group, "lr": 1e6}])
    score(objective, *make_pairs(dtype=torch.float32)).total.backward()
    assert objective.temperature.log_scale.grad.abs() > 0
    optimizer.step()
    objective.after_step()
    assert 0 <= objective.temperature.log_scale.item() <= math.log(100) + 1e-6


def test_collapsed_embeddings_give_finite_gradients(score):
    audio = (torch.ones(4, 3) / math.sqrt(3)).requires_grad_()
    output = score(build(), audio, audio.detach())
    output.total.backward()
    assert audio.grad.isfinite().all()


def test_half_precision_inputs_are_scored_in_float32(make_pairs, score):
    audio, text = make_pairs(batch_size=16, width=32)
    exact = score(build(), audio, text).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = score(build(), audio.bfloat16(), text.bfloat16()).total
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact, abs=1e-2)


def test_float64_inputs_stay_float64(make_pairs, score):
    assert score(build(), *make_pairs()).total.dtype == torch.float64


def test_registry_reads_the_options():
    objective = registry.build("loss", "infonce", {"temperature": "fixed", "tau": "0.1", "targets": "soft"})
    assert (objective.temperature.tau, objective.targets) == (0.1, "soft")
    assert objective.param_groups(0.1, 0.1) == []


def test_bad_input_is_refused(score):
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(), torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ConfigError, match="targets=hard"):
        build(targets="hard")
    with pytest.raises(ConfigError, match="tau=0"):
        build(tau=0)


# Schedules.

SIZES = torch.tensor([1, 2, 2, 4, 4, 7])


def by_cluster(**options):
    return mmts.build(cluster_sizes=SIZES, **options)


def test_row_i_is_infonce_with_the_temperature_of_row_i_alone(make_pairs, score):
    # All six temperatures at progress 0.13, then each row of both directions by itself.
    audio, text = make_pairs()
    temperatures = by_cluster()(torch.arange(6), 0.13).tolist()
    assert len(set(temperatures)) == 4
    output = score(build(schedule=by_cluster()), audio, text, progress=0.13)
    for side, similarity in (("t2a", text @ audio.T), ("a2t", audio @ text.T)):
        rows = [
            torch.logsumexp(row / tau, 0) - row[i] / tau
            for i, (row, tau) in enumerate(zip(similarity, temperatures, strict=True))
        ]
        assert output.terms[side] == pytest.approx(sum(rows).item() / 6, abs=1e-12)


@pytest.mark.parametrize("targets", ["ignore", "soft"])
def test_a_schedule_equals_the_loop_row_by_row(make_pairs, score, clones, targets):
    audio, text = make_pairs()
    temperatures = by_cluster()(torch.arange(6), 0.4).tolist()
    expected = 0.0
    for tau in set(temperatures):
        # The loop with one temperature, of which only the rows that have it are kept.
        for i, own in enumerate(temperatures):
            if own == tau:
                expected += loop_oracle_row(audio, text, clones, i, tau=tau, soft=targets == "soft")
    total = score(build(schedule=by_cluster(), targets=targets), audio, text, clones, progress=0.4).total
    assert total.item() == pytest.approx(expected, abs=1e-10)


def loop_oracle_row(audio, text, positives, i, *, tau, soft):
    """The share of anchor i, of both sides, in InfoNCE."""
    total = 0.0
    for anchors, candidates, row_of in ((text, audio, positives), (audio, text, positives.T)):
        logit = [(anchors[i] @ candidate).item() / tau for candidate in candidates]
        targets = [j for j in range(6) if row_of[i, j]] if soft else [i]
        allowed = [j for j in range(6) if soft or j == i or not row_of[i, j]]
        log_sum = math.log(sum(math.exp(logit[j]) for j in allowed))
        total += sum(log_sum - logit[j] for j in targets) / len(targets) / 6 / 2
    return total


def test_the_temperature_belongs_to_the_anchor_and_not_to_the_candidate(make_pairs, score):
    # Dividing S by its columns' temperatures for t2a, or S^T by its columns', is another loss.
    audio, text = make_pairs()
    objective, positives = build(schedule=by_cluster()), torch.eye(6, dtype=torch.bool)
    total = score(objective, audio, text).total
    similarity, scale = text @ audio.T, objective.temperature.scale(torch.arange(6), 0.0, dtype=torch.float64)
    by_row = [torch.nn.functional.cross_entropy(scale * s, torch.arange(6)) for s in (similarity, similarity.T)]
    by_column = [torch.nn.functional.cross_entropy(scale.T * s, torch.arange(6)) for s in (similarity, similarity.T)]
    one_matrix = objective.one_direction(scale * similarity, positives, 1.0)
    transposed = objective.one_direction((scale * similarity).T, positives, 1.0)
    torch.testing.assert_close(total, sum(by_row) / 2, atol=1e-12, rtol=0)
    assert abs(total - sum(by_column) / 2) > 1e-3
    assert abs(total - (one_matrix + transposed) / 2) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.07, 0.013, 0.3])
def test_a_constant_schedule_is_infonce_bit_for_bit(make_pairs, score, clones, dtype, tau):
    audio, text = (rows.requires_grad_() for rows in make_pairs(dtype=dtype))
    flat = by_cluster(amplitude=0.0, shift_min=tau, shift_max=tau)
    results = []
    for objective in (build(temperature="fixed", tau=tau), build(schedule=flat)):
        total = score(objective, audio, text, clones, progress=0.3).total
        results.append((total, *torch.autograd.grad(total, (audio, text))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_clusters_of_one_size_are_infonce_with_the_midpoint(make_pairs, score):
    even = mmts.build(cluster_sizes=torch.full((6,), 4), amplitude=0.0)
    totals = [
        score(objective, *make_pairs()).total for objective in (build(schedule=even), build(temperature="fixed", tau=0.125))
    ]
    torch.testing.assert_close(*totals, atol=1e-12, rtol=0)


def test_the_cosine_schedule_has_one_temperature_for_all(make_pairs, score):
    audio, text = make_pairs()
    schedule = cosine.build(oscillations=1)
    for progress, tau in ((0.0, 0.2), (0.5, 0.05), (1.0, 0.2)):
        plain = score(build(temperature="fixed", tau=tau), audio, text).total
        scheduled = score(build(schedule=schedule), audio, text, progress=progress)
        torch.testing.assert_close(scheduled.total, plain, atol=1e-12, rtol=0)
        assert scheduled.stats["temperature_min"] == scheduled.stats["temperature_max"] == pytest.approx(tau)


def test_losses_are_reported_as_they_are_and_the_temperatures_beside_them(make_pairs, score):
    # Not multiplied by tau: that would make the log another quantity than without a schedule.
    output = score(build(schedule=by_cluster()), *make_pairs())
    assert output.total.item() == pytest.approx((output.terms["t2a"] + output.terms["a2t"]) / 2)
    assert output.stats["temperature_min"] == pytest.approx(0.09)
    assert output.stats["temperature_max"] == pytest.approx(0.24)
    # Shifts of sizes 1, 2, 2, 4, 4, 7: 0.05 + (c - 1) 0.025; mean 0.05 + 0.025 * 14 / 6, and 0.04 on top.
    assert output.stats["temperature"] == pytest.approx(0.09 + 0.025 * 14 / 6)


def test_the_index_decides_about_the_temperature(make_pairs):
    audio, text = make_pairs()
    objective, positives = build(schedule=by_cluster()), torch.eye(6, dtype=torch.bool)
    forwards = objective(audio, text, positives, torch.arange(6), 0.0).total
    backwards = objective(audio, text, positives, torch.arange(6).flip(0), 0.0).total
    assert abs(forwards - backwards) > 1e-3
    with pytest.raises(ShapeError, match="mmts: the batch has rows 1 to 6"):
        objective(audio, text, positives, torch.arange(1, 7), 0.0)


def test_a_tau_beside_a_schedule_is_refused():
    with pytest.raises(ConfigError, match="tau=0.07: the schedule gives every anchor its temperature"):
        build(tau=0.07, schedule=by_cluster())
