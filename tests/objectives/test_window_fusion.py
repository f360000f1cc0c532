import math

import pytest
import torch
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import row_blocks
from clapkit.objectives.contract import needs_of
from clapkit.objectives.contract import score as score_in_context
from clapkit.objectives.window_fusion import FusedSimilarity, fused_similarity
from clapkit.types import Context

FORMS = [("infonce", {}), ("infonce", {"targets": "soft"}), ("infonce", {"targets": "ot"}), ("siglip", {})]
forms = pytest.mark.parametrize(("name", "options"), FORMS, ids=str)


def make_windows(audio, num_windows=3, *, seed=1):
    """Windows [B, W, D] around the clips, of which the clips have 1, 2, ..., W, 1, 2, ..."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(audio), num_windows, audio.shape[1], generator=generator, dtype=audio.dtype)
    is_window = torch.arange(num_windows) <= (torch.arange(len(audio)) % num_windows)[:, None]
    return normalize(audio[:, None] + noise, dim=2) * is_window[:, :, None], is_window


def call(objective, text, positives, windows, is_window):
    text, windows = (x.detach().clone().requires_grad_() for x in (text, windows))
    audio = normalize(windows.detach().sum(dim=1), dim=1)
    context = Context(windows=windows, is_window=is_window)
    output = score_in_context(objective, audio, text, positives, torch.arange(len(text)), 0.0, context)
    output.total.backward()
    return output, text.grad, windows.grad


def test_a_similarity_by_hand():
    text = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    windows = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    # Cosines 1 and 0; with tau_w = 1 / log 3 the weights are 3 / 4 and 1 / 4, so s = 3 / 4 * 1 + 1 / 4 * 0.
    found = fused_similarity(text, windows, torch.ones(1, 2, dtype=torch.bool), window_tau=1 / math.log(3))
    torch.testing.assert_close(found, torch.tensor([[0.75]], dtype=torch.float64))


@pytest.mark.parametrize("window_tau", [0.05, 0.1, 1.0])
def test_similarities_are_those_of_a_loop(make_pairs, window_tau):
    audio, text = make_pairs()
    windows, is_window = make_windows(audio)
    found = fused_similarity(text, windows, is_window, window_tau=window_tau)
    for i in range(6):
        for j in range(6):
            cosines = [float(text[i] @ windows[j, w]) for w in range(3) if is_window[j, w]]
            weights = [math.exp(cosine / window_tau) for cosine in cosines]
            expected = sum(w * c for w, c in zip(weights, cosines, strict=True)) / sum(weights)
            assert found[i, j].item() == pytest.approx(expected, abs=1e-12)


@forms
def test_one_window_is_exactly_the_plain_loss(make_pairs, clones, name, options):
    audio, text = make_pairs()
    plain = registry.build("loss", name, options)
    output = plain(audio, text, clones, torch.arange(6), 0.0)
    fused = FusedSimilarity(registry.build("loss", name, options))
    found, _, _ = call(fused, text, clones, audio[:, None], torch.ones(6, 1, dtype=torch.bool))
    assert found.total.item() == output.total.item()
    assert found.terms == output.terms
    assert found.stats == output.stats | {"largest_window_weight": 1.0}


@forms
def test_the_loss_is_that_of_the_fused_similarities(make_pairs, clones, name, options):
    audio, text = make_pairs()
    windows, is_window = make_windows(audio)
    objective = registry.build("loss", name, options)
    found, text_gradient, window_gradient = call(FusedSimilarity(objective), text, clones, windows, is_window)
    similarity = fused_similarity(text, windows, is_window, window_tau=0.1)
    scale = objective.temperature.scale(torch.arange(6), 0.0)
    expected, terms = objective.both_directions(similarity, clones, scale)
    assert found.total.item() == pytest.approx(expected.item(), abs=1e-12)
    assert found.terms.keys() == terms.keys()
    assert text_gradient.isfinite().all()
    assert window_gradient[is_window].abs().sum(dim=1).min() > 0  # every window learns
    assert window_gradient[~is_window].abs().max() == 0


def test_a_high_temperature_is_the_mean_of_cosines_and_a_low_one_the_largest(make_pairs):
    audio, text = make_pairs()
    windows, is_window = make_windows(audio)
    cosines = torch.einsum("id,jwd->ijw", text, windows)
    mean = (cosines * is_window).sum(dim=2) / is_window.sum(dim=1)
    largest = cosines.masked_fill(~is_window, -torch.inf).amax(dim=2)
    torch.testing.assert_close(fused_similarity(text, windows, is_window, window_tau=1e8), mean, atol=1e-7, rtol=0)
    torch.testing.assert_close(fused_similarity(text, windows, is_window, window_tau=1e-6), largest, atol=1e-9, rtol=0)
    between = fused_similarity(text, windows, is_window, window_tau=0.1)
    assert (between >= mean - 1e-12).all()
    assert (between <= largest + 1e-12).all()


@forms
def test_neither_the_order_of_windows_nor_padding_matters(make_pairs, clones, name, options):
    audio, text = make_pairs()
    windows, is_window = make_windows(audio)
    objective = FusedSimilarity(registry.build("loss", name, options))
    expected = call(objective, text, clones, windows, is_window)
    turned = [2, 0, 1]
    found = call(objective, text, clones, windows[:, turned], is_window[:, turned])
    torch.testing.assert_close(found[0].total, expected[0].total, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[2], expected[2][:, turned], rtol=1e-9, atol=1e-12)
    junk = windows.clone()
    junk[~is_window] = normalize(torch.ones(5, dtype=torch.float64), dim=0)
    found = call(objective, text, clones, junk, is_window)
    torch.testing.assert_close(found[0].total, expected[0].total, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-14)
    assert found[2][~is_window].abs().max() == 0


@forms
def test_blocks_of_captions_change_nothing(make_pairs, clones, monkeypatch, name, options):
    audio, text = make_pairs()
    windows, is_window = make_windows(audio)
    objective = FusedSimilarity(registry.build("loss", name, options))
    expected = call(objective, text, clones, windows, is_window)
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 6)  # 36 cosines of 18 windows: two captions at a time
    shapes = []
    monkeypatch.setattr(
        "clapkit.objectives.window_fusion.computed_twice",
        lambda function, *given: shapes.append(given[0].shape) or row_blocks.computed_twice(function, *given),
    )
    found = call(objective, text, clones, windows, is_window)
    assert shapes == [(2, 5)] * 3
    torch.testing.assert_close(found[0].total, expected[0].total, rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-12, atol=1e-14)


def test_the_log_says_how_far_a_caption_rests_on_one_window():
    text = torch.eye(2, dtype=torch.float64)
    windows = torch.eye(2, dtype=torch.float64)[torch.tensor([[0, 1], [1, 0]])]  # each clip: its caption, then the other's
    objective = FusedSimilarity(registry.build("loss", "infonce"), window_tau=1 / math.log(3))
    output, _, _ = call(objective, text, torch.eye(2, dtype=torch.bool), windows, torch.ones(2, 2, dtype=torch.bool))
    assert output.stats["largest_window_weight"] == pytest.approx(0.75)  # weights 3 / 4 and 1 / 4
    assert output.stats["positive_cosine"] == pytest.approx(0.75)


def test_half_precision_is_computed_in_float32(make_pairs, clones):
    audio, text = make_pairs(dtype=torch.bfloat16)
    windows, is_window = make_windows(audio)
    output, text_gradient, _ = call(FusedSimilarity(registry.build("loss", "infonce")), text, clones, windows, is_window)
    assert output.total.dtype == torch.float32
    assert text_gradient.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, _, _ = call(FusedSimilarity(registry.build("loss", "infonce")), text, clones, windows, is_window)
    assert again.total.item() == output.total.item()


def test_gradients_are_finite_when_everything_is_equal():
    rows = normalize(torch.ones(4, 5), dim=1)
    windows, is_window = rows[:, None].repeat(1, 3, 1), torch.ones(4, 3, dtype=torch.bool)
    objective = FusedSimilarity(registry.build("loss", "infonce"), window_tau=1e-3)
    output, text_gradient, window_gradient = call(objective, rows, torch.eye(4, dtype=torch.bool), windows, is_window)
    assert output.terms["t2a"] == pytest.approx(math.log(4), abs=1e-5)
    assert text_gradient.isfinite().all()
    assert window_gradient.isfinite().all()


def test_it_needs_windows_and_has_what_its_loss_has():
    wrapped = registry.build("loss", "siglip")
    objective = FusedSimilarity(wrapped)
    assert needs_of(objective) == {"windows"}
    assert objective.temperature is wrapped.temperature
    assert [group["name"] for group in objective.param_groups(1e-3, 0.1)] == ["temperature", "bias"]
    with torch.no_grad():
        wrapped.temperature.log_scale.fill_(100.0)
    objective.after_step()
    assert wrapped.temperature.log_scale.item() == pytest.approx(math.log(100))


def test_losses_that_need_vectors_of_clips_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match="--fusion softmax with svr: a support vector moves the one vector of a clip"):
        FusedSimilarity(registry.build("loss", "svr"))
    with pytest.raises(ConfigError, match="--fusion softmax with Triplet.*: needs the vectors of the clips"):
        FusedSimilarity(registry.build("loss", "triplet"))
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"window_tau=.*: expected a finite number greater than 0"):
            FusedSimilarity(registry.build("loss", "infonce"), window_tau=tau)


def test_batches_without_fitting_windows_are_refused(make_pairs, clones):
    audio, text = make_pairs()
    windows, is_window = make_windows(audio)
    objective = FusedSimilarity(registry.build("loss", "infonce"))

    def run(windows, is_window):
        return objective(audio, text, clones, torch.arange(6), 0.0, Context(windows=windows, is_window=is_window))

    with pytest.raises(ShapeError, match="FusedSimilarity: the batch brings no windows"):
        objective(audio, text, clones, torch.arange(6), 0.0)
    with pytest.raises(ShapeError, match=r"windows is \[6, 3, 4\]; expected \[6, W, 5\]"):
        run(windows[:, :, :4], is_window)
    with pytest.raises(ShapeError, match=r"is_window is torch.bool \[6\]; expected torch.bool \[6, 3\]"):
        run(windows, is_window[:, 0])
    with pytest.raises(ShapeError, match="is_window: a clip has no window"):
        run(windows, is_window & (torch.arange(6) > 0)[:, None])
    with pytest.raises(ShapeError, match="a batch of 1 pairs has no negatives"):
        objective(audio[:1], text[:1], clones[:1, :1], torch.arange(1), 0.0)
