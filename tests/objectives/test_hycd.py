import copy
import math

import pytest
import torch
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import row_blocks
from clapkit.objectives.added import with_terms
from clapkit.objectives.contract import needs_of, score
from clapkit.objectives.hycd import build, row_divergences
from clapkit.objectives.temperature import Temperature
from clapkit.types import Context

EYE = torch.eye(6, dtype=torch.bool)
INDEX = torch.arange(6)


def told(audio, text, **more):
    return Context(teacher_audio=audio, teacher_text=text, **more)


def total(objective, pairs, teacher, positives=EYE, **more):
    return score(objective, *pairs, positives, INDEX, 0.5, told(*teacher, **more))


def gradients(objective, pairs, call):
    """Of the embeddings and of the parameters."""
    leaves = [rows.clone().requires_grad_() for rows in pairs]
    objective.zero_grad()
    call(*leaves).backward()
    return [leaf.grad for leaf in leaves] + [p.grad for p in objective.parameters()]


def based_on(name, **options):
    """A base in float64, with what its build demands."""
    return registry.build("loss", name, options | ({"batch_size": 6} if name == "svr" else {})).double()


BASES = ["infonce", "siglip", "svr", "reweighted"]


def test_the_divergence_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2 = 0.3041 - 0.1733 = 0.1308. Equal rows: 0.
    student = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    teacher = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    found = row_divergences([student, teacher], torch.zeros(2, 2, dtype=torch.bool))
    assert found.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0], abs=1e-7)


def test_the_loss_by_hand():
    # Student: cosines 1 and 0 at tau 1, P = sigmoid(1) = 0.7311 on the diagonal, InfoNCE ln(1 + e^-1) = 0.3133.
    # Teacher: all cosines 0, (1/2, 1/2): KL = 1/2 ln(0.5 / 0.7311) + 1/2 ln(0.5 / 0.2689) = 0.1201.
    rows, zeros = torch.eye(2), torch.zeros(2, 2)
    objective = build(wrapped=registry.build("loss", "infonce", {"tau": 1.0}), distill=0.25)
    output = objective(rows, rows, torch.eye(2, dtype=torch.bool), torch.arange(2), 0.0, told(zeros, zeros))
    p = 1 / (1 + math.exp(-1))
    divergence = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    assert output.total.item() == pytest.approx(0.75 * math.log(1 + math.exp(-1)) + 0.25 * divergence, rel=1e-6)
    assert output.terms == pytest.approx(
        {"t2a": -math.log(p), "a2t": -math.log(p), "distill_t2a": divergence, "distill_a2t": divergence}, rel=1e-6
    )
    assert output.stats == pytest.approx({"temperature": 1.0, "positive_cosine": 1.0, "teacher_positive_cosine": 0.0})


def naive(pairs, teacher, positives, *, tau, teacher_tau, soften):
    """Half the sum of KL over both directions, one entry at a time, over what is not masked."""
    loss = 0.0
    (audio, text), (known_audio, known_text) = pairs, teacher
    size = len(audio)
    for anchors, others, known, known_others in (
        (text, audio, known_text, known_audio),
        (audio, text, known_audio, known_text),
    ):
        for i in range(size):
            columns = [j for j in range(size) if i == j or not positives[i, j]]
            p = [math.exp(float(known[i] @ known_others[j]) / teacher_tau / soften) for j in columns]
            q = [math.exp(float(anchors[i] @ others[j]) / tau / soften) for j in columns]
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            loss += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / size / 2
    return loss


@pytest.mark.parametrize("soften", [1.0, 3.0])
@pytest.mark.parametrize("teacher_tau", [None, 0.2])
def test_the_loss_is_that_of_a_loop_over_all_entries(make_pairs, clones, soften, teacher_tau):
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    objective = build(wrapped=based_on("infonce", tau=0.1), teacher_tau=teacher_tau, soften=soften, distill=1.0)
    expected = naive(pairs, teacher, clones, tau=0.1, teacher_tau=teacher_tau or 0.1, soften=soften)
    assert total(objective, pairs, teacher, clones).total.item() == pytest.approx(soften**2 * expected, rel=1e-6)


