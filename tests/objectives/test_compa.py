import copy
import math

import pytest
import torch
from torch.nn.functional import normalize, softplus

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import compa, infonce, row_blocks
from clapkit.objectives.contract import needs_of
from clapkit.objectives.contract import score as score_any
from clapkit.types import Context

BASES = ["infonce", "siglip", "svr", "reweighted"]
EYE = torch.eye(6, dtype=torch.bool)
# Rows with nothing, false ones, a true one, both, padding in between.
TRUTH = torch.tensor([[0, 0, 0], [-1, -1, -1], [1, 0, 0], [-1, 1, 0], [-1, 0, 1], [1, -1, 1]], dtype=torch.int8)


def make(base="infonce", **options):
    torch.manual_seed(0)
    known = {"batch_size": 6} if base == "svr" else {}
    return compa.build(wrapped=registry.build("loss", base, known), **options)


@pytest.fixture
def batch(make_pairs):
    """Audio, text [B, D] and variants [B, 3, D] that are between random and the caption."""
    audio, text = make_pairs()
    noise = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return audio, text, normalize(text[:, None] + 0.7 * noise, dim=2)


def call(objective, audio, text, variants, truth=TRUTH, positives=EYE, index=None):
    index = torch.arange(len(audio)) if index is None else index
    return objective(audio, text, positives, index, 0.3, Context(variants=variants, variant_truth=truth))


def gradients(objective, tensors, *rest, **options):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    call(objective, *leaves, *rest, **options).total.backward()
    return [leaf.grad for leaf in leaves]


def test_stage_two_by_hand():
    # Clips and captions on the axes: l = [[2, 0], [0, 2]] at tau 0.5. The flipped caption of clip 0 is at cosine 0.5, logit 1,
    # that of clip 1 at -1, logit -2. t2a: ln(1 + e^-2). a2t: ln(e^2 + 1 + e^1) - 2 and ln(e^2 + 1 + e^-2) - 2.
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=0.5))
    eye = torch.eye(2, dtype=torch.float64)
    variants = torch.tensor([[[0.5, math.sqrt(0.75)]], [[0.0, -1.0]]], dtype=torch.float64)
    output = call(objective, eye, eye, variants, torch.full((2, 1), -1), eye.bool())
    towards_audio = math.log(1 + math.exp(-2))
    towards_text = (math.log(math.exp(2) + 1 + math.e) + math.log(math.exp(2) + 1 + math.exp(-2))) / 2 - 2
    assert output.total.item() == pytest.approx((towards_audio + towards_text) / 2, abs=1e-12)
    assert output.stats["false_share"] == 1
    assert output.stats["above_false"] == 1


def test_stage_three_by_hand():
    # As above, and clip 0 has a part at cosine 0.5: a2t of clip 0 averages the logits 2 and 1 under ln(e^2 + 1 + e^1); t2a has
    # the part, logits 1 and 2 sqrt(0.75), as a second anchor of clip 0.
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=0.5))
    eye = torch.eye(2, dtype=torch.float64)
    variants = torch.tensor([[[0.5, math.sqrt(0.75)]], [[1.0, 0.0]]], dtype=torch.float64)
    output = call(objective, eye, eye, variants, torch.tensor([[1], [0]]), eye.bool())
    caption = math.log(1 + math.exp(-2))
    part = math.log(math.e + math.exp(2 * math.sqrt(0.75))) - 1
    towards_text = (math.log(math.exp(2) + 1 + math.e) - 1.5 + caption) / 2
    towards_audio = ((caption + part) / 2 + caption) / 2
    assert output.total.item() == pytest.approx((towards_audio + towards_text) / 2, abs=1e-12)
    assert "above_false" not in output.stats


