import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clapkit import registry
from clapkit.errors import ShapeError
from clapkit.objectives import row_blocks
from clapkit.objectives.row_blocks import blocks_of, mean_over_rows

IN_BLOCKS = [
    ("infonce", {}),
    ("infonce", {"targets": "soft"}),
    ("siglip", {}),
    ("reweighted", {"sides": "uni"}),
    ("reweighted", {"base": "siglip"}),
    ("svr", {"radius": "adaptive", "batch_size": 11}),
    ("svr", {"radius": "adaptive", "batch_size": 11, "radius_bound": "hard", "sides": "uni"}),
    ("svr", {"radius": "static", "constrain_static": True, "base": "siglip"}),
    ("svr", {"radius": "ratio", "detach_pull_target": True}),
]


def positives_of(make_pairs):
    positives = torch.eye(11, dtype=torch.bool)
    for i, j in ((0, 1), (0, 9), (4, 10)):  # inside a block, across blocks
        positives[i, j] = positives[j, i] = True
    return positives


def run(name, options, make_pairs):
    torch.manual_seed(0)
    objective = registry.build("loss", name, options).double()
    for parameter in objective.parameters():  # the predictor's last layer starts at 0, where mistakes would not show
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    audio, text = (rows.requires_grad_() for rows in make_pairs(11, 5))
    output = objective(audio, text, positives_of(make_pairs), torch.arange(11), 0.3)
    output.total.backward()
    learned = [parameter.grad for parameter in objective.parameters()]
    return output, [audio.grad, text.grad, *learned]


@pytest.mark.parametrize(("name", "options"), IN_BLOCKS)
def test_blocks_of_rows_give_the_same_loss_terms_stats_and_gradients(make_pairs, monkeypatch, name, options):
    whole, whole_gradients = run(name, options, make_pairs)
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 7)  # 49 entries, so for 11 rows blocks of 3, 4 and 4
    blocks, gradients = run(name, options, make_pairs)
    assert blocks.total.item() == pytest.approx(whole.total.item(), abs=1e-12)
    assert blocks.terms == pytest.approx(whole.terms, abs=1e-12)
    assert blocks.stats == pytest.approx(whole.stats, abs=1e-12)
    for one, other in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_schedule_gives_rows_of_a_block_their_own_temperature(make_pairs, monkeypatch):
    sizes = torch.tensor([1, 5, 9, 20, 3, 3, 3, 7, 8, 9, 2])
    schedule = {"total_steps": 10, "cluster_sizes": sizes, "quantity": "temperature"}
    options = {"schedule": registry.build("schedule", "mmts", schedule)}
    whole, whole_gradients = run("infonce", options, make_pairs)
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 7)
    blocks, gradients = run("infonce", options, make_pairs)
    assert blocks.total.item() == pytest.approx(whole.total.item(), abs=1e-12)
    torch.testing.assert_close(gradients, whole_gradients, rtol=1e-10, atol=1e-12)


class LargestFloatTensor(TorchDispatchMode):
    """Remembers the largest tensor of floats that any operation gives back."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize(("name", "options"), [("infonce", {}), ("siglip", {}), ("svr", {"batch_size": 130})])
def test_no_float_matrix_of_all_pairs_is_made(make_pairs, monkeypatch, name, options):
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 40)
    objective = registry.build("loss", name, options)
    audio, text = (rows.requires_grad_() for rows in make_pairs(130, 8, dtype=torch.float32))
    with LargestFloatTensor() as largest:
        objective(audio, text, torch.eye(130, dtype=torch.bool), torch.arange(130), 0.0).total.backward()
    # A block of 12 x 130, not more than 40 x 40, or the first layer of the predictor, 64 x 130; all pairs would be 130 x 130.
    assert largest.numel == (64 * 130 if name == "svr" else 12 * 130)


def test_blocks_cover_all_rows_once_and_are_as_equal_as_they_can_be(monkeypatch):
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 7)
    assert [(rows.start, rows.stop) for rows in blocks_of(11)] == [(0, 3), (3, 7), (7, 11)]
    assert blocks_of(7) == [slice(0, 7)]


@pytest.mark.parametrize("num_rows", [4097, 8192, 12_345, 32_768, 100_000])
def test_no_block_has_more_entries_than_the_largest_whole_batch(num_rows):
    largest = max(rows.stop - rows.start for rows in blocks_of(num_rows))
    assert largest * num_rows <= row_blocks.MOST_ROWS**2 < 2.1 * largest * num_rows  # nor much fewer


def test_a_batch_wider_than_a_block_can_be_is_taken_row_by_row(monkeypatch):
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 2)
    assert [rows.stop - rows.start for rows in blocks_of(5)] == [1] * 5


def test_the_mean_over_rows_is_that_of_the_rows_and_not_of_the_blocks(monkeypatch):
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 4)
    anchors = torch.tensor([[1.0], [2.0], [6.0], [7.0], [8.0]])

    def own_partner(similarity, positives, scale):
        assert positives.diagonal().all()
        return scale * similarity.diagonal().mean()

    # Squares in blocks of two and three rows; the mean of block means would be ((1 + 4) / 2 + (36 + 49 + 64) / 3) / 2.
    mean = mean_over_rows(own_partner, anchors, anchors, torch.eye(5, dtype=torch.bool), 0.5)
    assert mean.item() == pytest.approx(0.5 * (1 + 4 + 36 + 49 + 64) / 5)


def test_the_order_of_the_batch_is_not_to_be_had_in_blocks(make_pairs, monkeypatch):
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 7)
    with pytest.raises(ShapeError, match="radius_input=raw has the order of the batch, which a block of 3 of 11 pairs"):
        run("svr", {"batch_size": 11, "radius_input": "raw"}, make_pairs)


def test_the_limit_is_what_the_documentation_says():
    assert row_blocks.MOST_ROWS == 4096
    assert math.isclose(row_blocks.MOST_ROWS**2 * 4 / 2**20, 64)  # MiB of a float32 matrix
