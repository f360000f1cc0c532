import math

import pytest
import torch

from clapkit.errors import ConfigError
from clapkit.objectives.temperature import MAX_LOG_SCALE, Temperature


def test_learnable_scale_starts_at_the_inverse_of_tau():
    temperature = Temperature(0.07, "learnable")
    assert temperature.scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    assert temperature.value().item() == pytest.approx(0.07, rel=1e-6)
    assert temperature.log_scale.item() == pytest.approx(2.659, abs=1e-3)


def test_fixed_temperature_learns_nothing_and_is_exact():
    temperature = Temperature(0.07, "fixed")
    assert temperature.scale() == 1 / 0.07
    assert temperature.value() == 0.07
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
