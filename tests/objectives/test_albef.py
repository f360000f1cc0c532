import math

import pytest
import torch
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import albef
from clapkit.objectives.albef import Queue, build, row_blocks
from clapkit.objectives.contract import needs_of, score
from clapkit.training.checkpoint import load_checkpoint, save_checkpoint
from clapkit.types import Context

EYE = torch.eye(6, dtype=torch.bool)
INDEX = torch.arange(6)


def call(objective, pairs, teacher, positives=EYE, *, index=INDEX, progress=0.5):
    context = Context(teacher_audio=teacher[0], teacher_text=teacher[1])
    return score(objective, *pairs, positives, index, progress, context)


def queued(size=8, width=5, **options):
    """An objective in float64 with a queue."""
    return build(queue=size, embedding_dim=width, **options).double()


def rows_of_queue(objective):
    return objective.queue.row.tolist()


def test_the_loss_by_hand():
    # One text t = (1, 0) against the teacher's clips (1, 0) and (0, 1) at tau 1: P = (0.7311, 0.2689). The teacher's text is
    # (0, 1): its answers are (0.2689, 0.7311). a = 0.4: Y = 0.6 (1, 0) + 0.4 (0.2689, 0.7311) = (0.7076, 0.2924), and
    # -0.7076 ln 0.7311 - 0.2924 ln 0.2689 = 0.2217 + 0.3840 = 0.6057. The other text is the mirror image, and so is the audio.
    rows = torch.eye(2)
    objective = build(temperature="fixed", tau=1.0, ramp=0.0)
    output = call(objective, (rows, rows), (rows, rows.flip(0)), torch.eye(2, dtype=torch.bool), index=torch.arange(2))
    p = 1 / (1 + math.exp(-1))
    target = 0.6 + 0.4 * (1 - p)
    assert output.terms["t2a"] == pytest.approx(-target * math.log(p) - (1 - target) * math.log(1 - p), rel=1e-6)
    assert output.terms["t2a"] == pytest.approx(0.6057, abs=1e-4)
    assert output.stats["teacher_share"] == 0.4
    assert output.stats["teacher_positive_cosine"] == 0.0
    assert output.stats["positive_cosine"] == 1.0


def naive(pairs, teacher, positives, index, queue, *, tau, share):
    """The loss, one entry at a time; ``queue`` is a list of (row, audio, text)."""
    (audio, text), (known_audio, known_text) = pairs, teacher
    loss = 0.0
    sides = ((text, known_text, known_audio, 1), (audio, known_audio, known_text, 2))
    for anchors, known, others, kind in sides:
        candidates = [*others, *(entry[kind] for entry in queue)]
        for i in range(len(anchors)):
            marked = [bool(positives[i, j]) for j in range(len(anchors))] + [entry[0] == int(index[i]) for entry in queue]
            answers = [math.exp(float(known[i] @ candidate) / tau) for candidate in candidates]
            logits = [float(anchors[i] @ candidate) / tau for candidate in candidates]
            log_sum = math.log(sum(map(math.exp, logits)))
            for mark, answer, logit in zip(marked, answers, logits, strict=True):
                target = (1 - share) * mark / sum(marked) + share * answer / sum(answers)
                loss -= target * (logit - log_sum) / len(anchors) / 2
    return loss


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_loss_is_that_of_a_loop_over_batch_and_queue(make_pairs, clones, share, steps):
    objective, queue = queued(distill=share, ramp=0.0), []
    for number in range(steps):  # the second batch wraps around: 12 pairs in 8 places
        teacher, rows = make_pairs(seed=10 + number), INDEX + 4 * number
        call(objective, make_pairs(seed=20 + number), teacher, index=rows)
        objective.after_step()
        queue += list(zip(rows.tolist(), *teacher, strict=True))
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    expected = naive(pairs, teacher, clones, INDEX, queue[-8:], tau=0.07, share=share)
    assert call(objective, pairs, teacher, clones).total.item() == pytest.approx(expected, rel=1e-6)


def test_without_queue_and_distillation_it_is_infonce_with_frozen_keys(make_pairs):
    objective = build(momentum=1.0, distill=0.0).double()
    infonce = registry.build("loss", "infonce").double()
    teacher = make_pairs(seed=1)
    pairs = [rows.requires_grad_() for rows in make_pairs()]
    found = call(objective, pairs, teacher)
    # A direction of infonce with the student's anchors and the teacher's candidates.
    scale = infonce.temperature.scale(INDEX, 0.5)
    expected = (
        infonce.one_direction(pairs[1] @ teacher[0].T, EYE, scale),
        infonce.one_direction(pairs[0] @ teacher[1].T, EYE, scale),
    )
    torch.testing.assert_close(found.total, sum(expected) / 2)
    assert (found.terms["t2a"], found.terms["a2t"]) == pytest.approx(tuple(loss.item() for loss in expected))
    ours = torch.autograd.grad(found.total, [*pairs, *objective.parameters()])
    theirs = torch.autograd.grad(sum(expected) / 2, [*pairs, *infonce.parameters()])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
    assert objective.teacher_momentum == 1.0


