import math

import pytest
import torch
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import languages
from clapkit.objectives.added import with_terms
from clapkit.objectives.contract import needs_of, score
from clapkit.objectives.languages import Anchored, PerLanguage, couples
from clapkit.objectives.pair_weights import pair_losses, without_judgement
from clapkit.objectives.temperature import Temperature
from clapkit.training.whole_batch import language_code
from clapkit.types import Context

EN, DE, FR = (language_code(tag) for tag in ("en", "de", "fr"))
NUM_CLIPS = 5
FORMS = [
    ("infonce", {}),
    ("siglip", {}),
    ("triplet", {}),
    ("dcl", {}),
    ("svr", {"batch_size": NUM_CLIPS}),
    ("svr", {"base": "siglip", "radius": "ratio"}),
    ("reweighted", {"sides": "uni"}),
    ("mochi", {"num_hardest": 3, "num_mixed": 2}),
]
forms = pytest.mark.parametrize(("name", "options"), FORMS, ids=str)


def make_batch(codes, *, num_clips=NUM_CLIPS, width=6, seed=0, dtype=torch.float64):
    """Clips with one caption of each language, clip after clip: audio and text [B, D], positives, index, language."""
    generator = torch.Generator().manual_seed(seed)
    sounds = torch.randn(num_clips, width, generator=generator, dtype=torch.float64)
    each = len(codes)
    audio = normalize(sounds, dim=1).repeat_interleave(each, dim=0)
    text = normalize(audio + 0.5 * torch.randn(len(audio), width, generator=generator, dtype=torch.float64), dim=1)
    index = torch.arange(num_clips).repeat_interleave(each)
    positives = index[:, None] == index
    return audio.to(dtype), text.to(dtype), positives, index, torch.tensor(codes).repeat(num_clips)


def related(positives, one, other):
    """Positives in which, besides, all rows of two clips are no negatives of each other."""
    positives = positives.clone()
    for a in one:
        for b in other:
            positives[a, b] = positives[b, a] = True
    return positives


def call(objective, batch, *, progress=0.0, **more):
    audio, text, positives, index, language = batch
    return score(objective, audio, text, positives, index, progress, Context(language=language, **more))


def permuted(batch, order):
    audio, text, positives, index, language = batch
    return audio[order], text[order], positives[order][:, order], index[order], language[order]


def symmetric_infonce(one, other, positives, tau):
    """The loss of both directions by loops; further positives are left out."""
    count, total = len(one), 0.0
    for anchors, targets in ((one, other), (other, one)):
        for i in range(count):
            kept = [j for j in range(count) if j == i or not positives[i, j]]
            logits = [float(anchors[i] @ targets[j]) / tau for j in kept]
            total += math.log(sum(map(math.exp, logits))) - float(anchors[i] @ targets[i]) / tau
    return total / (2 * count)


def infonce():
    return registry.build("loss", "infonce", {"temperature": "fixed", "tau": 0.5})


@forms
def test_kcl_of_one_language_is_the_base(name, options):
    objective = registry.build("loss", name, options)
    batch = make_batch([EN])
    wrapped, plain = call(PerLanguage(objective), batch), objective(*batch[:4], 0.0)
    assert torch.equal(wrapped.total, plain.total)
    assert wrapped.terms == plain.terms
    assert wrapped.stats == pytest.approx(plain.stats | {"loss_en": plain.total.item()})


@forms
def test_kcl_is_the_mean_of_the_losses_of_the_languages(name, options):
    audio, text, positives, index, language = batch = make_batch([DE, EN, FR])
    objective = registry.build("loss", name, options)
    output = call(PerLanguage(objective), batch)
    alone = []
    for code in (DE, EN, FR):
        rows = (language == code).nonzero().squeeze(1)
        alone.append(objective(audio[rows], text[rows], positives[rows][:, rows], index[rows], 0.0))
    losses = [one.total.item() for one in alone]
    assert output.total.item() == pytest.approx(sum(losses) / 3, abs=1e-12)
    assert output.terms == pytest.approx({key: sum(one.terms[key] for one in alone) / 3 for key in alone[0].terms})
    named = dict(zip(("loss_de", "loss_en", "loss_fr"), losses, strict=True))
    assert output.stats == pytest.approx({key: sum(one.stats[key] for one in alone) / 3 for key in alone[0].stats} | named)


