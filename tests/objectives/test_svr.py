import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clapkit import registry
from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives import infonce, siglip
from clapkit.objectives.schedules import mmts
from clapkit.objectives.svr import build

EPSILON = 1e-4
KINDS = ["adaptive", "static", "fixed", "ratio"]


def exact(**options):
    """An objective in float64; an adaptive radius looks at its input, as after training."""
    torch.manual_seed(0)
    objective = build(**options).double()
    for model in objective.radius.values():
        if getattr(model, "predictor", None) is not None:
            torch.nn.init.normal_(model.predictor[-1].weight, std=0.2)
    return objective


# The definition, transcribed slowly: one support vector, one candidate, one exponential at a time.


def oracle_radius(objective, options, side, anchors, targets, positives, i):
    """The radius of anchor i, R, and its distance, D."""
    batch_size = len(anchors)
    distance = math.sqrt(((targets[i] - anchors[i]) ** 2).sum().item() + EPSILON**2)
    kind = options["radius"]
    if kind == "fixed":
        return options["radius_init"], distance
    if kind == "ratio":
        return options["radius_init"] * distance, distance
    model = objective.radius["both"] if "both" in objective.radius else objective.radius[side]
    if kind == "static":
        return model.radius.item(), distance
    cosines = [(anchors[i] @ targets[j]).item() for j in range(batch_size)]
    kept = [cosines[j] for j in range(batch_size) if j == i or not positives[i, j]]
    others = [min(kept) if positives[i, j] else cosines[j] for j in range(batch_size) if j != i]
    if options.get("radius_input", "sorted") == "sorted":
        others.sort(reverse=True)
    return model.predictor(torch.tensor([cosines[i], *others], dtype=torch.float64)).item(), distance


def oracle_bounded(radius, distance, options):
    bound = options.get("radius_bound", "penalty")
    if bound == "hard":
        return distance / (1 + math.exp(-radius))
    if bound == "clamp":
        return min(max(radius, 0.0), options.get("max_ratio", 1.0) * distance)
    return radius


def oracle_row(logits, positives, i, *, base, soft):
    """Loss of one anchor, given its logits."""
    count = len(logits)
    if base == "siglip":
        loss = 0.0
        for j in range(count):
            if j == i or (soft and positives[i, j]):
                loss += math.log1p(math.exp(-logits[j]))
            elif not positives[i, j]:
                loss += math.log1p(math.exp(logits[j]))
        return loss
    wanted = [j for j in range(count) if j == i or (soft and positives[i, j])]
    allowed = [j for j in range(count) if j == i or soft or not positives[i, j]]
    log_sum = math.log(sum(math.exp(logits[j]) for j in allowed))
    return sum(log_sum - logits[j] for j in wanted) / len(wanted)


def oracle(objective, options, audio, text, positives):
    """Total loss and terms; ``options["tau"]`` is one number or one for each row."""
    base, soft, batch_size = options.get("base", "infonce"), options.get("targets") == "soft", len(audio)
    tau = options["tau"] if isinstance(options["tau"], list) else [options["tau"]] * batch_size
    bias = -math.log(batch_size - 1) if base == "siglip" else 0.0
    support, plain, penalties = {}, {}, []
    directions = {"t2a": (text, audio, positives), "a2t": (audio, text, positives.T)}
    for side, (anchors, targets, row_positives) in directions.items():
        plain[side] = support[side] = 0.0
        is_moved = side == "t2a" or options.get("sides", "bi") == "bi"
        for i in range(batch_size):
            vectors = [(plain, anchors[i])]
            if is_moved:
                raw, distance = oracle_radius(objective, options, side, anchors, targets, row_positives, i)
                penalties.append(max(raw - distance, 0.0) + max(-raw, 0.0))
                moved = anchors[i] + oracle_bounded(raw, distance, options) * (targets[i] - anchors[i]) / distance
                vectors.append((support, moved / moved.norm() if options.get("normalize_support") else moved))
            for sums, vector in vectors:
                logits = [(vector @ targets[j]).item() / tau[i] + bias for j in range(batch_size)]
                sums[side] += oracle_row(logits, row_positives, i, base=base, soft=soft) / batch_size
    total = (plain["t2a"] + plain["a2t"]) / 2
    total += options.get("alpha", 1.0) * (support["t2a"] + support["a2t"]) / 2
    penalised = options["radius"] == "adaptive" and options.get("radius_bound") != "hard"
    if penalised or options.get("constrain_static"):
        total += options.get("beta", 0.01) * sum(penalties) / len(penalties)
    return total, support