def by_loops(audio, text, variants, truth, positives, taus):
    """The modular loss of the paper with some false and some true variants, row by row; each has its temperature."""
    size, total = len(audio), 0.0
    for i, tau in enumerate(taus):
        others = [j for j in range(size) if j == i or not positives[i, j]]
        captions = [float(audio[i] @ text[j]) / tau for j in others]
        extras = [float(audio[i] @ variants[i, v]) / tau for v in range(truth.shape[1]) if truth[i, v] != 0]
        log_sum = math.log(sum(math.exp(logit) for logit in captions + extras))
        true = [text[i]] + [variants[i, v] for v in range(truth.shape[1]) if truth[i, v] == 1]
        towards_text = sum(log_sum - float(audio[i] @ sentence) / tau for sentence in true) / len(true)
        towards_audio = 0.0
        for sentence in true:
            log_clips = math.log(sum(math.exp(float(sentence @ audio[j]) / tau) for j in others))
            towards_audio += (log_clips - float(sentence @ audio[i]) / tau) / len(true)
        total += (towards_text + towards_audio) / 2
    return total / size


@pytest.mark.parametrize("tau", [1.0, 0.07])
def test_the_loss_is_that_of_a_loop_over_rows(batch, clones, tau):
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=tau))
    for positives in (EYE, clones):
        expected = by_loops(*batch, TRUTH, positives, [tau] * 6)
        assert call(objective, *batch, positives=positives).total.item() == pytest.approx(expected, rel=1e-12)


def test_a_sigmoid_asks_each_variant_on_its_own(batch):
    objective, plain = make("siglip", hard_weight=3.0), registry.build("loss", "siglip", {})
    audio, text, variants = batch
    scale, bias = 10.0, -math.log(5)
    expected = plain(audio, text, EYE, torch.arange(6), 0.3).total.item()
    for i in range(6):
        for v in range(3):
            logit = scale * (audio[i] @ variants[i, v]) + bias
            weight = {1: 1.0, 0: 0.0, -1: 3.0}[int(TRUTH[i, v])]
            expected += weight * softplus(-TRUTH[i, v] * logit).item() / 6
    assert call(objective, *batch).total.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("num_variants", [0, 3])
def test_without_variants_it_is_the_wrapped_loss_bit_for_bit(batch, base, num_variants):
    objective = make(base)
    plain, (audio, text, variants) = copy.deepcopy(objective.wrapped), batch
    variants, truth = variants[:, :num_variants], torch.zeros(6, num_variants, dtype=torch.int8)
    leaves = audio.clone().requires_grad_(), text.clone().requires_grad_()
    expected = plain(*leaves, EYE, torch.arange(6), 0.3)
    expected.total.backward()
    assert call(objective, audio, text, variants, truth).total.item() == expected.total.item()
    found = gradients(objective, (audio, text, variants), truth)
    assert torch.equal(found[0], leaves[0].grad)
    assert torch.equal(found[1], leaves[1].grad)
    assert not found[2].any()
    for mine, theirs in zip(objective.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_a_weight_of_zero_leaves_false_variants_without_effect(batch, base):
    only_false = TRUTH.clamp(max=0)
    objective = make(base, hard_weight=0.0)
    expected = objective.wrapped(*batch[:2], EYE, torch.arange(6), 0.3).total
    output = call(objective, *batch, only_false)
    assert output.total.item() == expected.item()
    assert output.terms["hard"] > 0
    assert not gradients(objective, batch, only_false)[2].any()


@pytest.mark.parametrize("base", ["infonce", "siglip"])
def test_variants_of_a_row_push_that_row_and_no_other_clip(batch, base):
    audio, text, variants = batch
    only_false = TRUTH.clamp(max=0)
    moved = variants.clone()
    moved[1] = -moved[1]
    of_variants = [gradients(make(base), (audio, text, some), only_false)[2] for some in (variants, moved)]
    changed = (of_variants[0] != of_variants[1]).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, False, False, False, False]
    # Of clip i alone: the derivative of its loss by the variants of others.
    leaves = audio.clone().requires_grad_(), text, variants.clone().requires_grad_()
    total = call(make(base), *leaves, only_false).total
    (by_audio,) = torch.autograd.grad(total, leaves[0], create_graph=True)
    for row in range(6):
        (crossed,) = torch.autograd.grad(by_audio[row].sum(), leaves[2], retain_graph=True)
        others = torch.arange(6) != row
        assert not crossed[others].any()