def test_a_student_that_is_the_teacher_and_believes_it_has_no_gradient(make_pairs):
    objective = queued(distill=1.0, ramp=0.0)
    pairs = [rows.requires_grad_() for rows in make_pairs()]
    call(objective, pairs, [rows.detach() for rows in pairs]).total.backward()
    assert max(rows.grad.abs().max() for rows in pairs) < 1e-12
    assert objective.temperature.log_scale.grad.abs() < 1e-12


def test_targets_and_candidates_have_no_gradient_and_the_temperature_none_through_them(make_pairs):
    objective = build(distill=1.0, ramp=0.0).double()
    pairs, teacher = make_pairs(), [rows.requires_grad_() for rows in make_pairs(seed=1)]
    call(objective, pairs, teacher).total.backward()
    assert all(rows.grad is None for rows in teacher)
    scale, answers = objective.temperature.log_scale.detach().exp(), []
    log_scale = objective.temperature.log_scale.detach().clone().requires_grad_()
    with torch.no_grad():
        answers = [(scale * teacher[1] @ teacher[0].T).softmax(1), (scale * teacher[0] @ teacher[1].T).softmax(1)]
    logits = [log_scale.exp() * anchors @ others.T for anchors, others in ((pairs[1], teacher[0]), (pairs[0], teacher[1]))]
    loss = -sum((y * z.log_softmax(1)).sum(1).mean() for y, z in zip(answers, logits, strict=True)) / 2
    torch.testing.assert_close(objective.temperature.log_scale.grad, torch.autograd.grad(loss, log_scale)[0])