@pytest.mark.parametrize("radius", KINDS)
@pytest.mark.parametrize("base", ["infonce", "siglip"])
@pytest.mark.parametrize("sides", ["bi", "uni"])
@pytest.mark.parametrize("targets", ["ignore", "soft"])
def test_equals_the_slow_transcription(make_pairs, score, clones, radius, base, sides, targets):
    options = {"radius": radius, "base": base, "sides": sides, "targets": targets}
    options |= {"radius_init": 0.3, "tau": 0.1, "alpha": 0.7}
    for seed in range(2):
        audio, text = make_pairs(seed=seed)
        objective = exact(batch_size=6, temperature="fixed", **options)
        output = score(objective, audio, text, clones)
        total, support = oracle(objective, options, audio, text, clones)
        assert output.total.item() == pytest.approx(total, abs=1e-10)
        for side, value in support.items():
            assert output.terms.get(f"support_{side}", 0.0) == pytest.approx(value, abs=1e-10)


@pytest.mark.parametrize(
    "switches",
    [
        {"radius": "adaptive", "radius_bound": "hard"},
        {"radius": "adaptive", "radius_bound": "clamp", "max_ratio": 0.3},
        {"radius": "adaptive", "radius_shared": False, "radius_input": "raw"},
        {"radius": "adaptive", "beta": 0.5, "radius_init": 1.2},
        {"radius": "static", "radius_bound": "hard"},
        {"radius": "static", "constrain_static": True, "beta": 0.5, "radius_init": 1.0},
        {"radius": "static", "normalize_support": True},
        {"radius": "fixed", "radius_bound": "clamp", "radius_init": 1.0},
        {"radius": "ratio", "normalize_support": True, "radius_init": 1.5},
    ],
    ids=str,
)
def test_every_switch_equals_the_slow_transcription(make_pairs, score, clones, switches):
    options = {"radius_init": 0.3, "tau": 0.1, **switches}
    audio, text = make_pairs(seed=5)
    objective = exact(batch_size=6, temperature="fixed", **options)
    total, _ = oracle(objective, options, audio, text, clones)
    # 1e-7: normalisation is smoothed by EPSILON, whose square is 1e-8.
    tolerance = 1e-7 if "normalize_support" in switches else 1e-10
    assert score(objective, audio, text, clones).total.item() == pytest.approx(total, abs=tolerance)


def test_two_orthogonal_pairs_by_hand(score):
    # Texts (1,0,0,0), (0,1,0,0), audio (0,0,1,0), (0,0,0,1): every s is 0, every D is sqrt 2, tau = 1.
    # Base: ln 2. rho = 1/2: support vectors have similarity 1/2 with their clip and 0 with the other one, so
    # each row gives -1/2 + ln(e^0.5 + 1) = 0.474077. Total = ln 2 + 0.474077 = 1.167224.
    rows = torch.eye(4)
    objective = build(radius="fixed", radius_init=math.sqrt(0.5), temperature="fixed", tau=1.0)
    output = score(objective, rows[2:], rows[:2])
    assert output.total.item() == pytest.approx(1.167224, abs=1e-5)
    assert output.terms == pytest.approx(
        {"t2a": 0.693147, "a2t": 0.693147, "support_t2a": 0.474077, "support_a2t": 0.474077}, abs=1e-5
    )
    assert output.stats["mean_distance"] == pytest.approx(math.sqrt(2))
    assert output.stats["mean_rho"] == pytest.approx(0.5)


# Schedules.


def by_cluster(**options):
    return mmts.build(cluster_sizes=torch.tensor([1, 2, 2, 4, 4, 7]), **options)


