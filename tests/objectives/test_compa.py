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


def call(objective, audio, text, variants, truth=TRUTH, positives=EYE, index=None, keys=(None, None)):
    """Score a batch; ``keys`` are those of the sentences and of what is true of the clips."""
    index = torch.arange(len(audio)) if index is None else index
    told = {"variants": variants, "variant_truth": truth, "sentence_keys": keys[0], "true_keys": keys[1]}
    return objective(audio, text, positives, index, 0.3, Context(**told))


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


def by_loops(audio, text, variants, truth, positives, taus, keys=None, targets="ignore"):
    """The modular loss of the paper with some false and some true variants, row by row; each has its temperature."""
    size, total = len(audio), 0.0

    def is_true(i, place, j):
        """Whether a sentence of row i, its caption at place 0, is no negative of clip j."""
        if i == j or positives[i, j]:
            return True
        known = set() if keys is None else set(keys[1][j].tolist()) - {0}
        return keys is not None and (int(keys[0][i, 0]) in known or int(keys[0][i, place]) in known)

    def log_sum(wanted, further, rest):
        """Further positives are candidates only where they are targets."""
        return math.log(sum(math.exp(logit) for logit in [wanted, *rest, *(further if targets == "soft" else [])]))

    def target(wanted, further):
        return (wanted + sum(further)) / (1 + len(further)) if targets == "soft" else wanted

    for i, tau in enumerate(taus):
        others = [j for j in range(size) if j != i]
        own = float(audio[i] @ text[i]) / tau
        further = [float(audio[i] @ text[j]) / tau for j in others if is_true(j, 0, i)]
        negatives = [float(audio[i] @ text[j]) / tau for j in others if not is_true(j, 0, i)]
        variant_logits = [float(audio[i] @ variants[i, v]) / tau for v in range(truth.shape[1])]
        extras = [logit for v, logit in enumerate(variant_logits) if truth[i, v] != 0]
        wanted = [target(own, further)] + [logit for v, logit in enumerate(variant_logits) if truth[i, v] == 1]
        towards_text = log_sum(own, further, negatives + extras) - sum(wanted) / len(wanted)
        true = {0: text[i]} | {1 + v: variants[i, v] for v in range(truth.shape[1]) if truth[i, v] == 1}
        towards_audio = 0.0
        for place, sentence in true.items():
            further = [float(sentence @ audio[j]) / tau for j in others if is_true(i, place, j)]
            negatives = [float(sentence @ audio[j]) / tau for j in others if not is_true(i, place, j)]
            own = float(sentence @ audio[i]) / tau
            towards_audio += (log_sum(own, further, negatives) - target(own, further)) / len(true)
        total += (towards_text + towards_audio) / 2
    return total / size


@pytest.mark.parametrize("tau", [1.0, 0.07])
def test_the_loss_is_that_of_a_loop_over_rows(batch, clones, tau):
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=tau))
    for positives in (EYE, clones):
        expected = by_loops(*batch, TRUTH, positives, [tau] * 6)
        assert call(objective, *batch, positives=positives).total.item() == pytest.approx(expected, rel=1e-12)


@pytest.fixture
def keys():
    """Keys of the sentences [6, 4], a caption and its true variants, and of what is true of the clips [6, 5]; some shared.

    Row 5 has the part of row 2; caption 0 is a part of row 4 that is not drawn; other parts are nobody else's.
    """
    sentences = torch.tensor(
        [[10, 0, 0, 0], [11, 0, 0, 0], [12, 22, 0, 0], [13, 0, 23, 0], [14, 0, 0, -24], [15, 22, 0, 25]], dtype=torch.int64
    )
    true = torch.tensor(
        [[10, 0, 0, 0, 0], [0, 11, 22, 0, 0], [12, 22, 0, 0, 0], [13, 23, 0, 99, 0], [14, -24, 10, 0, 0], [25, 15, 22, 25, 0]]
    )
    return sentences, true


