import math

import pytest
import torch

from clapkit.errors import ConfigError
from clapkit.objectives.schedules import cosine, mmts
from clapkit.objectives.temperature import MAX_LOG_SCALE, Temperature, make_temperature

INDEX = torch.arange(4)


def test_learnable_scale_starts_at_the_inverse_of_tau():
    temperature = Temperature(0.07, "learnable")
    assert temperature.scale(INDEX, 0.0).item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert temperature.value(INDEX, 0.0).item() == pytest.approx(0.07, rel=1e-6)
    assert temperature.log_scale.item() == pytest.approx(2.659, abs=1e-3)


def test_fixed_temperature_learns_nothing_and_is_exact():
    temperature = Temperature(0.07, "fixed")
    assert temperature.scale(INDEX, 0.0) == 1 / 0.07
    assert temperature.value(INDEX, 0.0) == 0.07
    assert list(temperature.parameters()) == []
    assert temperature.param_groups(0.1) == []
    temperature.after_step()


@pytest.mark.parametrize(("moved_to", "kept"), [(-1.0, 0.0), (9.0, MAX_LOG_SCALE), (2.0, 2.0)])
def test_log_scale_is_clamped_in_place(moved_to, kept):
    temperature = Temperature(0.07, "learnable")
    parameter = temperature.log_scale
    with torch.no_grad():
        parameter.fill_(moved_to)
    temperature.after_step()
    assert temperature.log_scale is parameter
    assert parameter.item() == pytest.approx(kept)
    assert parameter.requires_grad


def test_scale_never_exceeds_100():
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(100)


def test_log_scale_is_its_own_group_without_decay():
    temperature = Temperature(0.07, "learnable")
    (group,) = temperature.param_groups(0.1)
    assert group["name"] == "temperature"
    assert group["weight_decay"] == 0
    assert group["params"][0] is temperature.log_scale


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    with pytest.raises(ConfigError, match="expected a positive temperature"):
        Temperature(tau, "fixed")


@pytest.mark.parametrize("tau", [0.009, 1.1])
def test_a_learnable_temperature_outside_its_range_is_refused(tau):
    with pytest.raises(ConfigError, match=r"stays in \[0.01, 1\]"):
        Temperature(tau, "learnable")


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="temperature=warm: expected one of learnable, fixed"):
        Temperature(0.07, "warm")


# Schedules.


def by_cluster(**options):
    # Sizes 1, 2, 3, 3: shifts 0.05, 0.125, 0.2, 0.2; at progress 0 half the amplitude, 0.04, is added.
    return mmts.build(cluster_sizes=torch.tensor([1, 2, 3, 3]), **options)


def test_a_schedule_gives_one_scale_for_each_row():
    temperature = Temperature(0.07, by_cluster())
    scale = temperature.scale(INDEX, 0.0, dtype=torch.float64)
    assert scale.shape == (4, 1)
    assert scale.flatten().tolist() == pytest.approx([1 / 0.09, 1 / 0.165, 1 / 0.24, 1 / 0.24])
    assert temperature.scale(INDEX, 0.0).dtype == torch.float32


@pytest.mark.parametrize("tau", [0.05, 0.07, 0.1, 0.013, 1 / 3, 0.7])
def test_a_constant_schedule_has_the_very_scale_of_a_fixed_temperature(tau):
    # Rounding tau to float32 before it is inverted would be off by one unit in the last place for some of them.
    similarity = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    constant = Temperature(0.07, by_cluster(amplitude=0.0, shift_min=tau, shift_max=tau)).scale(INDEX, 0.3)
    assert torch.equal(constant * similarity, Temperature(tau, "fixed").scale(INDEX, 0.3) * similarity)


def test_the_log_shows_mean_and_extremes_of_a_schedule():
    temperature = Temperature(0.07, by_cluster())
    assert temperature.value(INDEX, 0.0).item() == pytest.approx(0.18375)  # (0.09 + 0.165 + 0.24 + 0.24) / 4
    stats = {name: value.item() for name, value in temperature.stats(INDEX, 0.0).items()}
    assert stats == pytest.approx({"temperature": 0.18375, "temperature_min": 0.09, "temperature_max": 0.24})
    assert Temperature(0.07, "fixed").stats(INDEX, 0.0) == {"temperature": 0.07}


def test_a_schedule_learns_nothing_and_keeps_nothing():
    temperature = Temperature(0.07, by_cluster())
    temperature.after_step()
    assert temperature.param_groups(0.1) == []
    assert temperature.state_dict() == {}


def test_options_describe_a_temperature():
    assert make_temperature("fixed", None, None, default=0.07).tau == 0.07
    assert make_temperature("fixed", 0.2, None, default=0.07).tau == 0.2
    schedule = cosine.build()
    assert make_temperature("learnable", None, schedule, default=0.07).schedule is schedule


def test_a_temperature_beside_a_schedule_is_refused():
    with pytest.raises(ConfigError, match="tau=0.1: the schedule gives every anchor its temperature; leave tau out"):
        make_temperature("learnable", 0.1, cosine.build(), default=0.07)
