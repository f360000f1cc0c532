import math

import pytest
import torch
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import infonce
from clapkit.objectives.cwcl import build


@pytest.fixture
def features():
    return normalize(torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7)), dim=1)


def loop_oracle(audio, text, positives, features, *, kernel, side, tau):
    """The paper's sums, entry by entry; ``tau`` is one number for each row."""
    batch_size, total = len(audio), 0.0
    for name, anchors, candidates, row_of in (("text", text, audio, positives), ("audio", audio, text, positives.T)):
        for i in range(batch_size):
            logit = [(anchors[i] @ candidates[j]).item() / tau[i] for j in range(batch_size)]
            if name != side:
                allowed = [j for j in range(batch_size) if j == i or not row_of[i, j]]
                total += (math.log(sum(math.exp(logit[j]) for j in allowed)) - logit[i]) / batch_size / 2
                continue
            cosines = [(features[i] @ features[j]).item() for j in range(batch_size)]
            weights = [(1 + c) / 2 if kernel == "affine" else math.exp((c - 1) / 0.1) for c in cosines]
            weights = [1.0 if row_of[i, j] else weights[j] for j in range(batch_size)]
            log_sum = math.log(sum(math.exp(x) for x in logit))
            total += sum(w * (log_sum - x) for w, x in zip(weights, logit, strict=True)) / sum(weights) / batch_size / 2
    return total


def test_two_orthogonal_pairs_by_hand(score):
    # s = identity, tau = 1: -log softmax is 0.31326 on and 1.31326 off the diagonal. Orthogonal features weigh 1 and 0.5,
    # so targets are 2/3 and 1/3: t2a = 0.31326 + 1/3 = 0.64660. a2t = 0.31326. exp(entropy(2/3, 1/3)) = 1.88988.
    rows = torch.eye(2)
    output = score(build(temperature="fixed", tau=1.0, features=torch.eye(2)), rows, rows)
    assert output.terms == pytest.approx({"t2a": 0.646595, "a2t": 0.313262}, abs=1e-5)
    assert output.total.item() == pytest.approx((0.646595 + 0.313262) / 2, abs=1e-5)
    expected = {"temperature": 1.0, "positive_cosine": 1.0, "effective_positives": 1.889882}
    assert output.stats == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kernel", ["affine", "exp"])
@pytest.mark.parametrize("side", ["text", "audio"])
@pytest.mark.parametrize("seed", range(2))
def test_equals_the_loop(make_pairs, score, clones, features, kernel, side, seed):
    audio, text = make_pairs(seed=seed)
    total = score(build(temperature="fixed", kernel=kernel, features=features, side=side), audio, text, clones).total.item()
    expected = loop_oracle(audio, text, clones, features, kernel=kernel, side=side, tau=[0.07] * 6)
    assert total == pytest.approx(expected, abs=1e-10)


def test_features_without_any_likeness_give_infonce(make_pairs, score):
    # Orthogonal features weigh exp(-1 / 0.001), which is 0.
    audio, text = make_pairs()
    objective = build(kernel="exp", kernel_temperature=1e-3, features=torch.eye(6))
    output, expected = score(objective, audio, text), score(infonce.build(), audio, text)
    assert output.total.item() == pytest.approx(expected.total.item(), abs=1e-12)
    assert output.stats["effective_positives"] == pytest.approx(1)