def test_a_part_that_is_true_of_the_other_clip_too_by_hand():
    # As stage three above, and the part of clip 0 is one of clip 1 too, not drawn there: as an anchor it has nobody to be told
    # from, ln(e^1) - 1 = 0. Everything else stays.
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=0.5))
    eye = torch.eye(2, dtype=torch.float64)
    variants = torch.tensor([[[0.5, math.sqrt(0.75)]], [[1.0, 0.0]]], dtype=torch.float64)
    keys = torch.tensor([[5, 7], [6, 0]]), torch.tensor([[5, 7], [7, 6]])
    output = call(objective, eye, eye, variants, torch.tensor([[1], [0]]), eye.bool(), keys=keys)
    caption = math.log(1 + math.exp(-2))
    towards_text = (math.log(math.exp(2) + 1 + math.e) - 1.5 + caption) / 2
    towards_audio = ((caption + 0) / 2 + caption) / 2
    assert output.total.item() == pytest.approx((towards_audio + towards_text) / 2, abs=1e-12)


def test_a_caption_that_is_a_part_of_the_other_clip_by_hand():
    # Now caption 1 is that very part. From clip 0 it is no candidate any more, ln(e^2 + e^1) for the logits 2 and 1, and as an
    # anchor it is alone with its own clip, 0. Caption 0 says more than is known of clip 1 and stays its negative.
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=0.5))
    eye = torch.eye(2, dtype=torch.float64)
    variants = torch.tensor([[[0.5, math.sqrt(0.75)]], [[1.0, 0.0]]], dtype=torch.float64)
    keys = torch.tensor([[5, 7], [7, 0]]), torch.tensor([[5, 7], [7, 0]])
    output = call(objective, eye, eye, variants, torch.tensor([[1], [0]]), eye.bool(), keys=keys)
    caption = math.log(1 + math.exp(-2))
    towards_text = (math.log(math.exp(2) + math.e) - 1.5 + caption) / 2
    towards_audio = ((caption + 0) / 2 + 0) / 2
    assert output.total.item() == pytest.approx((towards_audio + towards_text) / 2, abs=1e-12)


