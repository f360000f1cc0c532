"""Mistakes that public contrastive code makes, and that no objective here may make."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.objectives import alip, compa, cwcl, dbpm, infonce, m3col, sogclr
from clapkit.objectives.contract import score
from clapkit.objectives.targets import uniform_targets
from clapkit.objectives.transport import Rectification, transport_plan
from clapkit.types import Context

BATCH = 4
PAIRS_OF_CLIPS = torch.tensor([0, 0, 1, 1])
POSITIVES = PAIRS_OF_CLIPS[:, None] == PAIRS_OF_CLIPS[None, :]
EYE = torch.eye(BATCH, dtype=torch.bool)

EVERY_LOSS = [(name, {}) for name in registry.names("loss")]
# Losses to which a further positive is neither positive nor negative. Text-side support vectors only: the other side
# compares texts with texts, which the entry that is varied here is a part of.
MASKING = [
    ("infonce", {}),
    ("siglip", {}),
    ("dcl", {}),
    ("dcl", {"weighted": True}),
    *(("triplet", {"reduction": reduction}) for reduction in ("sum", "max", "mean", "weighted")),
    *(("svr", {"radius": radius, "sides": "uni"}) for radius in ("adaptive", "static", "fixed", "ratio")),
    ("svr", {"radius": "ratio", "sides": "uni", "base": "siglip"}),
    ("reweighted", {"sides": "uni"}),
    ("mochi", {}),
    ("compa", {}),
]
WITH_TEMPERATURE = [form for form in MASKING if form[0] not in ("triplet", "compa")]


def forms(listed):
    return pytest.mark.parametrize(("name", "options"), listed, ids=str)


def make(name, options):
    features = normalize(torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(5)), dim=1)
    known = registry.defaults("loss", name)
    of_the_run = {"batch_size": BATCH, "features": features, "num_rows": BATCH}
    supplied = {key: value for key, value in of_the_run.items() if key in known}
    torch.manual_seed(0)
    return registry.build("loss", name, supplied | options)


def embeddings(similarity):
    """Unit-norm audio and text whose cosines are ``similarity``: the clips are axes, a text has the rest on its own axis."""
    rest = (1 - similarity.square().sum(dim=1)).sqrt()
    text = torch.cat([similarity, rest.diag()], dim=1)
    return torch.eye(BATCH, 2 * BATCH, dtype=similarity.dtype), text


def context_of(audio, text):
    """All that an objective may want to know: no variants, one language, one window, a teacher that agrees."""
    return Context(
        language=torch.zeros(BATCH, dtype=torch.int64),
        variants=text[:, None],
        variant_truth=torch.zeros(BATCH, 1, dtype=torch.int8),
        teacher_audio=audio.detach(),
        teacher_text=text.detach(),
        audio_features=audio,
        text_features=text,
        windows=audio[:, None],
        is_window=torch.ones(BATCH, 1, dtype=torch.bool),
    )


def total(objective, similarity, positives):
    audio, text = embeddings(similarity)
    return score(objective, audio, text, positives, torch.arange(BATCH), 0.0, context_of(audio, text)).total


@pytest.fixture
def similarity():
    """Cosines [B, B] in which row 0 is unlike clip 1, which is a further positive of it."""
    generator = torch.Generator().manual_seed(1)
    cosines = 0.3 * torch.rand(BATCH, BATCH, generator=generator, dtype=torch.float64) + 0.1 * EYE
    cosines[0, 1] = -0.4
    return cosines


# A mask that multiplies the logit by -100000 turns a negative cosine into a huge logit.


@forms(EVERY_LOSS)
def test_a_further_positive_with_a_negative_cosine_does_not_become_a_huge_negative(name, options, similarity):
    # Cosines differ by at most 2, so no logit of temperature 0.07 is more than 29 ahead; the mistake gives 40000 / 0.07.
    assert total(make(name, options), similarity, POSITIVES).abs() < 100


@forms(MASKING)
def test_taking_a_negative_out_never_raises_the_loss(name, options, similarity):
    objective = make(name, options)
    for cosine in (-0.4, 0.0, 0.4):
        similarity[0, 1] = cosine
        assert total(objective, similarity, POSITIVES) <= total(objective, similarity, EYE)


# A mask on the log-probabilities leaves the masked candidate in the sum that normalises them.


@forms(MASKING)
def test_the_score_of_a_masked_candidate_changes_nothing(name, options, similarity):
    objective = make(name, options)
    reference = total(objective, similarity, POSITIVES)
    for cosine in (-0.2, 0.0, 0.4):
        similarity[0, 1] = cosine
        torch.testing.assert_close(total(objective, similarity, POSITIVES), reference, rtol=1e-12, atol=0)


@forms(MASKING)
def test_a_masked_candidate_has_no_gradient(name, options, similarity):
    similarity.requires_grad_()
    total(make(name, options), similarity, POSITIVES).backward()
    masked = POSITIVES & ~EYE
    assert (similarity.grad[masked].abs() < 1e-15).all()
    assert similarity.grad[EYE].abs().min() > 0


# A mask that adds log(1e-45) = -103.6 behind the division by the temperature is too weak at temperature 0.01.


@forms(WITH_TEMPERATURE)
def test_the_mask_holds_at_the_lowest_temperature(name, options, similarity):
    objective = make(name, options | {"temperature": "fixed", "tau": 0.01})
    similarity[0, 0], similarity[0, 1], similarity[0, 2:] = 0.0, 0.9, -0.3
    high = total(objective, similarity, POSITIVES)
    similarity[0, 1] = 0.0
    torch.testing.assert_close(high, total(objective, similarity, POSITIVES), rtol=1e-12, atol=0)


def test_the_pair_is_not_among_its_own_negatives_at_the_lowest_temperature():
    # Row 0: -1 / 0.01 + logsumexp(-1 / 0.01, three times) = -200 + ln 3; a pair at 100 - 103.6 would count as e^(-3.6).
    similarity = torch.full((BATCH, BATCH), -1.0, dtype=torch.float64).fill_diagonal_(1.0)
    dcl = make("dcl", {})
    assert dcl.one_direction(similarity, EYE, 100.0).item() == pytest.approx(-200 + math.log(3), abs=1e-9)


def test_positives_are_not_among_the_negatives_of_each_other_at_the_lowest_temperature(similarity):
    # Rows with positives at 0 and 1 and negatives at -1: softplus(ln 2 - 100 - l) is e^-99.3 and e^-199.3, not e^-3.6.
    row = torch.tensor([0.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    rows = torch.stack([row, row[[1, 0, 2, 3]], row[[2, 3, 0, 1]], row[[2, 3, 1, 0]]])
    assert make("decoupled", {}).one_direction(rows, POSITIVES, 100.0).item() < 1e-40


# Targets that are written over each other where a pair is its own further positive do not sum to 1.

MATRICES = [EYE, POSITIVES, POSITIVES & ~EYE, torch.zeros_like(EYE), torch.ones_like(EYE)]


@pytest.mark.parametrize("positives", MATRICES, ids=["pairs", "clips", "no diagonal", "empty", "full"])
def test_rows_of_soft_targets_sum_to_one(positives):
    like = torch.empty(0, dtype=torch.float64)
    table = normalize(torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64), dim=1)
    matrices = [uniform_targets(positives, like)]
    plan = transport_plan(table @ table.T, eps=0.05)
    for share in (0.0, 0.3, 0.9):
        matrices += [Rectification(share, 0.05).targets(*sides) for sides in ((positives, plan), (positives.T, plan.T))]
    for kernel in ("affine", "exp"):
        for index in (torch.arange(BATCH), torch.tensor([2, 2, 0, 2])):  # one training row twice in a batch
            matrices.append(cwcl.build(features=table, kernel=kernel).targets(index, positives, like))
    for partner in ([0, 1, 2, 3], [0, 2, 3, 1], [1, 0, 2, 3]):  # permutations that leave rows in place
        share = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
        matrices.append(m3col.mixed_targets(uniform_targets(positives, like), torch.tensor(partner), share))
    for targets in matrices:
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(BATCH, dtype=torch.float64), rtol=1e-12, atol=0)
        assert (targets >= 0).all()
        assert (targets.diagonal() > 0).all()


# The pair's own difference, which is always 0, counted among those of the negatives.


def test_a_sum_over_negatives_has_one_summand_less_than_the_batch():
    # All cosines equal: the pull and the push cancel but for the log of the number of negatives.
    similarity = torch.full((BATCH, BATCH), 0.3, dtype=torch.float64)
    assert make("dcl", {}).one_direction(similarity, EYE, 5.0).item() == pytest.approx(math.log(3), abs=1e-12)
    assert make("dcl", {}).one_direction(similarity, POSITIVES, 5.0).item() == pytest.approx(math.log(2), abs=1e-12)
    assert make("decoupled", {}).one_direction(similarity, POSITIVES, 5.0).item() == pytest.approx(math.log(3), abs=1e-12)
    assert infonce.build().one_direction(similarity, POSITIVES, 5.0).item() == pytest.approx(math.log(3), abs=1e-12)


def test_a_mean_exponential_over_negatives_leaves_out_the_pair():
    # Every negative is 1 lower than its pair: log g = -1 / 0.2; with the pair log((3 e^-5 + 1) / 4) = -1.37.
    objective = sogclr.build(num_rows=BATCH, tau=0.2)
    similarity = torch.full((BATCH, BATCH), -0.7, dtype=torch.float64).fill_diagonal_(0.3).requires_grad_()
    loss, _ = objective.one_direction(similarity, EYE, torch.arange(BATCH), side=0)
    objective.after_step()
    assert loss.item() == pytest.approx(-1, abs=1e-12)
    assert objective.log_normaliser[0].tolist() == pytest.approx([-5] * BATCH)


def test_a_mean_over_hinges_leaves_out_the_pair():
    # Every negative violates the margin 0.2 by exactly 0.2, the mean is 0.2; with the pair among them it would be 0.15.
    audio = text = torch.ones(BATCH, 1)
    output = make("triplet", {"reduction": "mean"})(audio, text, EYE, torch.arange(BATCH), 0.0)
    assert output.total.item() == pytest.approx(0.2, abs=1e-7)


@pytest.mark.parametrize("name", ["uniformity", "cross_uniformity"])
def test_a_mean_over_other_rows_leaves_out_the_row_itself(name):
    # Two opposite points: the one other row is at squared distance 4, log exp(-2 * 4) = -8. With the row itself, at 0, -0.69.
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    value = registry.build("term", name)(points, points, torch.eye(2, dtype=torch.bool))
    assert value.item() == pytest.approx(-8, abs=1e-5)


# A normal density is above 1 for every deviation below 0.4: as a weight it counts bad pairs more than good ones.


@pytest.mark.parametrize("deviation", [0.01, 0.1, 0.39])
def test_a_pair_that_stands_out_never_counts_more_than_one_that_does_not(deviation):
    mean, deviation = torch.tensor(1.0), torch.tensor(deviation)
    normal = torch.distributions.Normal(mean, deviation)
    peak = normal.log_prob(mean).exp()
    assert peak > 1  # the mistake
    losses = mean + deviation * torch.linspace(-3, 3, 7)
    weights = dbpm.odd_weights(losses, torch.ones(7, dtype=torch.bool), mean, deviation)
    assert weights.max() == 1
    torch.testing.assert_close(weights, normal.log_prob(losses).exp() / peak)


# A gate that is capped for the sample and not for the pair lets a clip whose captions disagree count more than one whose agree.


def test_a_clip_whose_captions_disagree_never_counts_more_than_one_whose_agree():
    # Captions of the first clip agree; those of the second are opposite to each other, one of them on the clip.
    audio = torch.eye(2, dtype=torch.float64)[[0, 0, 1, 1]]
    text = audio * torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
    weights = {}
    for cap in (True, False):
        gates = alip.build(cap=cap)
        gates.usual.copy_(torch.tensor([0.0, -1.0]))
        weights[cap] = gates.weigh(audio, text, POSITIVES, PAIRS_OF_CLIPS, 0.0)[0]
        assert weights[cap][:2].tolist() == [1, 1]
    assert weights[True].max() == 1
    # Sample gate e^(2 (-1 - 0)), pair gate e^(2 (1 + 1)): e^2 where its captions contradict each other.
    assert weights[False][2].item() == pytest.approx(math.exp(2))


# Hard captions of other clips, taken out of a sum by a factor of -100000: a cosine of -0.5 becomes 50000.


def hard_captions(similarity):
    """A batch, and for each clip one false caption that has cosine -0.5 with every clip."""
    audio, text = embeddings(similarity)
    variants = (-audio.sum(dim=0) / math.sqrt(BATCH)).expand(BATCH, 1, -1)
    return audio, text, Context(variants=variants, variant_truth=torch.full((BATCH, 1), -1, dtype=torch.int8))


def test_the_hard_captions_of_other_clips_do_not_become_huge_negatives(similarity):
    audio, text, context = hard_captions(similarity)
    cosines = audio @ context.variants[:, 0].T  # [B, B]
    mistaken = torch.cat([similarity.T, torch.where(EYE, cosines, -1e5 * cosines)], dim=1)
    assert mistaken.logsumexp(dim=1).min() > 40_000  # the mistake
    for name in ("infonce", "siglip", "svr", "reweighted"):
        objective = compa.build(wrapped=make(name, {}))
        added = objective(audio, text, EYE, torch.arange(BATCH), 0.0, context).total - total(make(name, {}), similarity, EYE)
        # Beside its own clip each is at -0.5 / tau, -5 at the most, and the odds of a match are 1 to 3: ln(1 + e^-5 / 3).
        assert 0 < added < 0.01


def test_a_hard_caption_is_in_no_sum_but_that_of_its_clip(similarity):
    audio, text, context = hard_captions(similarity)
    reference = compa.build()(audio, text, EYE, torch.arange(BATCH), 0.0, context).total
    moved = context.variants.clone()
    moved[0, 0, 1:BATCH] = 0.5  # clip 0 is the first axis
    context = Context(variants=moved, variant_truth=context.variant_truth)
    found = compa.build()(audio, text, EYE, torch.arange(BATCH), 0.0, context).total
    torch.testing.assert_close(found, reference, rtol=1e-12, atol=0)


# Parameters in a place where no optimiser and no checkpoint finds them.


def held(value):
    """Tensors and modules in a value, however deep in lists, tuples and dictionaries."""
    if isinstance(value, (torch.Tensor, nn.Module)):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from held(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from held(item)


def hidden(objective):
    """What an objective holds that learns, or could, but is not registered as such."""
    modules = set(objective.modules())
    parameters = {id(parameter) for parameter in objective.parameters()}
    for module in modules:
        for thing in held({key: value for key, value in vars(module).items() if not key.startswith("_backward")}):
            unregistered = isinstance(thing, nn.Module) and thing not in modules
            if unregistered or (isinstance(thing, torch.Tensor) and thing.requires_grad and id(thing) not in parameters):
                yield thing


@forms(EVERY_LOSS)
def test_everything_that_learns_is_registered_and_saved(name, options):
    objective = make(name, options)
    assert list(hidden(objective)) == []
    assert {key for key, _ in objective.named_parameters()} <= set(objective.state_dict())


@pytest.mark.parametrize("make_place", [lambda thing: [thing], lambda thing: {"key": (thing,)}])
def test_a_hidden_parameter_is_found(make_place):
    objective = infonce.build()
    objective.lost = make_place(nn.Parameter(torch.zeros(1)))
    assert len(list(hidden(objective))) == 1