@pytest.mark.parametrize("radius", KINDS)
@pytest.mark.parametrize("sides", ["bi", "uni"])
def test_a_support_vector_has_the_temperature_of_its_anchor(make_pairs, score, clones, radius, sides):
    options = {"radius": radius, "radius_init": 0.3, "sides": sides, "alpha": 0.7}
    audio, text = make_pairs(seed=2)
    objective = exact(batch_size=6, schedule=by_cluster(), **options)
    output = score(objective, audio, text, clones, progress=0.13)
    temperatures = by_cluster()(torch.arange(6), 0.13).tolist()
    total, support = oracle(objective, options | {"tau": temperatures}, audio, text, clones)
    assert output.total.item() == pytest.approx(total, abs=1e-10)
    for side, value in support.items():
        assert output.terms.get(f"support_{side}", 0.0) == pytest.approx(value, abs=1e-10)
    assert (output.stats["temperature_min"], output.stats["temperature_max"]) == (min(temperatures), max(temperatures))


@pytest.mark.parametrize("radius", KINDS)
def test_a_constant_schedule_is_the_fixed_temperature_bit_for_bit(make_pairs, score, clones, radius):
    audio, text = (rows.requires_grad_() for rows in make_pairs(dtype=torch.float32))
    flat, results = by_cluster(amplitude=0.0, shift_min=0.07, shift_max=0.07), []
    for options in ({"temperature": "fixed", "tau": 0.07}, {"schedule": flat}):
        torch.manual_seed(0)
        total = score(build(radius=radius, batch_size=6, **options), audio, text, clones).total
        results.append((total, *torch.autograd.grad(total, (audio, text))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_alpha_zero_is_the_scheduled_base_bit_for_bit(make_pairs, score, clones):
    audio, text = make_pairs(dtype=torch.float32)
    plain, regularised = infonce.build(schedule=by_cluster()), build(alpha=0.0, schedule=by_cluster(), batch_size=6)
    totals = [score(objective, audio, text, clones, progress=0.3).total for objective in (plain, regularised)]
    assert torch.equal(*totals)


def test_a_schedule_that_its_base_cannot_follow_is_refused():
    with pytest.raises(ConfigError, match="schedule: base=siglip has one scale and one bias for all pairs"):
        build(base="siglip", schedule=by_cluster())
    with pytest.raises(ConfigError, match="tau=0.1: the schedule gives every anchor its temperature"):
        build(tau=0.1, schedule=by_cluster())


# Limits of the radius and of alpha.


@pytest.mark.parametrize("base", ["infonce", "siglip"])
@pytest.mark.parametrize("targets", ["ignore", "soft"])
def test_alpha_zero_is_the_base_bit_for_bit(make_pairs, score, clones, base, targets):
    audio, text = (rows.requires_grad_() for rows in make_pairs(32, 64, dtype=torch.float32))
    plain = {"infonce": infonce, "siglip": siglip}[base].build(targets=targets)
    regularised = build(base=base, alpha=0.0, targets=targets, batch_size=32)
    positives = torch.eye(32, dtype=torch.bool)
    positives[3, 7] = positives[7, 3] = True
    totals, gradients = [], []
    for objective in (plain, regularised):
        output = score(objective, audio, text, positives)
        totals.append(output.total)
        gradients.append(torch.autograd.grad(output.total, (audio, text)))
    assert torch.equal(*totals)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("base", ["infonce", "siglip"])
def test_radius_zero_repeats_the_base(make_pairs, score, clones, base):
    audio, text = make_pairs()
    output = score(exact(base=base, radius="fixed", radius_init=0.0, alpha=0.6), audio, text, clones)
    plain = score({"infonce": infonce, "siglip": siglip}[base].build().double(), audio, text, clones)
    assert output.total.item() == pytest.approx(1.6 * plain.total.item(), abs=1e-12)
    for side in ("t2a", "a2t"):
        assert output.terms[f"support_{side}"] == pytest.approx(plain.terms.get(side, plain.total.item()), abs=1e-12)


def test_one_sided_radius_zero_weighs_text_to_audio_twice(make_pairs, score):
    audio, text = make_pairs()
    output = score(exact(radius="fixed", radius_init=0.0, sides="uni"), audio, text)
    assert output.total.item() == pytest.approx(output.terms["t2a"] + output.terms["a2t"] / 2, abs=1e-12)


def test_radius_of_the_distance_is_audio_audio_infonce(make_pairs, score):
    audio, text = make_pairs()
    output = score(exact(radius="ratio", radius_init=1.0, sides="uni", temperature="fixed", tau=0.07), audio, text)
    logits = audio @ audio.T / 0.07
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(6)).item()
    assert output.terms["support_t2a"] == pytest.approx(expected, abs=1e-10)


def test_adaptive_radius_starts_like_a_static_one(make_pairs, score):
    audio, text = make_pairs()
    adaptive, static = (build(radius=r, batch_size=6, radius_init=0.3).double() for r in ("adaptive", "static"))
    difference = score(adaptive, audio, text).total - score(static, audio, text).total
    assert abs(difference.item()) < 1e-12


# Invariances.


@pytest.mark.parametrize("radius", KINDS)
def test_a_common_rotation_changes_nothing(make_pairs, score, radius):
    audio, text = make_pairs()
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    objective = exact(radius=radius, batch_size=6)
    before, after = score(objective, audio, text), score(objective, audio @ turn, text @ turn)
    assert after.total.item() == pytest.approx(before.total.item(), abs=1e-10)


@pytest.mark.parametrize("radius", KINDS)
@pytest.mark.parametrize("base", ["infonce", "siglip"])
def test_batch_order_changes_nothing(make_pairs, score, clones, radius, base):
    audio, text = make_pairs()
    objective, order = exact(radius=radius, base=base, batch_size=6), torch.tensor([3, 5, 0, 1, 4, 2])
    before = score(objective, audio, text, clones)
    after = score(objective, audio[order], text[order], clones[order][:, order])
    assert after.total.item() == pytest.approx(before.total.item(), abs=1e-10)


@pytest.mark.parametrize("radius", KINDS)
@pytest.mark.parametrize("base", ["infonce", "siglip"])
def test_swapping_the_towers_changes_nothing_with_a_shared_radius(make_pairs, score, clones, radius, base):
    audio, text = make_pairs()
    objective = exact(radius=radius, base=base, batch_size=6)
    there, back = score(objective, audio, text, clones), score(objective, text, audio, clones)
    assert there.total.item() == pytest.approx(back.total.item(), abs=1e-10)
    assert there.terms["support_t2a"] == pytest.approx(back.terms["support_a2t"], abs=1e-10)


# Masks reach the support rows.


@pytest.mark.parametrize("base", ["infonce", "siglip"])
def test_a_masked_clone_has_no_influence_on_its_support_row(score, base):
    # Text 0 and audio 1 are one clip: what text 0 says must not reach the gradient of audio 1.
    rows = torch.nn.functional.normalize(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)), dim=2)
    audio, text = rows.double()
    audio.requires_grad_()
    positives = torch.eye(4, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = True
    objective = exact(base=base, radius="fixed", radius_init=0.3, sides="uni", temperature="fixed")
    moved = text.clone()
    moved[0] = -text[0]
    by_text = []
    for rows in (text, moved):
        term = objective._support_term("t2a", rows, audio, rows @ audio.T, positives, 10.0)
        by_text.append(torch.autograd.grad(term.loss, audio)[0])
    torch.testing.assert_close(by_text[0][1], by_text[1][1], atol=1e-12, rtol=0)
    assert not torch.allclose(by_text[0][2], by_text[1][2])


# Degenerate and low-precision input.


@pytest.mark.parametrize("radius", KINDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_identical_and_collapsed_embeddings_give_finite_gradients(score, radius, normalize):
    rows = torch.full((4, 4), 0.5)
    audio, text = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    objective = build(radius=radius, batch_size=4, normalize_support=normalize)
    output = score(objective, audio, text)
    output.total.backward()
    assert output.total.isfinite()
    assert audio.grad.isfinite().all()
    assert text.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in objective.parameters())
    assert output.stats["mean_distance"] == pytest.approx(EPSILON)


def test_one_identical_pair_among_others_is_finite(make_pairs, score):
    audio, text = make_pairs(dtype=torch.float32)
    audio = audio.clone()
    audio[2] = text[2]
    audio.requires_grad_()
    output = score(build(radius="static"), audio, text)
    output.total.backward()
    assert audio.grad.isfinite().all()
    assert output.stats["share_rho_above_1"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("radius", KINDS)
def test_bfloat16_embeddings_come_within_a_hundredth(make_pairs, score, radius):
    audio, text = make_pairs(24, 64)
    reference = score(build(radius=radius, batch_size=24).double(), audio, text).total.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = score(build(radius=radius, batch_size=24), audio.bfloat16(), text.bfloat16()).total
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(reference, abs=1e-2)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives back."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("radius", KINDS)
@pytest.mark.parametrize("base", ["infonce", "siglip"])
def test_no_operation_makes_a_batch_by_batch_by_width_tensor(make_pairs, score, radius, base):
    batch_size, width = 80, 70
    audio, text = (rows.requires_grad_() for rows in make_pairs(batch_size, width, dtype=torch.float32))
    objective = build(radius=radius, base=base, batch_size=batch_size)
    with LargestTensor() as largest:
        score(objective, audio, text).total.backward()
    assert largest.numel == batch_size * batch_size  # 6 400; B x B x D would be 448 000


# State and optimiser.


@pytest.mark.parametrize("radius", ["adaptive", "static"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_learned_radius_moves_and_survives_a_restart(make_pairs, score, radius, shared):
    audio, text = make_pairs(dtype=torch.float32)
    options = {"radius": radius, "radius_shared": shared, "batch_size": 6, "base": "siglip"}
    objective = build(**options)
    optimizer = torch.optim.Adam(objective.param_groups(1e-2, 0.1))
    before = [parameter.clone() for parameter in objective.radius.parameters()]
    score(objective, audio, text).total.backward()
    optimizer.step()
    after = score(objective, audio, text)
    last_of_each = {"adaptive": [5] if shared else [5, 11], "static": [0] if shared else [0, 1]}[radius]
    for number in last_of_each:  # hidden layers follow once the last one has left its zero weights
        assert not torch.equal(before[number], list(objective.radius.parameters())[number])
    restarted = build(**options)
    restarted.load_state_dict(objective.state_dict())
    assert torch.equal(score(restarted, audio, text).total, after.total)
    assert ("mean_radius_t2a" in after.stats) == (not shared)


def test_clamped_scale_of_the_base():
    objective = build(radius="static")
    with torch.no_grad():
        objective.base.temperature.log_scale.fill_(9.0)
    objective.after_step()
    assert objective.base.temperature.scale(torch.arange(2), 0.0).item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"radius": "static", "radius_lr": 0.5}, {"temperature": 0.1, "radius": 0.5}),
        ({"radius": "static"}, {"temperature": 0.1, "radius": 0.1}),
        ({"radius": "fixed"}, {"temperature": 0.1}),
        ({"radius": "ratio", "temperature": "fixed"}, {}),
        ({"radius": "adaptive", "base": "siglip", "batch_size": 4}, {"temperature": 0.1, "bias": 0.1, "radius": 0.1}),
    ],
    ids=str,
)
def test_every_parameter_is_in_one_group_without_decay(options, expected):
    objective = build(**options)
    groups = objective.param_groups(0.1, 0.3)
    assert {group["name"]: group["lr"] for group in groups} == expected
    assert all(group["weight_decay"] == 0 for group in groups)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in objective.parameters())