def test_kcl_is_what_loops_over_languages_and_pairs_say():
    audio, text, positives, index, language = make_batch([DE, EN, FR])
    positives = related(positives, range(0, 3), range(9, 12))  # clips 0 and 3
    total = 0.0
    for code in (DE, EN, FR):
        rows = [row for row in range(15) if language[row] == code]
        total += symmetric_infonce(audio[rows], text[rows], positives[rows][:, rows], 0.5)
    output = call(PerLanguage(infonce()), (audio, text, positives, index, language))
    assert output.total.item() == pytest.approx(total / 3, abs=1e-12)


def test_kcl_of_two_languages_by_hand():
    # Sounds x and y. English captions are right: own cosine 1, the other 0: ln(1 + e^-2) = 0.126928 at tau 0.5, both ways.
    # German ones are swapped: ln(1 + e^2) = 2.126928. The mean is 1.126928; one softmax over all four captions would differ.
    x, y = torch.eye(2, dtype=torch.float64)
    audio, text = torch.stack([x, x, y, y]), torch.stack([x, y, y, x])
    index = torch.tensor([0, 0, 1, 1])
    output = call(PerLanguage(infonce()), (audio, text, index[:, None] == index, index, torch.tensor([EN, DE, EN, DE])))
    assert output.total.item() == pytest.approx(1.126928, abs=1e-6)
    assert output.stats["loss_en"] == pytest.approx(0.126928, abs=1e-6)
    assert output.stats["loss_de"] == pytest.approx(2.126928, abs=1e-6)


def test_a_caption_of_another_language_is_no_negative():
    audio, text, positives, index, language = make_batch([DE, EN])
    moved = torch.where((language == DE)[:, None], text.flip(1), text)
    before, after = (call(PerLanguage(infonce()), (audio, t, positives, index, language)) for t in (text, moved))
    assert after.stats["loss_en"] == before.stats["loss_en"]
    assert after.stats["loss_de"] != before.stats["loss_de"]


def test_languages_with_unlike_numbers_of_pairs_count_alike():
    audio, text, positives, index, language = make_batch([DE, EN])
    kept = torch.tensor([row for row in range(10) if row not in (0, 2)])  # two clips have no German
    output = call(PerLanguage(infonce()), permuted((audio, text, positives, index, language), kept))
    assert output.total.item() == pytest.approx((output.stats["loss_de"] + output.stats["loss_en"]) / 2)


def test_cacl_is_the_mean_of_its_three_terms():
    """Formula: 1/(6N) of the sums of both directions of audio-anchor, audio-other and anchor-other."""
    audio, text, positives, index, language = batch = make_batch([DE, EN])
    anchors, others = range(1, 10, 2), range(0, 10, 2)
    only = torch.eye(NUM_CLIPS, dtype=torch.bool)
    pairs = [(audio[anchors], text[anchors]), (audio[others], text[others]), (text[anchors], text[others])]
    losses = [symmetric_infonce(one, other, only, 0.5) for one, other in pairs]
    output = call(Anchored(infonce(), EN), batch)
    assert output.total.item() == pytest.approx(sum(losses) / 3, abs=1e-12)
    names = ("loss_audio_anchor", "loss_audio_other", "loss_anchor_other")
    assert [output.stats[name] for name in names] == pytest.approx(losses)


def test_cacl_of_two_clips_by_hand():
    # Sounds x and y; anchor captions x and y, others y and x. At tau 0.5: audio-anchor ln(1 + e^-2) = 0.126928, audio-other
    # ln(1 + e^2) = 2.126928, anchor-other the same, because anchor x stands beside other y. Mean (0.126928 + 4.253856) / 3.
    x, y = torch.eye(2, dtype=torch.float64)
    audio, text = torch.stack([x, x, y, y]), torch.stack([x, y, y, x])
    index = torch.tensor([7, 7, 3, 3])
    batch = (audio, text, index[:, None] == index, index, torch.tensor([EN, DE, EN, FR]))
    assert call(Anchored(infonce(), EN), batch).total.item() == pytest.approx(1.460261, abs=1e-6)