@pytest.mark.parametrize("distill", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("targets", ["ignore", "soft"])
def test_around_infonce_it_is_the_divergence_from_mixed_targets_up_to_a_constant(make_pairs, clones, distill, targets):
    """KL(Y || P) with Y = (1 - distill) U + distill softmax(teacher): gradients of embeddings and temperature."""
    pairs, (teacher_audio, teacher_text) = make_pairs(), make_pairs(seed=1)
    objective = build(wrapped=based_on("infonce", targets=targets), distill=distill)
    positives = clones if targets == "soft" else EYE
    even = positives.double() / positives.sum(dim=1, keepdim=True)

    def literal(audio, text):
        scale = objective.wrapped.temperature.log_scale.exp()
        loss = 0.0
        for anchors, others, known in (
            (text, audio, teacher_text @ teacher_audio.T),
            (audio, text, teacher_audio @ teacher_text.T),
        ):
            mixed = (1 - distill) * even + distill * (known / 0.07).softmax(dim=1)
            log_p = (scale * anchors @ others.T).log_softmax(dim=1)
            loss = loss + (torch.xlogy(mixed, mixed) - mixed * log_p).sum(dim=1).mean() / 2
        return loss

    def ours(audio, text):
        return total(objective, (audio, text), (teacher_audio, teacher_text), positives).total

    for found, expected in zip(gradients(objective, pairs, ours), gradients(objective, pairs, literal), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    if distill in (0.0, 1.0) and targets == "ignore":  # one-hot targets have no entropy, and those of the teacher alone neither
        assert ours(*pairs).item() == pytest.approx(literal(*pairs).item(), rel=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_without_distillation_it_is_the_wrapped_loss(make_pairs, clones, base):
    wrapped, pairs = based_on(base), make_pairs()
    objective = build(wrapped=copy.deepcopy(wrapped), distill=0.0)
    found = gradients(objective, pairs, lambda *own: total(objective, own, make_pairs(seed=1), clones).total)
    expected = gradients(wrapped, pairs, lambda *own: wrapped(*own, clones, INDEX, 0.5).total)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("base", BASES)
def test_a_student_that_is_the_teacher_has_nothing_to_gain(make_pairs, clones, base):
    pairs = make_pairs()
    objective = build(wrapped=based_on(base), distill=1.0)
    output = total(objective, pairs, pairs, clones)
    assert output.total.item() == pytest.approx(0.0, abs=1e-14)
    for gradient in gradients(objective, pairs, lambda *own: total(objective, own, pairs, clones).total):
        assert gradient.abs().max() < 1e-7  # the scale is rounded to float32


@pytest.mark.parametrize("base", BASES)
def test_every_base_keeps_its_share_and_its_terms(make_pairs, base):
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    wrapped = based_on(base)
    objective = build(wrapped=wrapped, distill=0.25)
    output, alone = total(objective, pairs, teacher), wrapped(*pairs, EYE, INDEX, 0.5)
    distilled = (output.terms["distill_t2a"] + output.terms["distill_a2t"]) / 2
    assert output.total.item() == pytest.approx(0.75 * alone.total.item() + 0.25 * distilled, rel=1e-9)
    assert alone.terms.items() <= output.terms.items()
    assert alone.stats.items() <= output.stats.items()
    temperature = next(m for m in wrapped.modules() if isinstance(m, Temperature))
    expected = naive(pairs, teacher, EYE, tau=temperature.tau, teacher_tau=temperature.tau, soften=1.0)
    assert distilled == pytest.approx(expected, rel=1e-6)
    assert objective.param_groups(0.1, 0.2) == wrapped.param_groups(0.1, 0.2)


def test_further_positives_are_masked_in_student_and_teacher_alike(make_pairs, clones):
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(6, 6, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2)]
    found = row_divergences(logits, clones)
    with torch.no_grad():
        for rows in logits:
            rows[clones & ~EYE] = 50.0
    assert torch.equal(row_divergences(logits, clones), found)
    assert not torch.allclose(row_divergences(logits, EYE), found)
    for gradient in torch.autograd.grad(row_divergences(logits, clones).sum(), logits):
        assert gradient.isfinite().all()
        assert (gradient[clones & ~EYE] == 0).all()
    # Where the wrapped loss shares its target among them, they stay.
    soft = build(wrapped=based_on("svr", targets="soft"), distill=1.0)
    assert build(wrapped=based_on("svr")).masks_further_positives
    assert not soft.masks_further_positives
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    assert total(soft, pairs, teacher, clones).terms["distill_t2a"] == total(soft, pairs, teacher).terms["distill_t2a"]


def test_a_batch_of_one_clip_has_nothing_to_distil(make_pairs):
    objective = build(wrapped=based_on("infonce"))
    everything = torch.ones(6, 6, dtype=torch.bool)
    output = total(objective, make_pairs(), make_pairs(seed=1), everything)
    assert output.total.item() == 0.0
    for gradient in gradients(
        objective, make_pairs(), lambda *own: total(objective, own, make_pairs(seed=1), everything).total
    ):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_nothing_reaches_the_teacher(make_pairs):
    teacher = [rows.requires_grad_() for rows in make_pairs(seed=1)]
    pairs = [rows.requires_grad_() for rows in make_pairs()]
    total(build(wrapped=based_on("infonce")), pairs, teacher).total.backward()
    assert all(rows.grad is None for rows in teacher)
    assert all(rows.grad.norm() > 0 for rows in pairs)


def test_the_teacher_keeps_the_temperature_of_the_start(make_pairs):
    objective = build(wrapped=based_on("infonce", tau=0.05))
    with torch.no_grad():
        objective.wrapped.temperature.log_scale.fill_(0.0)
    assert objective.teacher_scale(INDEX, 0.5, dtype=torch.float64) == 1 / 0.05
    assert build(wrapped=based_on("infonce"), teacher_tau=0.5).teacher_scale(INDEX, 0.5, dtype=torch.float64) == 2.0


def test_with_a_schedule_teacher_and_student_have_the_temperature_of_the_anchor(make_pairs, per_row):
    values = torch.linspace(0.05, 0.3, 6, dtype=torch.float64)
    objective = build(wrapped=based_on("infonce", schedule=per_row(values)), distill=1.0)
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    loss = 0.0
    for anchors, others, known, known_others in ((1, 0, 1, 0), (0, 1, 0, 1)):
        logits = [
            rows[a] @ rows[b].T / values[:, None] for rows, a, b in ((pairs, anchors, others), (teacher, known, known_others))
        ]
        loss += float(row_divergences(logits, EYE).mean()) / 2
    assert total(objective, pairs, teacher).total.item() == pytest.approx(loss, rel=1e-10)
    assert total(objective, pairs, pairs).total.item() == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("base", ["infonce", "svr"])
def test_blocks_of_rows_give_loss_and_gradients_of_the_whole_matrix(make_pairs, clones, monkeypatch, base):
    options = {"radius": "static"} if base == "svr" else {}
    objective = build(wrapped=registry.build("loss", base, options).double(), distill=0.7, soften=2.0)
    pairs, teacher = make_pairs(), make_pairs(seed=1)

    def call(*own):
        return total(objective, own, teacher, clones).total

    value, expected = call(*pairs), gradients(objective, pairs, call)
    monkeypatch.setattr(row_blocks, "MOST_ROWS", 4)
    assert len(row_blocks.blocks_of(6)) == 3
    torch.testing.assert_close(call(*pairs), value)
    for found, whole in zip(gradients(objective, pairs, call), expected, strict=True):
        torch.testing.assert_close(found, whole)


def test_the_order_of_the_batch_does_not_matter(make_pairs, clones):
    torch.manual_seed(0)
    objective = build(wrapped=based_on("infonce"), rafa=0.5)
    pairs, teacher, features = make_pairs(), make_pairs(seed=1), torch.randn(2, 6, 5, dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    context = told(*teacher, audio_features=features[0], text_features=features[1])
    first = score(objective, *pairs, clones, INDEX, 0.5, context)
    moved = [rows[order] for rows in pairs]
    second = score(objective, *moved, clones[order][:, order], INDEX[order], 0.5, context.select(order))
    assert second.total.item() == pytest.approx(first.total.item(), rel=1e-12)


def test_half_precision_is_scored_in_float32(make_pairs):
    pairs, teacher = make_pairs(dtype=torch.bfloat16), make_pairs(seed=1, dtype=torch.bfloat16)
    objective = build()
    output = total(objective, pairs, teacher)
    assert output.total.dtype == torch.float32
    exact = total(objective, [rows.float() for rows in pairs], [rows.float() for rows in teacher])
    assert output.total.item() == exact.total.item()


# Random feature alignment ----------------------------------------------------------------------------------------------------


def aligned(objective, audio, text, index=INDEX):
    pairs = normalize(audio, dim=1), normalize(text, dim=1)
    context = told(*pairs, audio_features=audio, text_features=text)
    return score(objective, *pairs, EYE, index, 0.5, context)


def features_of(seed=0, width=5):
    return torch.randn(2, 6, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def only_rafa(seed=0):
    torch.manual_seed(seed)
    return build(wrapped=based_on("infonce"), distill=1.0, rafa=1.0)


def target_of(objective, index=INDEX):
    """What features are drawn to: the gradient at 0 is -2 r / (2 B D)."""
    zeros = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    other = torch.zeros(6, 5, dtype=torch.float64)
    aligned(objective, zeros, other, index).total.backward()
    return -zeros.grad * 6 * 5


def test_features_are_asked_for_only_where_they_are_used():
    assert needs_of(build()) == {"teacher"}
    assert needs_of(build(rafa=0.1)) == {"teacher", "features"}
    assert needs_of(with_terms(build(rafa=0.1), ["alignment=0.1"])) == {"teacher", "features"}
    assert build().state_dict().keys() == {"wrapped.temperature.log_scale"}
    assert build().teacher_momentum is None


def test_both_sides_of_a_pair_are_drawn_to_the_same_vector():
    objective, (audio, text) = only_rafa(), features_of()
    audio.requires_grad_()
    text.requires_grad_()
    output = aligned(objective, audio, text)
    output.total.backward()
    target = target_of(objective)
    # mean over both sides of the mean square: 1 / (2 B D) of the sum, so a gradient of (z - r) / (B D).
    torch.testing.assert_close(audio.grad, (audio.detach() - target) / 30, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(text.grad, (text.detach() - target) / 30, rtol=1e-9, atol=1e-9)
    expected = ((audio.detach() - target).square().mean() + (text.detach() - target).square().mean()) / 2
    assert output.terms["rafa"] == pytest.approx(expected.item(), rel=1e-9)
    assert output.total.item() == pytest.approx(expected.item(), rel=1e-9)


def test_captions_of_a_clip_share_its_vector():
    target = target_of(only_rafa(), torch.tensor([7, 3, 7, 3, 9, 9]))
    assert torch.equal(target[0], target[2])
    assert torch.equal(target[1], target[3])
    assert torch.equal(target[4], target[5])
    assert not torch.isclose(target[0], target[1]).any()


def test_the_vector_is_new_after_every_step_and_the_same_until_then():
    objective = only_rafa()
    first, again = target_of(objective), target_of(objective)
    assert torch.equal(first, again)
    objective.after_step()
    assert not torch.isclose(target_of(objective), first).any()


def test_vectors_are_standard_normal():
    torch.manual_seed(0)
    objective = only_rafa()
    drawn = []
    for _ in range(50):
        drawn.append(target_of(objective))
        objective.after_step()
    numbers = torch.stack(drawn).flatten()  # 1500: within 4 / sqrt(1500) = 0.1
    assert abs(numbers.mean()) < 0.1
    assert abs(numbers.std() - 1) < 0.08


def test_torchs_generators_are_left_alone():
    objective = only_rafa()
    state = torch.get_rng_state()
    target_of(objective)
    objective.after_step()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resumed_objective_draws_what_the_other_would_have_drawn():
    whole, resumed = only_rafa(), only_rafa(seed=1)
    for _ in range(3):
        whole.after_step()
    assert not torch.isclose(target_of(whole), target_of(resumed)).any()
    resumed.load_state_dict(whole.state_dict())
    for _ in range(2):
        assert torch.equal(target_of(whole), target_of(resumed))
        whole.after_step()
        resumed.after_step()


def test_the_weight_scales_the_alignment_and_nothing_else():
    audio, text = features_of()
    values = []
    for weight in (0.5, 2.0):
        torch.manual_seed(0)
        values.append(aligned(build(wrapped=based_on("infonce"), rafa=weight), audio, text))
    assert values[1].terms == values[0].terms
    assert (values[1].total - values[0].total).item() == pytest.approx(1.5 * values[0].terms["rafa"], rel=1e-9)


def test_in_expectation_it_is_a_penalty_on_length_which_unit_norm_has_not():
    """E |z - r|^2 = |z|^2 + d: the mean gradient is along z, and what is left of it on the unit sphere is 0."""
    objective, (audio, text) = only_rafa(), features_of()
    audio.requires_grad_()
    for _ in range(64):
        aligned(objective, audio, text).total.backward()
        objective.after_step()
    mean = audio.grad * 30 / 64  # of z - r: within 4 / sqrt(64) = 0.5 of z
    torch.testing.assert_close(mean, audio.detach(), rtol=0, atol=0.5)
    along = normalize(audio.detach(), dim=1)
    across = mean - (mean * along).sum(dim=1, keepdim=True) * along
    assert across.norm(dim=1).mean() < 0.5  # noise alone, of 4 numbers: sqrt(4 / 64) = 0.25
    assert mean.norm(dim=1).mean() > 1.5


def test_alignment_closes_the_gap_between_the_modalities():
    objective, (audio, text) = only_rafa(), features_of()
    audio, text = (audio + 3).requires_grad_(), (text - 3).requires_grad_()
    optimizer = torch.optim.SGD([audio, text], lr=6.0)
    gap = [float((audio.mean(dim=0) - text.mean(dim=0)).detach().norm())]
    for _ in range(20):
        optimizer.zero_grad()
        aligned(objective, audio, text).total.backward()
        optimizer.step()
        objective.after_step()
    gap.append(float((audio.mean(dim=0) - text.mean(dim=0)).detach().norm()))
    assert gap[1] < 0.1 * gap[0]


# Errors ----------------------------------------------------------------------------------------------------------------------


def test_a_batch_without_a_teacher_or_without_features_is_refused(make_pairs):
    with pytest.raises(ShapeError, match="HyCD: the batch brings no teacher, which this objective needs"):
        score(build(), *make_pairs(), EYE, INDEX, 0.0)
    with pytest.raises(ShapeError, match="HyCD: the batch brings no features, which this objective needs"):
        score(build(rafa=0.1), *make_pairs(), EYE, INDEX, 0.0, told(*make_pairs()))
    with pytest.raises(ShapeError, match="batch of 1 pairs has no negatives"):
        score(build(), *make_pairs(1), EYE[:1, :1], INDEX[:1], 0.0, told(*make_pairs(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": 1.5}, "distill=1.5: expected a share from 0 to 1"),
        ({"distill": -0.1}, "distill=-0.1: expected a share from 0 to 1"),
        ({"teacher_tau": 0.0}, "teacher_tau=0.0: expected a positive temperature, for example 0.07"),
        ({"soften": math.inf}, "soften=inf: expected a positive temperature, for example 1.0"),
        ({"rafa": -1.0}, "rafa=-1.0: expected a finite weight of 0 or more"),
        ({"rafa": math.inf}, "rafa=inf: expected a finite weight of 0 or more"),
        (
            {"wrapped": torch.nn.Linear(1, 1)},
            "wrapped=Linear: cannot be held to a teacher; expected one of infonce, siglip, svr",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