def test_opposite_features_of_two_pairs_give_infonce(make_pairs, score):
    audio, text = make_pairs(batch_size=2)
    objective = build(features=torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert score(objective, audio, text).total.item() == pytest.approx(score(infonce.build(), audio, text).total.item())


@pytest.mark.parametrize("kernel", ["affine", "exp"])
def test_equal_features_ask_for_a_uniform_row(make_pairs, score, kernel):
    audio, text = make_pairs()
    objective = build(kernel=kernel, features=torch.ones(6, 1))
    targets = objective.targets(torch.arange(6), torch.eye(6, dtype=torch.bool), audio)
    torch.testing.assert_close(targets, torch.full((6, 6), 1 / 6, dtype=torch.float64))
    output = score(objective, audio, text)
    assert output.terms["t2a"] >= math.log(6)
    assert output.stats["effective_positives"] == pytest.approx(6)


def test_targets_carry_no_gradient(make_pairs, score, features):
    features.requires_grad_()
    objective = build(features=features)
    assert not objective.targets(torch.arange(6), torch.eye(6, dtype=torch.bool), features).requires_grad
    audio, text = (x.requires_grad_() for x in make_pairs())
    score(objective, audio, text).total.backward()
    assert features.grad is None
    assert [name for name, _ in objective.named_parameters()] == ["infonce.temperature.log_scale"]


def test_gradient_of_the_soft_direction_is_probability_minus_target(features):
    # With audio and text the standard basis times x, s = x: only the soft direction is looked at, through its term.
    similarity = torch.rand(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    eye, index = torch.eye(6, dtype=torch.bool), torch.arange(6)
    objective = build(temperature="fixed", tau=0.2, features=features)
    objective(torch.eye(6, dtype=torch.float64), similarity, eye, index, 0.0).total.backward()
    soft = (similarity / 0.2).softmax(dim=1) - objective.targets(index, eye, similarity)
    hard = (similarity / 0.2).softmax(dim=0) - eye.double()
    torch.testing.assert_close(similarity.grad, ((soft + hard) / (2 * 6 * 0.2)).detach(), atol=1e-12, rtol=0)


def test_the_side_is_the_one_with_soft_targets(make_pairs, score, clones, features):
    audio, text = make_pairs()
    by_text = score(build(features=features, side="text"), audio, text, clones)
    by_audio = score(build(features=features, side="audio"), text, audio, clones)
    assert by_text.terms["t2a"] == pytest.approx(by_audio.terms["a2t"], abs=1e-12)
    assert by_text.terms["a2t"] == pytest.approx(by_audio.terms["t2a"], abs=1e-12)
    assert by_text.terms["t2a"] != pytest.approx(by_text.terms["a2t"], abs=0.1)


def test_features_are_looked_up_by_training_row(make_pairs, features):
    audio, text = make_pairs(batch_size=3)
    eye, index = torch.eye(3, dtype=torch.bool), torch.tensor([5, 0, 2])
    from_table = build(features=features)(audio, text, eye, index, 0.0).total
    alone = build(features=features[index])(audio, text, eye, torch.arange(3), 0.0).total
    assert torch.equal(from_table, alone)


def test_further_positives_count_like_the_own_partner(clones):
    objective = build(kernel="exp", kernel_temperature=1e-3, features=torch.eye(6))
    targets = objective.targets(torch.arange(6), clones, torch.empty(0, dtype=torch.float64))
    torch.testing.assert_close(targets, clones.double() / clones.sum(dim=1, keepdim=True))


def test_the_affine_kernel_leaves_the_pair_little_of_its_target():
    # 23 unrelated rows of weight 0.5: 1 / (1 + 11.5) = 0.08.
    targets = build(features=torch.eye(24)).targets(torch.arange(24), torch.eye(24, dtype=torch.bool), torch.empty(0))
    torch.testing.assert_close(targets.diagonal(), torch.full((24,), 0.08))


def test_rounding_does_not_give_a_weight_above_one_or_below_zero():
    features = torch.tensor([[1.0003], [1.0003], [-1.0003]], dtype=torch.float64)  # as a half-precision vector may be
    targets = build(features=features).targets(torch.arange(3), torch.eye(3, dtype=torch.bool), features)
    expected = [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64), atol=0, rtol=0)


def test_a_row_without_features_still_has_its_pair(make_pairs, score, features):
    features[1] = 0
    output = score(build(kernel="exp", features=features), *make_pairs())
    assert output.total.isfinite()
    targets = build(kernel="exp", features=features).targets(torch.arange(6), torch.eye(6, dtype=torch.bool), features)
    assert targets[1, 1] > 0.99


def test_every_row_has_the_temperature_of_its_schedule(make_pairs, score, clones, per_row, features):
    audio, text = make_pairs()
    tau = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.5, 1.0], dtype=torch.float64)
    total = score(build(schedule=per_row(tau), features=features), audio, text, clones).total.item()
    expected = loop_oracle(audio, text, clones, features, kernel="affine", side="text", tau=tau.tolist())
    assert total == pytest.approx(expected, abs=1e-10)


def test_a_batch_without_negatives_is_finite(make_pairs, score, features):
    audio, text = (x.requires_grad_() for x in make_pairs())
    output = score(build(features=features), audio, text, torch.ones(6, 6, dtype=torch.bool))
    output.total.backward()
    assert output.terms["a2t"] == 0
    assert audio.grad.isfinite().all()
    assert text.grad.isfinite().all()


def test_features_are_not_part_of_the_checkpoint(features):
    assert list(build(features=features).state_dict()) == ["infonce.temperature.log_scale"]


def test_registry_reads_the_options(features):
    given = {"kernel": "exp", "kernel_temperature": "0.2", "side": "audio", "temperature": "fixed", "features": features}
    objective = registry.build("loss", "cwcl", given)
    assert (objective.kernel, objective.kernel_temperature, objective.side) == ("exp", 0.2, "audio")
    assert objective.param_groups(0.1, 0.1) == []
    assert [group["name"] for group in build(features=features).param_groups(0.1, 0.1)] == ["temperature"]


def test_bad_input_is_refused(score, features):
    with pytest.raises(ShapeError, match="no negatives"):
        score(build(features=features), torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ConfigError, match="clapkit train supplies them, else pass features"):
        build()
    with pytest.raises(ConfigError, match="row 2 has norm 2; expected 1"):
        build(features=torch.tensor([[1.0], [0.0], [2.0]]))
    with pytest.raises(ConfigError, match="row 0 has norm nan"):
        build(features=torch.tensor([[math.nan]]))
    with pytest.raises(ConfigError, match=r"features is torch.int64 \[3\]; expected floats"):
        build(features=torch.arange(3))
    with pytest.raises(ConfigError, match="kernel=linear"):
        build(features=features, kernel="linear")
    with pytest.raises(ConfigError, match="side=both"):
        build(features=features, side="both")
    with pytest.raises(ConfigError, match="kernel_temperature=0: expected more than 0"):
        build(features=features, kernel="exp", kernel_temperature=0)
    with pytest.raises(ConfigError, match="kernel_temperature=0.2: kernel=affine has no temperature"):
        build(features=features, kernel_temperature=0.2)
    with pytest.raises(ConfigError, match="tau=0"):
        build(features=features, tau=0)