@forms
def test_cacl_averages_what_any_loss_says_of_the_three_sides(name, options):
    audio, text, positives, index, language = batch = make_batch([EN, FR])
    objective = registry.build("loss", name, options)
    only, rows = torch.eye(NUM_CLIPS, dtype=torch.bool), torch.arange(NUM_CLIPS)
    sides = [(audio[0::2], text[0::2]), (audio[1::2], text[1::2]), (text[0::2], text[1::2])]
    alone = [objective(one, other, only, rows, 0.25) for one, other in sides]
    output = call(Anchored(objective, EN), batch, progress=0.25)
    assert output.total.item() == pytest.approx(sum(one.total.item() for one in alone) / 3, abs=1e-12)
    assert output.terms == pytest.approx({key: sum(one.terms[key] for one in alone) / 3 for key in alone[0].terms})
    for key in alone[0].stats:
        assert output.stats[key] == pytest.approx(sum(one.stats[key] for one in alone) / 3)


@pytest.mark.parametrize("marked", [(1, 6), (6, 1), (0, 7), (0, 6), (1, 7)])
def test_clips_that_are_no_negatives_by_any_of_their_rows_are_none_in_the_term_of_captions(marked):
    """Clips 0 (rows 0 and 1) and 3 (rows 6 and 7)."""
    audio, text, positives, index, language = make_batch([EN, DE])
    positives = related(positives, marked[:1], marked[1:])
    output = call(Anchored(infonce(), EN), (audio, text, positives, index, language))
    expected = torch.eye(NUM_CLIPS, dtype=torch.bool)
    expected[0, 3] = expected[3, 0] = True
    assert output.stats["loss_anchor_other"] == pytest.approx(symmetric_infonce(text[0::2], text[1::2], expected, 0.5))


@pytest.mark.parametrize("make", [PerLanguage, lambda objective: Anchored(objective, EN)], ids=["kcl", "cacl"])
@forms
def test_the_order_of_rows_does_not_matter(make, name, options):
    wrapped = make(registry.build("loss", name, options))
    batch = make_batch([EN, DE])
    plain = call(wrapped, batch)
    for seed in range(3):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
        again = call(wrapped, permuted(batch, order))
        assert again.total.item() == pytest.approx(plain.total.item(), abs=1e-10)
        assert again.terms == pytest.approx(plain.terms)


@pytest.mark.parametrize("make", [PerLanguage, lambda objective: Anchored(objective, EN)], ids=["kcl", "cacl"])
def test_gradients_are_those_of_finite_differences(make):
    audio, text, positives, index, language = make_batch([EN, DE], num_clips=3, width=3)
    positives = related(positives, range(0, 2), range(4, 6))
    wrapped = make(infonce())

    def loss(audio, text):
        return call(wrapped, (audio, text, positives, index, language)).total

    assert torch.autograd.gradcheck(loss, (audio.requires_grad_(), text.requires_grad_()))


def test_every_row_gets_a_gradient():
    for make, codes in ((PerLanguage, [DE, EN, FR]), (lambda objective: Anchored(objective, EN), [EN, FR])):
        audio, text, *rest = make_batch(codes)
        audio.requires_grad_(), text.requires_grad_()
        call(make(infonce()), (audio, text, *rest)).total.backward()
        assert bool((audio.grad.abs().sum(dim=1) > 0).all())
        assert bool((text.grad.abs().sum(dim=1) > 0).all())


@pytest.mark.parametrize("make", [PerLanguage, lambda objective: Anchored(objective, EN)], ids=["kcl", "cacl"])
def test_parameters_groups_limits_and_temperature_are_those_of_the_objective(make):
    objective = registry.build("loss", "siglip")
    wrapped = make(objective)
    assert [id(p) for p in wrapped.parameters()] == [id(p) for p in objective.parameters()]
    assert [group["name"] for group in wrapped.param_groups(0.1, 0.2)] == ["temperature", "bias"]
    with torch.no_grad():
        objective.temperature.log_scale.fill_(9.0)
    wrapped.after_step()
    assert objective.temperature.log_scale.item() == pytest.approx(math.log(100))
    assert [m for m in wrapped.modules() if isinstance(m, Temperature)] == [objective.temperature]


