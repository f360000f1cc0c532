import math

import pytest
import torch

from clapkit.objectives.terms.embedding_l1 import build, embedding_l1

EYE = torch.eye(6, dtype=torch.bool)


def test_two_rows_by_hand():
    # Audio (x, y): mean|A| = 2 / 4, |A|_F = sqrt(2): 0.353553. Text (0.6, -0.8) twice: mean|T| = 2.8 / 4, sqrt(2): 0.494975.
    audio, text = torch.eye(2), torch.tensor([[0.6, -0.8], [0.6, -0.8]])
    assert build()(audio, text, torch.eye(2, dtype=torch.bool)).item() == pytest.approx(0.848528, abs=1e-6)


def test_equals_the_loop(make_pairs):
    pairs = make_pairs()
    expected = 0.0
    for embeddings in pairs:
        entries = [x for row in embeddings.tolist() for x in row]
        expected += sum(abs(x) for x in entries) / len(entries) / math.sqrt(sum(x * x for x in entries))
    assert embedding_l1(*pairs, EYE).item() == pytest.approx(expected, abs=1e-12)


def test_is_least_for_rows_with_one_entry_and_most_for_flat_rows():
    # B = D = 4, norm sqrt(4) = 2. One entry each: 1/4 / 2, twice: 0.25. Flat, +-1/2: 1/2 / 2, twice: 0.5 = 2 / sqrt(B D).
    sparse, flat = torch.eye(4), torch.full((4, 4), 0.5)
    diagonal = torch.eye(4, dtype=torch.bool)
    assert embedding_l1(sparse, sparse, diagonal).item() == pytest.approx(0.25)
    assert embedding_l1(flat, -flat, diagonal).item() == pytest.approx(0.5)


def test_signs_do_not_matter(make_pairs):
    audio, text = make_pairs()
    assert embedding_l1(audio, text, EYE).item() == pytest.approx(embedding_l1(-audio, text.abs(), EYE).item(), abs=1e-12)


def test_depends_on_the_axes(make_pairs):
    rows = torch.eye(6, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert embedding_l1(rows @ turn, rows @ turn, EYE) > 1.5 * embedding_l1(rows, rows, EYE)