def test_the_share_of_the_teacher_grows_to_its_end():
    objective = build(distill=0.4, ramp=0.2)
    assert [objective.share(progress) for progress in (0.0, 0.05, 0.1, 0.2, 1.0)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    assert build(distill=0.4, ramp=0.0).share(0.0) == 0.4


# The queue -------------------------------------------------------------------------------------------------------------------


def test_what_was_never_written_to_is_in_no_softmax(make_pairs):
    plain, objective = build(ramp=0.0).double(), queued(ramp=0.0)
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    expected = call(plain, pairs, teacher)
    assert call(objective, pairs, teacher).total.item() == expected.total.item()
    with torch.no_grad():
        for buffer in (objective.queue.audio, objective.queue.text):
            buffer.copy_(30.0)
    found = call(objective, [rows.requires_grad_() for rows in pairs], teacher)
    assert found.total.item() == expected.total.item()
    assert found.stats["queue_filled"] == 0.0
    (gradient,) = torch.autograd.grad(found.total, [pairs[0]])
    assert gradient.isfinite().all()


def test_the_queue_wraps_around_where_batches_do_not_divide_it():
    queue, written = Queue(7, 2), []
    for number in range(6):
        rows = torch.arange(3 * number, 3 * number + 3)
        values = torch.stack([rows.float(), -rows.float()], dim=1)
        queue.write(values, values + 0.5, rows)
        written += rows.tolist()
        assert sorted(queue.row[queue.row >= 0].tolist()) == written[-7:]  # always the newest, before and after it is full
        assert int(queue.pointer) == len(written) % 7
    # 18 pairs: places 0 to 3 hold pairs 14 to 17, places 4 to 6 pairs 11 to 13.
    assert queue.row.tolist() == [14, 15, 16, 17, 11, 12, 13]
    assert torch.equal(queue.audio[:, 0].long(), queue.row)
    assert torch.equal(queue.text[:, 0], queue.audio[:, 0] + 0.5)


def test_of_a_batch_larger_than_the_queue_the_end_stays():
    queue, rows = Queue(4, 1), torch.arange(10)
    queue.write(rows[:, None].float(), rows[:, None].float(), rows)
    assert queue.row.tolist() == [6, 7, 8, 9]
    queue.write(rows[:1, None].float(), rows[:1, None].float(), rows[:1])
    assert queue.row.tolist() == [0, 7, 8, 9]


def test_the_queue_is_written_after_the_step_and_not_before(make_pairs):
    objective = queued()
    first = call(objective, make_pairs(), make_pairs(seed=1))
    second = call(objective, make_pairs(), make_pairs(seed=1))
    assert second.total.item() == first.total.item()
    assert rows_of_queue(objective) == [-1] * 8
    objective.after_step()
    # Two batches of 6 in 8 places: the first went to places 0 to 5, the second to 6, 7 and 0 to 3.
    assert rows_of_queue(objective) == [2, 3, 4, 5, 4, 5, 0, 1]
    objective.after_step()  # nothing is written twice
    assert int(objective.queue.pointer) == 12 % 8


def test_batches_of_one_step_see_the_same_queue_and_all_are_queued(make_pairs):
    together, apart = queued(16), queued(16)
    batches = [(make_pairs(seed=seed), make_pairs(seed=seed + 5), INDEX + 6 * seed) for seed in range(2)]
    losses = [call(together, pairs, teacher, index=index).total.item() for pairs, teacher, index in batches]
    together.after_step()
    for (pairs, teacher, index), loss in zip(batches, losses, strict=True):
        fresh = queued(16)
        assert call(fresh, pairs, teacher, index=index).total.item() == loss
        call(apart, pairs, teacher, index=index)
        apart.after_step()
    assert rows_of_queue(together) == [*range(12), -1, -1, -1, -1]
    for name, tensor in apart.state_dict().items():
        assert torch.equal(together.state_dict()[name], tensor), name


def test_the_teachers_embeddings_are_queued_and_not_the_students(make_pairs):
    objective, teacher = queued(), make_pairs(seed=1)
    call(objective, make_pairs(), teacher)
    objective.after_step()
    assert torch.equal(objective.queue.audio[:6], teacher[0])
    assert torch.equal(objective.queue.text[:6], teacher[1])


def test_the_same_training_row_in_the_queue_is_a_positive(make_pairs):
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    # In the queue is what the student says of the same rows, so that it fits well there.
    values = []
    for rows in (INDEX, INDEX + 6):
        objective = queued(6, distill=0.0)
        call(objective, pairs, pairs, index=rows)
        objective.after_step()
        values.append(call(objective, pairs, teacher).total.item())
    expected = naive(pairs, teacher, EYE, INDEX, list(zip(range(6), *pairs, strict=True)), tau=0.07, share=0.0)
    assert values[0] == pytest.approx(expected, rel=1e-6)
    assert values[0] < values[1] - 0.1


def test_more_negatives_make_the_task_harder(make_pairs):
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    objective = queued(64, distill=0.0)
    losses = [call(objective, pairs, teacher).total.item()]
    for number in range(1, 6):
        objective._noted.clear()
        call(objective, pairs, make_pairs(seed=number + 1), index=INDEX + 6 * number)
        objective.after_step()
        losses.append(call(objective, pairs, teacher).total.item())
    assert losses == sorted(losses)
    assert losses[-1] > losses[0]


@pytest.mark.parametrize("size", [0, 7])
def test_a_checkpoint_restores_the_queue_bit_for_bit(tmp_path, make_pairs, size):
    def objective():
        return build(queue=size, embedding_dim=5, ramp=0.0)

    whole, first, resumed = objective(), objective(), objective()

    def step(target, number):
        pairs, teacher = (make_pairs(seed=seed, dtype=torch.float32) for seed in (number, number + 50))
        output = call(target, pairs, teacher, index=INDEX + number)
        target.after_step()
        return output.total.item()

    for number in range(3):
        step(whole, number)
        step(first, number)
    encoder = torch.nn.Linear(1, 1)
    save_checkpoint(tmp_path / "last", encoder=encoder, objective=first, state={})
    load_checkpoint(tmp_path / "last", encoder=encoder, objective=resumed)
    for number in range(3, 6):
        assert step(resumed, number) == step(whole, number)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)
    assert size == 0 or int(whole.queue.pointer) == 36 % 7


def test_blocks_of_rows_give_loss_and_gradients_of_the_whole_matrix(make_pairs, clones, monkeypatch):
    objective = queued(ramp=0.0)
    call(objective, make_pairs(seed=3), make_pairs(seed=4), index=INDEX + 3)
    objective.after_step()
    pairs, teacher = [rows.requires_grad_() for rows in make_pairs()], make_pairs(seed=1)

    def found():
        output = call(objective, pairs, teacher, clones)
        return output.total, *torch.autograd.grad(output.total, [*pairs, *objective.parameters()])

    expected = found()
    monkeypatch.setattr(albef, "MOST_ROWS", 6)
    assert row_blocks(6, 14) == [slice(0, 2), slice(2, 4), slice(4, 6)]  # 36 // 14 = 2 rows
    for ours, whole in zip(found(), expected, strict=True):
        torch.testing.assert_close(ours, whole)