@pytest.mark.parametrize("base", BASES)
def test_padding_is_ignored_whatever_it_holds(batch, base):
    audio, text, variants = batch
    expected = call(make(base), *batch)
    for filler in (0.0, 1e6, math.inf, math.nan):
        padded = variants.masked_fill((TRUTH == 0)[:, :, None], filler)
        assert call(make(base), audio, text, padded) == expected
        found = gradients(make(base), (audio, text, padded))
        assert all(part.isfinite().all() for part in found)
        assert not found[2][TRUTH == 0].any()


@pytest.mark.parametrize("base", BASES)
def test_the_order_of_variants_has_no_meaning(batch, base):
    audio, text, variants = batch
    order = torch.tensor([2, 0, 1])
    expected = call(make(base), *batch).total
    torch.testing.assert_close(call(make(base), audio, text, variants[:, order], TRUTH[:, order]).total, expected)


@pytest.mark.parametrize("base", BASES)
def test_the_order_of_rows_has_no_meaning(batch, base, clones):
    order = torch.tensor([3, 0, 5, 2, 1, 4])
    expected = call(make(base), *batch, positives=clones).total
    shuffled = [tensor[order] for tensor in (*batch, TRUTH)]
    found = call(make(base), *shuffled, positives=clones[order][:, order], index=order)
    torch.testing.assert_close(found.total, expected)


def test_clips_that_are_told_apart_have_next_to_no_loss():
    eye = torch.eye(6, dtype=torch.float64)
    opposite = -eye[:, None]
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=0.05))
    output = call(objective, eye, eye, opposite, torch.full((6, 1), -1))
    assert output.total.item() < 1e-7
    assert output.stats["above_false"] == 1


def test_a_text_tower_that_cannot_tell_them_pays_a_factor_two():
    # Other captions are far: a false variant that is embedded like the caption leaves even odds, ln 2 in one direction of two.
    eye = torch.eye(6, dtype=torch.float64)
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=0.05))
    output = call(objective, eye, eye, eye[:, None], torch.full((6, 1), -1))
    assert output.total.item() == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert output.terms["hard"] == pytest.approx(math.log(2) / 2, abs=1e-6)
    assert output.stats["above_false"] == 0  # a tie is not above


def test_numbers_for_the_log_by_hand(batch):
    audio, text, variants = batch
    output = call(make(), *batch)
    rows = [i for i in range(6) if (TRUTH[i] == -1).any()]
    wins = [all(audio[i] @ text[i] > audio[i] @ variants[i, v] for v in range(3) if TRUTH[i, v] == -1) for i in rows]
    assert output.stats["false_share"] == pytest.approx(4 / 6)
    assert output.stats["above_false"] == pytest.approx(sum(wins) / 4)
    assert {"t2a", "a2t", "hard", "parts"} <= set(output.terms)


@pytest.mark.parametrize("base", BASES)
def test_gradients_are_those_of_finite_differences(batch, base):
    # The adaptive radius is cut off from the embeddings: finite differences would see it move.
    objective = compa.build(wrapped=registry.build("loss", base, {"radius": "fixed"} if base == "svr" else {})).double()
    audio, text, variants = batch
    leaves = [tensor.clone().requires_grad_() for tensor in (audio[3:, :2], text[3:, :2], variants[3:, :, :2])]

    def total(*leaves):
        return call(objective, *leaves, TRUTH[3:], EYE[3:, 3:]).total

    assert torch.autograd.gradcheck(total, leaves, fast_mode=True)


