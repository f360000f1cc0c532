import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.schedules.mmts import build, size_shifts

# Ten rows in clusters of 1, 2, 3 and 4.
SIZES = torch.tensor([1, 2, 2, 3, 3, 3, 4, 4, 4, 4])
ALL = torch.arange(10)
STEPS = 1000  # a period is 200 steps


def make(**options):
    return build(**{"cluster_sizes": SIZES, "total_steps": STEPS} | options)


def at(schedule, step, index=ALL):
    return schedule(index, step / STEPS).tolist()


# Values.


def test_four_sizes_by_hand():
    # Size c is (c - 1) / 3 of the way from 0.05 to 0.20: 0.05, 0.10, 0.15, 0.20. At step 0 half the amplitude is added.
    assert at(make(), 0, torch.tensor([0, 1, 3, 6])) == pytest.approx([0.09, 0.14, 0.19, 0.24], abs=1e-15)
    assert make()(ALL, 0.0).shape == (10,)
    assert make()(ALL, 0.0).dtype == torch.float64


@pytest.mark.parametrize(("step", "added"), [(0, 0.04), (50, 0.0), (100, -0.04), (150, 0.0), (200, 0.04), (1000, 0.04)])
def test_quarters_of_a_period(step, added):
    # T = 1000 / 5 = 200; tau = sh + 0.04 cos(2 pi k / 200).
    shifts = [0.05, 0.10, 0.10, 0.15, 0.15, 0.15, 0.20, 0.20, 0.20, 0.20]
    assert at(make(), step) == pytest.approx([shift + added for shift in shifts], abs=1e-12)


def test_equals_the_form_of_the_released_code():
    # There the oscillation is (alpha (1 + cos) - alpha) / 2.
    schedule = make(amplitude=0.06)
    for step in range(0, STEPS, 37):
        cosine = math.cos(2 * math.pi * step / 200)
        for row, size in enumerate(SIZES.tolist()):
            expected = 0.5 * (0.06 * (1 + cosine) - 0.06) + 0.05 + (size - 1) / (4 - 1) * (0.20 - 0.05)
            assert schedule(torch.tensor([row]), step / STEPS).item() == pytest.approx(expected, abs=1e-12)