def test_parameters_of_an_adaptive_radius_without_batch_size_are_unknown_before_the_first_batch(make_pairs, score):
    objective = build()
    with pytest.raises(ConfigError, match="no parameters before its first batch; pass batch_size"):
        objective.param_groups(0.1, 0.0)
    score(objective, *make_pairs(dtype=torch.float32))
    assert [group["name"] for group in objective.param_groups(0.1, 0.0)] == ["temperature", "radius"]


def test_stats_tell_where_the_radius_is(make_pairs, score):
    audio, text = make_pairs()
    output = score(exact(radius="fixed", radius_init=10.0), audio, text)
    assert output.stats["share_rho_above_1"] == 1
    objective = exact(radius="static")
    with torch.no_grad():
        objective.radius["both"].radius.fill_(-0.5)
    output = score(objective, audio, text)
    assert output.stats["share_rho_below_0"] == 1
    assert output.stats["mean_radius"] == -0.5
    distance = (audio - text).norm(dim=1).mean().item()
    assert output.stats["mean_distance"] == pytest.approx(distance, abs=1e-6)
    assert all(isinstance(value, float) for value in (*output.stats.values(), *output.terms.values()))


# Options.


def test_command_line_defaults_are_two_sided_dynamic_svr_on_infonce():
    objective = registry.build("loss", "svr", {"batch_size": 8})
    assert isinstance(objective.base, infonce.InfoNCE)
    assert objective.settings.sides == "bi"
    assert (objective.settings.alpha, objective.settings.beta) == (1.0, 0.01)
    assert objective.radius["both"].predictor[-1].bias.item() == 0.25


