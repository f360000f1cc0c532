import copy
from typing import Any

import pytest
import torch
from torch import nn

from clapkit.training.batch_norm import batch_norm_in_training, statistics_kept, synchronise_batch_norm
from clapkit.training.distributed import OneProcess

Seen = dict[str, list[dict[str, Any]]]
KINDS = [
    f"{kind} {momentum} {affine}"
    for kind in ("BatchNorm1d", "BatchNorm2d")
    for momentum in (0.1, None)
    for affine in (True, False)
]


class Pretended(OneProcess):
    """Two processes of which the other has the same part; sums are double."""

    size = 2

    def sum_(self, tensors: Any) -> None:
        for tensor in tensors:
            tensor.mul_(2)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_normalise_like_one(two_processes: Seen, kind: str) -> None:
    first, second = (seen[kind] for seen in two_processes["normalised"])
    alone = first["alone"]
    for name in ("output", "input gradient", "evaluated"):  # two rows on the first process, three on the second
        torch.testing.assert_close(torch.cat([first[name], second[name]]), alone[name], rtol=1e-10, atol=1e-10)
    for found, expected in zip(first["gradients"], alone["gradients"], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert list(first["state"]) == list(alone["state"]) == list(nn.BatchNorm1d(1, affine=kind.endswith("True")).state_dict())
    for name, expected in alone["state"].items():
        torch.testing.assert_close(first["state"][name], expected, rtol=1e-12, atol=0)
        assert torch.equal(first["state"][name], second["state"][name])
    assert first["state"]["num_batches_tracked"] == 2


def test_variance_is_that_of_all_rows_and_unbiased_in_the_statistics() -> None:
    norm = nn.BatchNorm1d(1, momentum=1.0)
    synchronise_batch_norm(norm, Pretended())
    output = norm(torch.tensor([[1.0], [3.0]]))
    # Rows 1, 3, 1, 3 of two processes: mean 2, biased variance 1, unbiased 4 / 3.
    assert output.flatten().tolist() == pytest.approx([-1.0, 1.0], abs=1e-4)
    assert norm.running_mean.item() == 2.0
    assert norm.running_var.item() == pytest.approx(4 / 3)


def test_it_stays_the_same_module_for_everyone_else() -> None:
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
    norm, before = encoder[1], copy.deepcopy(encoder.state_dict())
    synchronise_batch_norm(encoder, Pretended())
    assert encoder[1] is norm
    assert isinstance(norm, nn.BatchNorm1d)
    assert list(encoder.state_dict()) == list(before)
    with pytest.raises(ValueError, match="expected 2D or 3D"):
        norm(torch.zeros(2, 4, 1, 1))
    x = torch.randn(5, 3)
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    plain.load_state_dict(before)
    assert torch.equal(encoder.eval()(x), plain(x))  # in evaluation it is torch's own


def test_half_precision_is_normalised_in_float32_and_given_back() -> None:
    norm = nn.BatchNorm2d(3)
    synchronise_batch_norm(norm, Pretended())
    x = torch.randn(4, 3, 2, 2).bfloat16()
    output = norm(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, nn.BatchNorm2d(3)(x.float()).bfloat16())


def test_one_process_is_left_alone() -> None:
    norm = nn.BatchNorm2d(3)
    synchronise_batch_norm(norm, OneProcess())
    assert type(norm) is nn.BatchNorm2d


def test_batch_norms_that_look_at_the_batch_are_named() -> None:
    encoder = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "b": nn.BatchNorm2d(2)})
    encoder["b"].eval()
    assert batch_norm_in_training(encoder) == ["a.1"]
    assert batch_norm_in_training(encoder.eval()) == []
    assert batch_norm_in_training(nn.LayerNorm(2)) == []


def test_a_repeated_pass_normalises_alike_and_leaves_the_statistics() -> None:
    frozen, norm = nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3)
    x = torch.randn(6, 3)
    expected = norm(x)
    before = copy.deepcopy(norm.state_dict())
    with statistics_kept(nn.ModuleList([norm, frozen])):
        assert torch.equal(norm(x), expected)
        assert torch.equal(frozen(x), nn.BatchNorm1d(3).eval()(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())
    norm(x)
    assert norm.num_batches_tracked == 2  # it counts again afterwards


def test_statistics_count_again_after_an_error() -> None:
    norm = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="expected 2D"), statistics_kept(norm):
        norm(torch.zeros(1))
    assert norm.track_running_stats