def test_mean_over_a_period_is_the_shift():
    values = torch.stack([make()(ALL, step / STEPS) for step in range(200)])
    torch.testing.assert_close(values.mean(dim=0), make(amplitude=0.0)(ALL, 0.0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shift_scale", ["linear", "log", "rank"])
def test_larger_clusters_are_warmer_and_the_extremes_are_hit(shift_scale):
    sizes = torch.tensor([1, 1, 2, 3, 7, 50, 51, 4000])
    values = build(cluster_sizes=sizes, amplitude=0.0, shift_scale=shift_scale)(torch.arange(8), 0.3).tolist()
    assert values[0] == values[1] == 0.05
    assert values[-1] == 0.20
    assert values == sorted(values)
    assert len(set(values)) == 7


def test_a_giant_cluster_squashes_the_others_under_linear_only():
    # Sizes 1, 10, 100, 10 000: (10 - 1) / 9999 of the way, against 1/4 by log and 1/3 by rank.
    sizes = [1, 10, 100, 10_000]
    by_scale = {scale: size_shifts(sizes, (0.0, 1.0), scale) for scale in ("linear", "log", "rank")}
    assert by_scale["linear"] == pytest.approx([0, 9 / 9999, 99 / 9999, 1])
    assert by_scale["log"] == pytest.approx([0, 1 / 4, 2 / 4, 1])
    assert by_scale["rank"] == pytest.approx([0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("shift_scale", ["linear", "log", "rank"])
def test_clusters_of_one_size_get_the_midpoint(shift_scale):
    schedule = build(cluster_sizes=torch.full((4,), 3), amplitude=0.0, shift_scale=shift_scale)
    assert schedule(torch.arange(4), 0.0).tolist() == pytest.approx([0.125] * 4)


def test_without_amplitude_and_with_equal_shifts_the_value_is_exact():
    for tau in (0.05, 0.07, 0.1, 1 / 3):
        schedule = make(amplitude=0.0, shift_min=tau, shift_max=tau)
        assert all(at(schedule, step) == [tau] * 10 for step in (0, 33, 100, 1000))


def test_every_value_is_positive_and_in_its_range():
    for quantity, lowest, highest in (("temperature", 0.01, 0.24), ("margin", 0.07, 0.40)):
        schedule = make(quantity=quantity)
        values = torch.cat([schedule(ALL, step / STEPS) for step in range(STEPS + 1)])
        assert values.min().item() == pytest.approx(lowest)
        assert values.max().item() == pytest.approx(highest)


# The phase.


def test_the_value_depends_on_progress_only_so_that_a_resumed_run_is_in_phase():
    used, fresh = make(), make()
    for step in range(137):
        used(ALL, step / STEPS)
    assert used.state_dict() == {}
    fresh.load_state_dict(used.state_dict())
    assert at(used, 137) == at(fresh, 137)
    assert at(used, 137) != at(fresh, 0)


def test_a_period_is_a_whole_number_of_steps():
    # 103 // 5 = 20: steps 0, 20, ... 100 are high, and steps 100 to 103 begin a sixth period.
    schedule = build(cluster_sizes=SIZES, total_steps=103)
    high = schedule(ALL, 0.0)
    for step in range(104):
        assert torch.equal(schedule(ALL, step / 103), high) == (step % 20 == 0)


def test_without_steps_a_period_is_a_share_of_the_training():
    schedule = build(cluster_sizes=SIZES, oscillations=4)
    assert schedule(ALL, 0.0).tolist() == schedule(ALL, 0.25).tolist() == schedule(ALL, 1.0).tolist()
    assert schedule(ALL, 0.125).tolist() == pytest.approx([value - 0.08 for value in schedule(ALL, 0.0).tolist()])


# Rows and devices.


def test_a_row_has_its_value_wherever_it_stands_in_the_batch():
    schedule, index = make(shift_scale="log"), torch.tensor([7, 0, 7, 3, 9])
    assert torch.equal(schedule(index, 0.37), schedule(ALL, 0.37)[index])


def test_casting_the_objective_leaves_the_values_alone():
    schedule = make()
    expected = schedule(ALL, 0.37)
    assert torch.equal(schedule.half()(ALL, 0.37), expected)


def test_the_sizes_move_with_the_module():
    schedule = make().to("meta")
    assert schedule.size_rank.device.type == "meta"
    assert list(schedule.parameters()) == []


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_without_a_cluster_size_is_refused(row):
    with pytest.raises(ShapeError, match=r"mmts: the batch has rows .* but only rows 0 to 9 have a cluster size"):
        make()(torch.tensor([3, row]), 0.0)


# Options.


def test_registry_reads_the_options():
    options = {"amplitude": "0.02", "shift_max": "none", "oscillations": "2", "shift_scale": "rank"}
    schedule = registry.build("schedule", "mmts", options | {"cluster_sizes": SIZES})
    assert (schedule.amplitude, schedule.oscillations) == (0.02, 2)
    assert schedule.shifts == pytest.approx([0.05, 0.10, 0.15, 0.20])


@pytest.mark.parametrize("quantity", ["temperature", "margin"])
@pytest.mark.parametrize("shift_min", [0.05, 0.04, -0.1])
def test_a_value_of_zero_or_less_is_refused(quantity, shift_min):
    with pytest.raises(ConfigError, match=f"the {quantity} would go from .*raise shift_min above half the amplitude"):
        make(amplitude=0.1, shift_min=shift_min, shift_max=0.2, quantity=quantity)


def test_a_margin_that_no_pair_can_win_by_is_refused():
    with pytest.raises(ConfigError, match="the margin would go from .* expected less than 2 everywhere; lower shift_max"):
        make(quantity="margin", shift_max=1.9)
    assert max(at(make(quantity="temperature", shift_max=1.97), 0)) == pytest.approx(2.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amplitude": -0.1}, "amplitude=-0.1: expected 0 or more"),
        ({"amplitude": math.nan}, "amplitude=nan: expected 0 or more"),
        ({"shift_max": math.inf}, "expected finite numbers"),
        ({"shift_min": 0.3}, "shift_max=0.2: expected at least shift_min=0.3"),
        ({"oscillations": 0}, "oscillations=0: expected at least 1"),
        ({"oscillations": 501}, "oscillations=501: a training of 1000 steps has less than 2 for each"),
        ({"shift_scale": "square"}, "shift_scale=square: expected one of linear, log, rank"),
        ({"quantity": "weight"}, "quantity=weight: expected one of temperature, margin"),
        ({"cluster_sizes": None}, "cluster_sizes: mmts needs the size of the cluster of every training row"),
        ({"cluster_sizes": torch.tensor([2, 0, 2])}, "found a size of 0, expected at least 1"),
        ({"cluster_sizes": torch.ones(3)}, r"cluster_sizes is torch.float32 \[3\]: expected torch.int64 \[num_rows\]"),
        ({"cluster_sizes": torch.ones(3, 1, dtype=torch.int64)}, r"cluster_sizes is torch.int64 \[3, 1\]"),
        ({"cluster_sizes": torch.ones(0, dtype=torch.int64)}, r"with at least one row"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