def test_each_base_brings_its_own_temperature():
    assert build(base="infonce").base.temperature.tau == 0.07
    assert build(base="siglip").base.temperature.tau == 0.1
    assert build(base="siglip", bias_init=-10.0).base.bias.item() == -10


def test_registry_reads_every_kind_of_option():
    text = {"radius": "static", "radius_shared": "false", "tau": "0.2", "radius_lr": "none", "bias_init": "auto"}
    text |= {"sides": "bi", "constrain_static": "yes", "beta": "0.1", "detach_pull_target": "true"}
    objective = registry.build("loss", "svr", text)
    assert set(objective.radius) == {"t2a", "a2t"}
    assert (objective.settings.beta, objective.settings.detach_pull_target) == (0.1, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "triplet"}, "base=triplet: expected one of infonce, siglip"),
        ({"sides": "tri"}, "sides=tri: expected one of bi, uni"),
        ({"radius_input": "shuffled"}, "radius_input=shuffled: expected one of sorted, raw"),
        ({"radius": "wide"}, "radius=wide: expected one of adaptive"),
        ({"alpha": -1.0}, "alpha=-1.0: expected a weight of 0 or more"),
        ({"alpha": math.nan}, "alpha=nan: expected a weight of 0 or more"),
        ({"beta": -1.0}, "beta=-1.0: expected a weight of 0 or more"),
        ({"batch_size": 1}, "batch_size=1: expected at least 2"),
        ({"beta": 0.1, "radius": "fixed"}, "beta=0.1: radius=fixed with radius_bound=penalty has no penalty"),
        ({"beta": 0.1, "radius": "static"}, "no penalty to weigh; set constrain_static=true"),
        ({"beta": 0.1, "radius_bound": "hard"}, "beta=0.1: radius=adaptive with radius_bound=hard has no penalty"),
        ({"constrain_static": True}, "constrain_static=true: radius=adaptive is not static"),
        (
            {"constrain_static": True, "radius": "static", "radius_bound": "hard"},
            "constrain_static=true: radius_bound=hard never leaves",
        ),
        ({"bias_init": -10.0}, "bias_init=-10.0: base=infonce has no bias"),
        ({"tau": 0.0}, "tau=0.0: expected a positive temperature"),
        ({"targets": "hard"}, "targets=hard: expected one of ignore, soft"),
        ({"max_ratio": 1.0}, "max_ratio=1.0: radius_bound=penalty has no such limit"),
        ({"radius_init": -0.1}, "radius_init=-0.1: expected 0 or more"),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_a_ragged_batch_is_refused(make_pairs, score):
    with pytest.raises(ShapeError, match="the batch has 6 pairs, the predictor was made for 8"):
        score(build(batch_size=8), *make_pairs(dtype=torch.float32))