@pytest.mark.parametrize("targets", ["ignore", "soft"])
def test_what_is_true_of_other_clips_is_that_of_a_loop_over_sentences_and_clips(batch, clones, keys, targets):
    objective = compa.build(wrapped=infonce.build(temperature="fixed", tau=0.3, targets=targets))
    draw = torch.Generator().manual_seed(4)
    choices = [keys]
    for _ in range(5):
        sentences = torch.randint(-6, 7, (6, 4), generator=draw)  # 0, which is nobody's key, among them
        choices.append((sentences, torch.randint(-6, 7, (6, 3), generator=draw)))
    for some in choices:
        for positives in (EYE, clones):
            expected = by_loops(*batch, TRUTH, positives, [0.3] * 6, some, targets)
            found = call(objective, *batch, positives=positives, keys=some).total.item()
            assert found == pytest.approx(expected, rel=1e-12)
            assert found != pytest.approx(by_loops(*batch, TRUTH, positives, [0.3] * 6, None, targets), rel=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_keys_that_nobody_shares_change_nothing_bit_for_bit(batch, base, clones):
    sentences = torch.arange(1, 25).view(6, 4)
    true = torch.cat([sentences.flip(1), torch.zeros(6, 2, dtype=torch.int64)], dim=1)
    nothing = torch.zeros(6, 4, dtype=torch.int64), torch.zeros(6, 0, dtype=torch.int64)
    for keys in ((sentences, true), nothing, (sentences, None), (None, true)):
        assert call(make(base), *batch, positives=clones, keys=keys) == call(make(base), *batch, positives=clones)
        found = gradients(make(base), batch, positives=clones, keys=keys)
        expected = gradients(make(base), batch, positives=clones)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("base", BASES)
def test_a_caption_that_is_true_of_another_clip_is_a_further_positive_of_the_wrapped_loss(batch, base, keys):
    true_of = EYE.clone()
    true_of[0, 4] = True  # the caption and the clip; caption 4 says more
    only_false = TRUTH.clamp(max=0)
    found = call(make(base), *batch, only_false, keys=keys)
    assert found == call(make(base), *batch, only_false, positives=true_of)
    assert found.total != call(make(base), *batch, only_false).total


@pytest.mark.parametrize("base", BASES)
def test_a_sentence_that_is_true_of_another_clip_does_not_push_it_away(batch, base, keys):
    def pulls(**options):
        """How the gradient of each clip depends on caption 0 and on the part of row 2: whether it does, [6] each."""
        leaves = [tensor.clone().requires_grad_() for tensor in batch]
        (by_audio,) = torch.autograd.grad(call(make(base), *leaves, **options).total, leaves[0], create_graph=True)
        crossed = [torch.autograd.grad(by_audio[clip].sum(), leaves[1:], retain_graph=True) for clip in range(6)]
        return [bool(one[0][0].any()) for one in crossed], [bool(one[1][2, 0].any()) for one in crossed]

    of_caption, of_part = pulls()
    assert all(of_caption)
    assert of_part == [base != "siglip" or clip == 2 for clip in range(6)]  # which asks of the part and its own clip only
    of_caption, of_part = pulls(keys=keys)
    assert of_caption == [True, True, True, True, False, True]
    assert of_part == [clip == 2 or (base != "siglip" and clip not in (1, 5)) for clip in range(6)]


@pytest.mark.parametrize("targets", ["soft", "ot"])
def test_targets_are_shared_with_the_other_clips_that_a_part_is_true_of(batch, keys, targets):
    objective = compa.build(wrapped=infonce.build(targets=targets))
    truth = torch.zeros(6, 3, dtype=torch.int8)
    truth[2, 0] = 1
    audio, _, variants = batch
    apart = [call(objective, *batch, truth, keys=(keys[0] * shown, keys[1])) for shown in (torch.tensor([0, 1, 0, 0]), 0)]
    # Of the part of row 2, which counts 1/2 in 6 rows and one of two directions: its target goes to clips 1, 2 and 5.
    logits = (variants[2, 0] @ audio.T) / 0.07
    kept = 1.0 if targets == "soft" else 0.7
    gained = kept * (logits[2] - logits[[1, 2, 5]].mean()) / 2 / 6 / 2
    assert (apart[0].total - apart[1].total).item() == pytest.approx(gained.item(), rel=1e-6)


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
def test_the_order_of_rows_has_no_meaning(batch, base, clones, keys):
    order = torch.tensor([3, 0, 5, 2, 1, 4])
    expected = call(make(base), *batch, positives=clones, keys=keys).total
    shuffled = [tensor[order] for tensor in (*batch, TRUTH)]
    found = call(make(base), *shuffled, positives=clones[order][:, order], index=order, keys=[some[order] for some in keys])
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
def test_a_large_batch_is_scored_in_blocks_of_rows(batch, base, clones, keys, monkeypatch):
    options = {"positives": clones, "keys": keys}
    whole = call(make(base), *batch, **options), gradients(make(base), batch, **options)
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 4)
    blocks = call(make(base), *batch, **options), gradients(make(base), batch, **options)
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


def test_keys_that_do_not_fit_are_refused(batch, keys):
    expected = r"expected \[6, 4\] and \[6, K\]"
    with pytest.raises(ShapeError, match=rf"sentence_keys is \[6, 3\] and true_keys \[6, 5\]; {expected}"):
        call(make(), *batch, keys=(keys[0][:, :3], keys[1]))
    with pytest.raises(ShapeError, match=rf"sentence_keys is \[6, 4\] and true_keys \[4, 5\]; {expected}"):
        call(make(), *batch, keys=(keys[0], keys[1][:4]))
    with pytest.raises(ShapeError, match=rf"sentence_keys is \[6, 4\] and true_keys \[6\]; {expected}"):
        call(make(), *batch, keys=(keys[0], keys[1][:, 0]))