def test_a_batch_of_usual_size_is_one_block():
    assert row_blocks(256, 256) == [slice(0, 256)]
    blocks = row_blocks(4096, 4096 + 65536)
    assert max(block.stop - block.start for block in blocks) * (4096 + 65536) <= 4096**2
    assert (blocks[0].start, blocks[-1].stop) == (0, 4096)


def test_with_a_schedule_teacher_and_student_have_the_temperature_of_the_anchor(make_pairs, per_row):
    values = torch.linspace(0.05, 0.3, 6, dtype=torch.float64)
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    objective = build(schedule=per_row(values), ramp=0.0)
    loss = 0.0
    for anchors, known, candidates in ((pairs[1], teacher[1], teacher[0]), (pairs[0], teacher[0], teacher[1])):
        answers = (known @ candidates.T / values[:, None]).softmax(dim=1)
        targets = 0.6 * EYE.double() + 0.4 * answers
        loss -= (targets * (anchors @ candidates.T / values[:, None]).log_softmax(dim=1)).sum(dim=1).mean() / 2
    assert call(objective, pairs, teacher).total.item() == pytest.approx(loss.item(), rel=1e-9)


def test_the_order_of_the_batch_does_not_matter(make_pairs, clones):
    pairs, teacher = make_pairs(), make_pairs(seed=1)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    found = call(
        build(ramp=0.0).double(), [rows[order] for rows in pairs], [rows[order] for rows in teacher], clones[order][:, order]
    )
    assert found.total.item() == pytest.approx(call(build(ramp=0.0).double(), pairs, teacher, clones).total.item(), rel=1e-12)


def test_half_precision_is_scored_in_float32(make_pairs):
    pairs, teacher = make_pairs(dtype=torch.bfloat16), make_pairs(seed=1, dtype=torch.bfloat16)
    objective = build(queue=8, embedding_dim=5)
    output = call(objective, pairs, teacher)
    assert output.total.dtype == torch.float32
    exact = call(objective, [rows.float() for rows in pairs], [rows.float() for rows in teacher])
    assert output.total.item() == exact.total.item()


def test_soft_targets_find_the_partner_of_a_pair_with_a_wrong_caption():
    """Two clips whose captions were swapped: the teacher's share pulls them to where the teacher has them."""
    generator = torch.Generator().manual_seed(0)
    audio = normalize(torch.randn(6, 8, generator=generator), dim=1)
    swapped = audio[[1, 0, 2, 3, 4, 5]]  # the teacher knows better: text 0 sounds like clip 1
    gradients = []
    for share in (0.0, 0.9):
        text = swapped.clone().requires_grad_()
        call(build(distill=share, ramp=0.0), (audio, text), (audio, swapped)).total.backward()
        gradients.append(float((text.grad[0] * (audio[0] - audio[1])).sum()))
    assert gradients[0] < gradients[1] < 0  # pulled to the clip that it was put with, but less so


def test_it_asks_for_a_teacher_that_follows():
    assert needs_of(build()) == {"teacher"}
    assert build(momentum=0.9).teacher_momentum == 0.9
    assert build().teacher_momentum == 0.995
    assert [group["name"] for group in build().param_groups(0.1, 0.2)] == ["temperature"]


def test_the_temperature_stays_in_its_range(make_pairs):
    objective = build()
    with torch.no_grad():
        objective.temperature.log_scale.fill_(9.0)
    objective.after_step()
    assert objective.temperature.log_scale.item() == pytest.approx(math.log(100))


def test_a_batch_without_a_teacher_or_of_another_width_is_refused(make_pairs):
    with pytest.raises(ShapeError, match="ALBEF: the batch brings no teacher, which this objective needs"):
        score(build(), *make_pairs(), EYE, INDEX, 0.0)
    with pytest.raises(ShapeError, match="embeddings have 4 numbers, those of its queue 5; pass embedding_dim=4"):
        call(queued(), make_pairs(6, 4), make_pairs(6, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.1}, "momentum=1.1: expected a share from 0 to 1, for example 0.995"),
        ({"distill": -0.1}, "distill=-0.1: expected a share from 0 to 1, for example 0.4"),
        ({"ramp": 2.0}, "ramp=2.0: expected a share of the training from 0 to 1"),
        ({"queue": -1}, "queue=-1: expected a number of pairs, 0 for no queue"),
        ({"queue": 8}, "queue=8: the width of its embeddings is not known; clapkit train supplies embedding_dim"),
        ({"tau": 5.0}, "tau=5.0: a learnable temperature stays in"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_a_queue_that_no_machine_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match="queue=1048577: expected at most 1048576 pairs"):
        albef.build(queue=2**20 + 1, embedding_dim=8)