@pytest.mark.parametrize("targets", ["ignore", "soft", "ot"])
def test_every_policy_for_further_positives_goes_along(batch, clones, targets):
    # One true sentence more that is the caption itself: both directions then have the caption twice.
    objective = compa.build(wrapped=infonce.build(targets=targets))
    audio, text, _ = batch
    same = call(objective, audio, text, text[:, None], torch.ones(6, 1), clones)
    plain = objective.wrapped(audio, text, clones, torch.arange(6), 0.3)
    assert same.terms["t2a"] == pytest.approx(plain.terms["t2a"] / 2)
    scale = 1 / 0.07
    masked = (scale * audio @ text.T).masked_fill(clones & ~EYE if targets == "ignore" else torch.zeros_like(EYE), -math.inf)
    log_sum, own = masked.logsumexp(dim=1), scale * (audio * text).sum(dim=1)
    both = torch.logaddexp(log_sum, own)
    # a2t: half of the wanted logits are those of the wrapped loss, half the own; t2a: that of the wrapped loss.
    wanted = log_sum.mean() - plain.terms["a2t"]
    expected = (plain.terms["t2a"] + (both.mean() - (wanted + own.mean()) / 2)) / 2
    assert same.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_variant_has_the_temperature_of_its_clip(batch, per_row, clones):
    taus = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    objective = compa.build(wrapped=infonce.build(schedule=per_row(torch.tensor(taus, dtype=torch.float64))))
    expected = by_loops(*batch, TRUTH, clones, taus)
    assert call(objective, *batch, positives=clones).total.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_a_large_batch_is_scored_in_blocks_of_rows(batch, base, clones, monkeypatch):
    whole = call(make(base), *batch, positives=clones), gradients(make(base), batch, positives=clones)
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 4)
    blocks = call(make(base), *batch, positives=clones), gradients(make(base), batch, positives=clones)
    torch.testing.assert_close(blocks[0].total, whole[0].total)
    for found, expected in zip(blocks[1], whole[1], strict=True):
        torch.testing.assert_close(found, expected)


def test_half_precision_is_scored_in_full(batch):
    half = [tensor.bfloat16() for tensor in batch]
    full = [tensor.float() for tensor in half]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = call(make(), *half).total
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, call(make(), *full).total)


def test_it_hands_on_what_the_wrapped_loss_learns():
    objective = make("siglip")
    assert objective.temperature is objective.wrapped.temperature
    assert [group["name"] for group in objective.param_groups(1e-3, 0.1)] == ["temperature", "bias"]
    with torch.no_grad():
        objective.temperature.log_scale.fill_(9.0)
    objective.after_step()
    assert objective.temperature.log_scale.item() == pytest.approx(math.log(100))


def test_infonce_is_what_it_wraps_unless_told():
    assert isinstance(compa.build().wrapped, infonce.InfoNCE)
    assert needs_of(compa.build()) == {"variants"}


@pytest.mark.parametrize("hard_weight", [-1.0, math.inf, math.nan])
def test_a_weight_that_is_none_is_refused(hard_weight):
    with pytest.raises(ConfigError, match=rf"hard_weight={hard_weight}: expected a weight of 0 or more"):
        compa.build(hard_weight=hard_weight)


def test_other_losses_are_refused():
    with pytest.raises(ConfigError, match="wrapped=Triplet.*: no loss that compa adds to; expected one of infonce, siglip"):
        compa.build(wrapped=registry.build("loss", "triplet", {}))


def test_a_batch_without_variants_is_refused(batch):
    audio, text, _ = batch
    with pytest.raises(ShapeError, match="brings no variants"):
        compa.build()(audio, text, EYE, torch.arange(6), 0.0)
    with pytest.raises(ShapeError, match="brings no variants"):
        score_any(compa.build(), audio, text, EYE, torch.arange(6), 0.0, Context())


def test_shapes_that_do_not_fit_are_refused(batch):
    audio, text, variants = batch
    expected = r"expected \[6, V, 5\] and \[6, V\]"
    with pytest.raises(ShapeError, match=rf"variants is \[4, 3, 5\] and variant_truth \[6, 3\]; {expected}"):
        call(make(), audio, text, variants[:4])
    with pytest.raises(ShapeError, match=rf"variants is \[6, 3, 5\] and variant_truth \[6, 2\]; {expected}"):
        call(make(), audio, text, variants, TRUTH[:, :2])
    with pytest.raises(ShapeError, match=rf"variants is \[6, 3, 4\] and variant_truth \[6, 3\]; {expected}"):
        call(make(), audio, text, variants[:, :, :4])
