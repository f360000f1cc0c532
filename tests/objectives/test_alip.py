import math

import pytest
import torch
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.errors import ConfigError
from clapkit.objectives.alip import build, caption_agreement

CLIPS = torch.tensor([4, 4, 7, 7])
POSITIVES = CLIPS[:, None] == CLIPS[None, :]


def at(degrees):
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def usual(objective, text_text, text_audio):
    with torch.no_grad():
        objective.usual.copy_(torch.tensor([text_text, text_audio]))
    return objective


def weights_of(objective, audio, text, index=CLIPS):
    return objective.weigh(audio, text, index[:, None] == index[None, :], index, 0.5)[0].tolist()


def call(objective, audio, text, index=CLIPS):
    return objective(audio, text, index[:, None] == index[None, :], index, 0.5)


# Clips at 0 and 90 degrees. The captions of the first agree, 10 degrees apart; those of the second are 60 degrees apart, and
# one of them is at the clip, the other far from it.
AUDIO, TEXT = at([0, 0, 90, 90]), at([0, 10, 90, 30])


def test_agreement_by_hand():
    agreement, has_others = caption_agreement(TEXT, CLIPS)
    cosines = [math.cos(math.radians(angle)) for angle in (10, 10, 60, 60)]
    assert agreement.tolist() == pytest.approx(cosines)
    assert has_others.all()


def test_of_several_captions_the_one_that_contradicts_the_others_agrees_least():
    agreement, _ = caption_agreement(at([0, 0, 90]), torch.tensor([1, 1, 1]))
    assert agreement.tolist() == pytest.approx([0.5, 0.5, 0.0])  # mean cosines with the two others


def test_gates_by_hand():
    # H_tt = cos 30, H_ta = cos 30. First clip: cos 10 is above, so w = v = 1. Second: w = exp(2 (cos 60 - cos 30)) = 0.4809;
    # its third pair has t.a = 1 and v = 1 (capped), its fourth t.a = cos 60 and v = w.
    objective = usual(build(), math.cos(math.radians(30)), math.cos(math.radians(30)))
    gate = math.exp(2 * (0.5 - math.cos(math.radians(30))))
    assert weights_of(objective, AUDIO, TEXT) == pytest.approx([1.0, 1.0, gate, gate**2])


def test_without_the_cap_a_fitting_pair_of_a_doubtful_clip_counts_more():
    low = {"text_text": math.cos(math.radians(30)), "text_audio": 0.0}
    capped = weights_of(usual(build(), **low), AUDIO, TEXT)
    free = weights_of(usual(build(cap=False), **low), AUDIO, TEXT)
    gate = math.exp(2 * (0.5 - math.cos(math.radians(30))))
    assert capped == pytest.approx([1.0, 1.0, gate, gate])
    assert free == pytest.approx([1.0, 1.0, gate * math.exp(2), gate * math.exp(2 * 0.5)])
    assert max(capped) <= 1 < max(free)


@pytest.mark.parametrize("wrapped", ["infonce", "siglip", "svr", "reweighted"])
def test_a_consistent_batch_is_the_plain_loss_of_two_captions(wrapped):
    options = {"radius": "ratio"} if wrapped == "svr" else {}
    plain = registry.build("loss", wrapped, options)
    objective = usual(build(wrapped=registry.build("loss", wrapped, options)), 0.0, 0.9)
    expected = plain(AUDIO, TEXT, POSITIVES, CLIPS, 0.5)
    torch.testing.assert_close(call(objective, AUDIO, TEXT).total, expected.total, rtol=1e-12, atol=0)


def test_a_strength_of_0_is_the_plain_loss():
    plain = registry.build("loss", "infonce")
    assert weights_of(build(strength=0.0), AUDIO, TEXT) == [1.0] * 4
    torch.testing.assert_close(call(build(strength=0.0), AUDIO, TEXT).total, plain(AUDIO, TEXT, POSITIVES, CLIPS, 0.5).total)


def test_a_clip_with_a_single_caption_counts_once_and_moves_nothing():
    objective = usual(build(), 0.99, 0.99)
    assert weights_of(objective, AUDIO, TEXT, torch.tensor([1, 2, 3, 4])) == [1.0] * 4
    call(objective, AUDIO, TEXT, torch.tensor([1, 2, 3, 4]))
    objective.after_step()
    assert objective.usual.tolist() == pytest.approx([0.99, 0.99])
    mixed = weights_of(objective, AUDIO, TEXT, torch.tensor([1, 2, 3, 3]))
    assert mixed[:2] == [1.0, 1.0]
    assert max(mixed[2:]) < 1


def test_usual_cosines_follow_the_batches_once_a_step():
    # Means of the batch: (2 cos 10 + 2 cos 60) / 4 and (1 + cos 10 + 1 + cos 60) / 4; two equal batches in a step move once.
    objective = build(momentum=0.9)
    assert objective.usual.tolist() == [1.0, 1.0]
    for _ in range(2):
        call(objective, AUDIO, TEXT)
    assert objective.usual.tolist() == [1.0, 1.0]
    objective.after_step()
    cos10 = math.cos(math.radians(10))
    expected = [0.9 + 0.1 * (cos10 + 0.5) / 2, 0.9 + 0.1 * (2 + cos10 + 0.5) / 4]
    assert objective.usual.tolist() == pytest.approx(expected)


def test_usual_cosines_come_back_on_resume_bit_for_bit(make_pairs):
    whole, first, second = (build(momentum=0.5) for _ in range(3))
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    for number in range(4):
        for objective in (whole, first if number < 2 else second):
            call(objective, *make_pairs(seed=number), index)
            objective.after_step()
        if number == 1:
            second.load_state_dict(first.state_dict())
    assert torch.equal(whole.usual, second.usual)
    assert (whole.usual < 1).all()


def test_weights_carry_no_gradient():
    audio, text = AUDIO.clone().requires_grad_(), TEXT.clone().requires_grad_()
    objective = build()
    weights = objective.weigh(AUDIO, TEXT, POSITIVES, CLIPS, 0.5)[0]
    call(objective, audio, text).total.backward()
    found, text.grad = text.grad, None
    objective.wrapped(audio, text, POSITIVES, CLIPS, 0.5, weights).total.backward()
    assert torch.equal(found, text.grad)


def test_the_log_says_what_the_gates_do():
    # With the usual cosines at 1, all captions disagree more than usual.
    stats = call(build(), AUDIO, TEXT).stats
    assert stats["gated_share"] == 1.0
    assert 0 < stats["mean_weight"] < 1
    assert (stats["usual_agreement"], stats["usual_fit"]) == (1.0, 1.0)


def test_the_order_of_captions_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1)
    audio = normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1)
    index, order = torch.tensor([3, 3, 3, 9, 9, 2]), torch.tensor([4, 0, 5, 2, 3, 1])
    first = torch.tensor(weights_of(usual(build(), 0.4, 0.3), audio, text, index))
    second = torch.tensor(weights_of(usual(build(), 0.4, 0.3), audio[order], text[order], index[order]))
    torch.testing.assert_close(second, first[order])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength=-1.0: expected 0 or more"),
        ({"momentum": 1.0}, "momentum=1.0: expected at least 0 and less than 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