@pytest.mark.parametrize("make", [PerLanguage, lambda objective: Anchored(objective, EN)], ids=["kcl", "cacl"])
def test_a_memory_of_rows_takes_up_all_that_a_step_has_shown(make):
    objective = registry.build("loss", "dbpm", {"num_rows": NUM_CLIPS})
    wrapped = make(objective)
    call(wrapped, make_batch([EN, DE]), progress=0.5)
    assert not objective.counted.any()
    wrapped.after_step()
    # Two languages, or the two sides of the triangle on which there is a sound.
    assert objective.counted.tolist() == [1.0] * NUM_CLIPS


@pytest.mark.parametrize("added", [[], ["alignment=1"]], ids=["bare", "with a term"])
def test_cacl_neither_weighs_nor_remembers_pairs_of_captions(added):
    audio, text, positives, index, language = make_batch([EN, DE])
    objective = registry.build("loss", "dbpm", {"num_rows": NUM_CLIPS, "wrapped": infonce(), "warmup": 0.0})
    objective.loss_sum.copy_(torch.tensor([9.0, 1, 1, 1, 1]))  # the first clip is faulty
    objective.counted.fill_(1.0)
    objective.below = objective.above = 1.0
    wrapped = Anchored(with_terms(objective, added), EN)
    output = call(wrapped, (audio, text, positives, index, language), progress=0.5)
    assert output.stats["faulty_share"] == pytest.approx(1 / NUM_CLIPS)
    anchors, others = text[0::2], text[1::2]
    plain = symmetric_infonce(anchors, others, torch.eye(NUM_CLIPS, dtype=torch.bool), 0.5)
    if not added:
        assert output.stats["loss_anchor_other"] == pytest.approx(plain)
        assert output.stats["mean_weight"] < 1
    wrapped.after_step()
    sounds, eye = audio[0::2], torch.eye(NUM_CLIPS, dtype=torch.bool)
    seen = [pair_losses(sounds, captions, eye, 2.0) for captions in (anchors, others)]
    torch.testing.assert_close(objective.last_loss, ((seen[0] + seen[1]) / 2).float())


def test_pairs_are_judged_again_after_an_error():
    objective = registry.build("loss", "dbpm", {"num_rows": NUM_CLIPS})
    with pytest.raises(ShapeError), without_judgement(objective):
        raise ShapeError("of the loss")
    call(objective, make_batch([EN]))
    objective.after_step()
    assert objective.counted.all()


def test_an_adaptive_radius_is_as_wide_as_the_clips_of_a_batch():
    objective = registry.build("loss", "svr", {"batch_size": 10})  # rows instead of clips
    for wrapped in (PerLanguage(objective), Anchored(objective, EN)):
        with pytest.raises(ShapeError, match="the batch has 5 pairs, the predictor was made for 10"):
            call(wrapped, make_batch([EN, DE]))


def test_terms_can_be_added_inside():
    batch = make_batch([EN, DE])
    inner = with_terms(infonce(), ["alignment=0.5"])
    plain, added = call(PerLanguage(infonce()), batch), call(PerLanguage(inner), batch)
    squared = (batch[0] - batch[1]).square().sum(dim=1).mean().item()
    assert added.terms["added_alignment"] == pytest.approx(squared)
    assert added.total.item() == pytest.approx(plain.total.item() + 0.5 * squared)


class NeedsVariants(torch.nn.Module):
    """A loss that has to know variants; keeps what it was told."""

    needs = frozenset({"variants"})

    def __init__(self):
        super().__init__()
        self.told = []

    def forward(self, audio, text, positives, index, progress, context=None):
        self.told.append(context)
        return infonce()(audio, text, positives, index, progress)


