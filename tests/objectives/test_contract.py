import pytest
import torch

from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.contract import (
    check_batch,
    full_precision,
    loss_output,
    require,
    require_choice,
    undecayed_group,
)
from clapkit.objectives.targets import Policy


def batch(batch_size=3, width=4):
    rows = torch.zeros(batch_size, width)
    return rows, rows, torch.eye(batch_size, dtype=torch.bool), torch.arange(batch_size)


def test_a_proper_batch_passes():
    check_batch(*batch())


def test_towers_of_different_shape_are_refused():
    audio, text, positives, index = batch()
    with pytest.raises(ShapeError, match=r"audio is \[3, 4\] and text \[3, 3\]"):
        check_batch(audio, text[:, :3], positives, index)


def test_a_single_pair_is_refused():
    with pytest.raises(ShapeError, match="batch of 1 pairs has no negatives"):
        check_batch(*batch(batch_size=1))


@pytest.mark.parametrize("positives", [torch.ones(3, 2, dtype=torch.bool), torch.ones(3, 3)])
def test_positives_of_other_shape_or_type_are_refused(positives):
    audio, text, _, index = batch()
    with pytest.raises(ShapeError, match=r"expected torch.bool \[3, 3\]"):
        check_batch(audio, text, positives, index)


def test_an_index_of_other_length_is_refused():
    audio, text, positives, index = batch()
    with pytest.raises(ShapeError, match=r"index is \[2\]; expected \[3\]"):
        check_batch(audio, text, positives, index[:2])


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_the_maths_runs_in_float32_or_better(given, expected):
    rows = torch.eye(2, dtype=given)
    with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(rows, rows) as (audio, text):
        assert audio.dtype == text.dtype == expected
        assert (audio @ text.T).dtype == expected


def test_numbers_come_out_under_their_names_in_float():
    total = torch.tensor(2.0, requires_grad=True)
    output = loss_output(total * 1, {"t2a": total * 3}, {"tau": 0.07, "bias": total.detach() - 5, "mean": total / 4})
    assert output.terms == {"t2a": 6.0}
    assert output.stats == {"tau": 0.07, "bias": -3.0, "mean": 0.5}
    assert output.total.requires_grad


def test_a_group_has_a_name_and_no_decay():
    parameter = torch.nn.Parameter(torch.zeros(()))
    assert undecayed_group("radius", [parameter], 0.1) == {
        "name": "radius",
        "params": [parameter],
        "lr": 0.1,
        "weight_decay": 0.0,
    }


def test_refusals_carry_the_message():
    with pytest.raises(ConfigError, match="^no$"):
        require(False, "no")
    require(True, "no")
    with pytest.raises(ConfigError, match="targets=hard: expected one of ignore, soft"):
        require_choice("targets", "hard", Policy)
    require_choice("targets", "soft", Policy)
