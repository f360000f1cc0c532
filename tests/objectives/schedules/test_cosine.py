import math

import pytest
import torch

from clapkit import registry
from clapkit.errors import ConfigError
from clapkit.objectives.schedules.cosine import build

INDEX = torch.arange(3)
STEPS = 100


def at(schedule, step):
    """The value at a step of 100, which all anchors share."""
    (value,) = set(schedule(INDEX, step / STEPS).tolist())
    return value


def test_quarters_of_a_period_by_hand():
    # Two periods of 50 steps from 0.1 to 0.5; a quarter on: 0.1 + 0.2 (1 + cos(pi / 2)) = 0.3.
    schedule = build(tau_min=0.1, tau_max=0.5, oscillations=2, total_steps=STEPS)
    for step, value in ((0, 0.5), (25, 0.1), (50, 0.5), (75, 0.1), (100, 0.5)):
        assert at(schedule, step) == pytest.approx(value, abs=1e-12)
    finer = build(tau_min=0.1, tau_max=0.5, oscillations=1, total_steps=STEPS)
    assert at(finer, 25) == pytest.approx(0.3, abs=1e-12)


def test_equals_the_formula_of_the_paper():
    # Full period 2 t_max = 20 steps: t_max = 10.
    schedule = build(total_steps=STEPS)
    for step in range(STEPS + 1):
        expected = 0.05 + (0.2 - 0.05) / 2 * (1 + math.cos(math.pi * step / 10))
        assert at(schedule, step) == pytest.approx(expected, abs=1e-12)


def test_by_epoch_the_value_stands_still_within_one():
    # 10 epochs of 10 steps, one period: epoch e has the value of step 10 e.
    by_step = build(oscillations=1, total_steps=STEPS)
    by_epoch = build(oscillations=1, total_steps=STEPS, unit="epoch", steps_per_epoch=10)
    for step in range(STEPS):
        assert at(by_epoch, step) == at(by_step, step - step % 10)
    assert len({round(at(by_epoch, step), 12) for step in range(STEPS)}) == 6  # 10 epochs, symmetric about the middle


def test_without_steps_a_period_is_a_share_of_the_training():
    schedule = build(oscillations=4)
    assert at(schedule, 0) == at(schedule, 25) == at(schedule, 100) == 0.2
    assert schedule(INDEX, 0.125).tolist() == pytest.approx([0.05] * 3)


def test_the_value_depends_on_progress_only_so_that_a_resumed_run_is_in_phase():
    used, fresh = build(total_steps=STEPS), build(total_steps=STEPS)
    for step in range(13):
        at(used, step)
    assert used.state_dict() == {}
    assert at(used, 13) == at(fresh, 13) != at(fresh, 0)


def test_an_equal_minimum_and_maximum_is_constant_and_exact():
    assert {at(build(tau_min=0.07, tau_max=0.07, total_steps=STEPS), step) for step in range(STEPS)} == {0.07}


def test_values_are_float64_for_each_row():
    values = build()(INDEX, 0.1)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    assert list(build().parameters()) == []


def test_registry_reads_the_options():
    schedule = registry.build("schedule", "cosine", {"tau_min": "0.1", "tau_max": "1.0", "oscillations": "3", "unit": "step"})
    assert (schedule.tau_min, schedule.tau_max, schedule.oscillations) == (0.1, 1.0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_min": 0.0}, "the temperature would go from 0 to 0.2: expected more than 0"),
        ({"tau_min": math.nan}, "tau_max=0.2: expected at least tau_min=nan"),
        ({"tau_max": math.inf}, "expected finite numbers"),
        ({"tau_max": 0.04}, "tau_max=0.04: expected at least tau_min=0.05"),
        ({"tau_max": 2.0, "quantity": "margin"}, "the margin would go from 0.05 to 2: expected less than 2"),
        ({"oscillations": 0}, "oscillations=0: expected at least 1"),
        ({"total_steps": 9}, "oscillations=5: a training of 9 steps has less than 2 for each; lower oscillations"),
        ({"unit": "batch"}, "unit=batch: expected one of step, epoch"),
        ({"quantity": "weight"}, "quantity=weight: expected one of temperature, margin"),
        ({"unit": "epoch", "total_steps": 100}, "unit=epoch: needs steps_per_epoch and total_steps"),
        ({"unit": "epoch", "steps_per_epoch": 10}, "unit=epoch: needs steps_per_epoch and total_steps"),
        ({"unit": "epoch", "total_steps": 100, "steps_per_epoch": 0}, "steps_per_epoch=0: expected at least 1"),
        (
            {"unit": "epoch", "total_steps": 100, "steps_per_epoch": 20},
            "unit=epoch with oscillations=5: 5 epochs are less than 2 for each",
        ),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