def test_each_language_is_told_of_its_own_rows():
    inner = NeedsVariants()
    wrapped = PerLanguage(inner)
    assert needs_of(wrapped) == {"language", "variants"}
    batch = make_batch([EN, DE])
    variants = torch.arange(10.0)[:, None, None].expand(10, 2, 6)
    call(wrapped, batch, variants=variants, variant_truth=torch.ones(10, 2, dtype=torch.int8))
    german, english = inner.told  # codes ascend as tags do
    assert german.language.tolist() == [DE] * 5
    assert german.variants[:, 0, 0].tolist() == [1, 3, 5, 7, 9]
    assert english.variants[:, 0, 0].tolist() == [0, 2, 4, 6, 8]


def test_cacl_refuses_losses_that_have_to_know_more():
    with pytest.raises(ConfigError, match="strategy anchor: the loss also looks at variants of each sound and caption"):
        Anchored(NeedsVariants(), EN)


@pytest.mark.parametrize("make", [PerLanguage, lambda objective: Anchored(objective, EN)], ids=["kcl", "cacl"])
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alip", {}, "alip compares the captions of a clip in a batch"),
        ("sogclr", {"num_rows": 9}, "sogclr keeps one normaliser for each clip and side"),
    ],
)
def test_losses_that_cannot_be_called_several_times_for_a_clip_are_refused(make, name, options, message):
    objective = with_terms(registry.build("loss", name, options), ["alignment=1"])
    with pytest.raises(ConfigError, match=f"{message}.*; use another loss or the strategy sample"):
        make(objective)


@pytest.mark.parametrize("make", [PerLanguage, lambda objective: Anchored(objective, EN)], ids=["kcl", "cacl"])
def test_languages_have_to_be_told(make):
    audio, text, positives, index, language = make_batch([EN, DE])
    with pytest.raises(ShapeError, match="the batch brings no language"):
        score(make(infonce()), audio, text, positives, index, 0.0)
    with pytest.raises(ShapeError, match=r"languages of captions: none, expected \[10\], one per pair"):
        make(infonce())(audio, text, positives, index, 0.0)
    with pytest.raises(ShapeError, match=r"languages of captions: \[3\], expected \[10\]"):
        make(infonce())(audio, text, positives, index, 0.0, context=Context(language=language[:3]))


@pytest.mark.parametrize(
    "codes",
    [[EN, EN], [DE, FR], [EN, DE, FR]],
    ids=["no other", "no anchor", "two others"],
)
def test_rows_that_are_no_couples_are_refused(codes):
    with pytest.raises(
        ShapeError, match="captions are in the anchor language and .* in others; expected one of each for every"
    ):
        call(Anchored(infonce(), EN), make_batch(codes))


def test_couples_of_different_clips_are_refused():
    with pytest.raises(ShapeError, match="2 captions are in the anchor language and 2 in others"):
        couples(torch.tensor([0, 1, 1, 2]), torch.tensor([True, True, False, False]))


def test_couples_are_found_by_clip_and_a_clip_that_comes_twice_is_two_couples():
    index = torch.tensor([4, 9, 4, 9, 4, 4])
    anchors, others = couples(index, torch.tensor([False, True, True, False, True, False]))
    assert anchors.tolist() == [1, 2, 4]
    assert others.tolist() == [3, 0, 5]


def test_a_language_with_a_single_pair_has_no_negatives():
    batch = permuted(make_batch([EN, DE]), torch.tensor([0, 2, 3]))
    with pytest.raises(ShapeError, match="a batch of 1 pairs has no negatives"):
        call(PerLanguage(infonce()), batch)


@pytest.mark.parametrize("tag", ["en", "de", "zh-Hant", "a", "日本"])
def test_tags_are_read_back_from_the_numbers_that_training_gives_them(tag):
    assert languages._tag(language_code(tag)) == tag


def test_a_long_tag_keeps_its_first_letters():
    assert languages._tag(language_code("zh-Hant-TW")) == "zh-Hant"


def test_the_wrappers_are_no_losses_of_their_own():
    assert "languages" not in registry.names("loss")
