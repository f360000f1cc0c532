"""What every plug-in of a kind promises, whatever it is called: the contract that a new file has to keep."""

import dataclasses
import inspect
import itertools
import json
import types
import typing

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional

from clapkit import registry
from clapkit.errors import ConfigError, EmbeddingError, ShapeError, UnknownNameError
from clapkit.objectives import contract
from clapkit.objectives.languages import Anchored, PerLanguage
from clapkit.objectives.window_fusion import FusedSimilarity
from clapkit.types import AudioSpec, Context

LOSSES = registry.names("loss")
AUDIO_TOWERS = registry.names("audio encoder")
TEXT_TOWERS = registry.names("text encoder")
TERMS = registry.names("term")
SCHEDULES = registry.names("schedule")
BATCH, WIDTH = 8, 12
ROWS_OF_LANGUAGE = 4


def make_schedule(name, **options):
    """A schedule with what the train step supplies."""
    supplied = {"total_steps": 100, "steps_per_epoch": 10, "cluster_sizes": torch.tensor([1, 2, 2, 3, 3, 3, 5, 9])}
    known = registry.defaults("schedule", name)
    return registry.build("schedule", name, {key: value for key, value in supplied.items() if key in known} | options)


def scheduled(name):
    """Options with which a loss follows a schedule."""
    quantity = "margin" if "margin" in registry.defaults("loss", name) else "temperature"
    return {"schedule": make_schedule("mmts", quantity=quantity)} | ({"kernel": "exp"} if name == "cwcl" else {})


# Objectives whose behaviour differs by more than weights are looked at in every form.
FORMS = [(name, {}) for name in LOSSES] + [
    *(("svr", {"radius": radius, "sides": sides}) for radius in ("static", "fixed", "ratio") for sides in ("bi", "uni")),
    *(("svr", {"radius_bound": bound}) for bound in ("hard", "clamp")),
    ("svr", {"base": "siglip"}),
    *(("triplet", {"reduction": reduction}) for reduction in ("max", "mean", "weighted")),
    ("infonce", {"temperature": "fixed", "targets": "soft"}),
    ("dcl", {"weighted": True}),
    ("cwcl", {"kernel": "exp"}),
    ("cwcl", {"kernel": "exp", "side": "audio"}),
    ("mochi", {"num_hardest": 4, "num_mixed": 5, "num_query_mixed": 3}),
    ("m3col", {"mix_until": 1.0, "mix_share": 1.0, "beta": 1.0}),
    ("cacr", {"repulsion": 7.0, "detach_weights": True}),
    ("sogclr", {"gamma": 1.0}),
    ("sogclr", {"individual": True}),
    *(("reweighted", {"base": base, "sides": "uni"}) for base in ("infonce", "siglip")),
    *((name, {"targets": "ot"}) for name in ("infonce", "svr", "reweighted")),
    *((name, {"wrapped": wrapped}) for name in ("dbpm", "alip") for wrapped in ("siglip", "svr")),
    ("dbpm", {"warmup": 0.0, "c1": 0.5, "c2": 0.5}),
    *(("compa", {"wrapped": wrapped}) for wrapped in ("siglip", "svr", "reweighted")),
    *(("hycd", {"wrapped": wrapped}) for wrapped in ("siglip", "svr", "reweighted")),
    *(("hycd", {"rafa": 0.5} | more) for more in ({}, {"wrapped": "svr", "soften": 2.0})),
    ("albef", {"queue": 8, "ramp": 0.0}),
    *((name, scheduled(name)) for name in LOSSES if "schedule" in registry.defaults("loss", name)),
    # What the train step puts around a loss, see make_loss.
    *((name, {"around": "windows"}) for name in ("infonce", "siglip")),
    *((name, {"around": "each language"}) for name in ("infonce", "svr", "compa", "hycd")),
    *((name, {"around": "anchor"}) for name in ("infonce", "svr")),
]
forms = pytest.mark.parametrize(("name", "options"), FORMS, ids=lambda value: value if isinstance(value, str) else str(value))


def make_loss(name, options, *, batch=BATCH, seed=0):
    """An objective with what the train step supplies."""
    options = dict(options)
    around = options.pop("around", None)
    rows = {"each language": min(batch, ROWS_OF_LANGUAGE), "anchor": batch // 2}.get(around, batch)
    features = functional.normalize(torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(5)), dim=1)
    supplied = {"batch_size": rows, "features": features, "side": "text", "num_rows": BATCH, "embedding_dim": WIDTH}
    known = registry.defaults("loss", name)
    if "wrapped" in options:
        options["wrapped"] = make_loss(options["wrapped"], {}, batch=rows, seed=seed)
    torch.manual_seed(seed)
    loss = registry.build("loss", name, {key: value for key, value in supplied.items() if key in known} | options)
    if around is None:
        return loss
    wrappers = {"windows": FusedSimilarity, "each language": PerLanguage, "anchor": lambda loss: Anchored(loss, 1)}
    return wrappers[around](loss)


def pairs(*, batch=BATCH, seed=0, dtype=torch.float32):
    """Unit-norm audio and text [B, D] that resemble each other a little."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(batch, WIDTH, generator=generator)
    text = audio + 1.5 * torch.randn(batch, WIDTH, generator=generator)
    return [functional.normalize(x, dim=1).to(dtype).requires_grad_() for x in (audio, text)]


def context_of(audio, text, index):
    """All that an objective may ask for, made of the pairs without rounding, so that half precision has it exactly.

    Of each row in four, variants are one false and one true; two false; none; one true and two false. The teacher thinks
    about as the model does. Every other clip has a second window, which is another sound.
    """
    last = 1 - 2 * (torch.arange(WIDTH, device=audio.device) == WIDTH - 1).to(audio.dtype)  # turns one axis around
    truths = torch.tensor([[-1, 1, 0], [-1, -1, 0], [0, 0, 0], [-1, 1, -1]], dtype=torch.int8, device=audio.device)
    is_longer = index % 2 == 0
    other = (audio.roll(1, dims=1) * is_longer[:, None].to(audio.dtype))[:, None]
    return Context(
        language=index // ROWS_OF_LANGUAGE,
        variants=torch.stack([text.roll(1, dims=1), text * last, text.roll(2, dims=1)], dim=1),
        variant_truth=truths[index % 4],
        teacher_audio=(audio * last).detach(),
        teacher_text=text.detach(),
        audio_features=2 * audio,
        text_features=text / 2,
        windows=torch.cat([audio[:, None], other], dim=1),
        is_window=torch.stack([torch.ones_like(is_longer), is_longer], dim=1),
    )


def score(loss, audio, text, positives=None, index=None):
    """Score rows with all that there is to know of them; two rows are one clip, in two languages, where there is an anchor."""
    positives = torch.eye(len(audio), dtype=torch.bool) if positives is None else positives
    index = torch.arange(len(audio)) if index is None else index
    context = context_of(audio, text, index)
    if isinstance(loss, Anchored):
        index, context = index // 2, dataclasses.replace(context, language=index % 2)
    return contract.score(loss, audio, text, positives, index, 0.5, context)


def descend(loss, *, seed):
    """One step of gradient descent on a batch; an optimiser of torch takes seconds to import."""
    loss.zero_grad()
    score(loss, *pairs(seed=seed)).total.backward()
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter -= 0.1 * parameter.grad
    loss.after_step()


def all_finite(*tensors):
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


# Every kind -------------------------------------------------------------------------------------------------------------

EVERY = [(kind, name) for kind in registry.PACKAGES for name in registry.names(kind)]


@pytest.mark.parametrize("kind", registry.PACKAGES)
def test_every_kind_has_a_plugin(kind):
    assert registry.names(kind)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_plugin_says_what_it_is_and_what_its_options_are(kind, name):
    module = registry.module(kind, name)
    assert module.__doc__
    documented = inspect.getdoc(module.build)
    assert documented
    hints = typing.get_type_hints(module.build)
    for option in inspect.signature(module.build).parameters:
        assert option in hints, f"{option} has no annotation, so -O cannot read it"
        assert f"{option}:" in documented, f"{option} is not explained"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_an_unknown_option_is_refused_with_the_known_ones(kind, name):
    with pytest.raises(UnknownNameError, match="'no_such_option'") as caught:
        registry.build(kind, name, {"no_such_option": "1"})
    assert set(caught.value.known) == set(registry.defaults(kind, name))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_an_option_is_read_by_its_annotation(kind, name):
    hints = typing.get_type_hints(registry.module(kind, name).build)
    for key, hint in hints.items():
        members = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        if set(members) <= {int, float, type(None)}:
            with pytest.raises(ConfigError, match=f"option {key}=many: expected a"):
                registry.build(kind, name, {key: "many"})


# Losses -----------------------------------------------------------------------------------------------------------------


@forms
def test_a_batch_has_a_finite_loss_and_finite_gradients(name, options):
    loss, (audio, text) = make_loss(name, options), pairs()
    output = score(loss, audio, text)
    output.total.backward()
    assert output.total.shape == ()
    assert all_finite(output.total, audio.grad, text.grad)
    assert audio.grad.abs().sum() > 0
    assert text.grad.abs().sum() > 0
    numbers = output.terms | output.stats
    assert all(isinstance(value, float) and np.isfinite(value) for value in numbers.values()), numbers


@forms
def test_every_parameter_is_in_one_optimiser_group_and_learns(name, options):
    loss = make_loss(name, options)
    groups = loss.param_groups(1e-2, 0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in loss.parameters())
    if not grouped:
        return
    before = {key: parameter.detach().clone() for key, parameter in loss.named_parameters()}
    # Several steps: a last layer that starts at zero lets nothing through to the ones before it at first.
    for step in range(4):
        descend(loss, seed=step)
    unmoved = [key for key, parameter in loss.named_parameters() if torch.equal(before[key], parameter)]
    assert unmoved == []


@forms
def test_the_order_of_the_batch_does_not_matter(name, options):
    loss, (audio, text) = make_loss(name, options), pairs()
    generator = torch.Generator().manual_seed(1)
    positives = torch.rand(BATCH, BATCH, generator=generator) < 0.2
    positives = positives | positives.T | torch.eye(BATCH, dtype=torch.bool)
    order = torch.randperm(BATCH, generator=generator)
    first = score(loss, audio, text, positives)
    second = score(loss, audio[order], text[order], positives[order][:, order], order)
    torch.testing.assert_close(first.total, second.total, rtol=1e-5, atol=1e-6)


@forms
def test_two_pairs_are_enough(name, options):
    batch = 4 if options.get("around") == "anchor" else 2
    loss, (audio, text) = make_loss(name, options, batch=batch), pairs(batch=batch)
    output = score(loss, audio, text)
    output.total.backward()
    assert all_finite(output.total, audio.grad, text.grad)


@forms
def test_one_pair_is_refused(name, options):
    with pytest.raises(ShapeError, match="2"):
        score(make_loss(name, options), *pairs(batch=1))


def identical_pairs():
    audio, _ = pairs()
    return audio, audio.detach().clone().requires_grad_()


def collapsed():
    one = functional.normalize(torch.ones(BATCH, WIDTH), dim=1)
    return one.clone().requires_grad_(), one.clone().requires_grad_()


def opposite():
    audio, _ = pairs()
    return audio, (-audio).detach().clone().requires_grad_()


@forms
@pytest.mark.parametrize("make", [identical_pairs, collapsed, opposite])
def test_degenerate_embeddings_have_finite_gradients(make, name, options):
    loss, (audio, text) = make_loss(name, options), make()
    output = score(loss, audio, text)
    output.total.backward()
    assert all_finite(output.total, audio.grad, text.grad)
    assert all_finite(*(p.grad for p in loss.parameters() if p.grad is not None))


@forms
def test_a_batch_without_negatives_is_finite(name, options):
    loss, (audio, text) = make_loss(name, options), pairs()
    output = score(loss, audio, text, torch.ones(BATCH, BATCH, dtype=torch.bool))
    output.total.backward()
    assert all_finite(output.total, audio.grad, text.grad)


@forms
def test_half_precision_embeddings_are_scored_in_full_precision(name, options):
    loss = make_loss(name, options)
    halves = pairs(dtype=torch.bfloat16)
    output = score(loss, *halves)
    reference = score(loss, *(x.detach().float() for x in halves))
    assert output.total.dtype == torch.float32
    torch.testing.assert_close(output.total, reference.total)
    output.total.backward()
    assert halves[0].grad.dtype == torch.bfloat16
    assert all_finite(halves[0].grad, halves[1].grad)


@forms
def test_a_state_dict_brings_back_the_very_same_loss(name, options):
    loss, batch = make_loss(name, options), pairs()
    descend(loss, seed=3)
    fresh = make_loss(name, options, seed=99)
    fresh.load_state_dict(loss.state_dict(), strict=True)
    assert torch.equal(score(loss, *batch).total, score(fresh, *batch).total)


# The affine kernel of cwcl wants a pair to be no more than tau ln 2 ahead of an unrelated row; here they are further.
CONTRASTING = [(name, options) for name, options in FORMS if name != "cwcl" or options.get("kernel") == "exp"]


@pytest.mark.parametrize(("name", "options"), CONTRASTING, ids=str)
def test_better_pairs_have_a_lower_loss(name, options):
    loss = make_loss(name, options)
    audio = torch.eye(BATCH, WIDTH)
    noise = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
    text, closer = (functional.normalize(audio + share * noise, dim=1) for share in (0.5, 0.2))
    assert score(loss, audio, closer).total < score(loss, audio, text).total


# Schedules --------------------------------------------------------------------------------------------------------------

each_schedule = pytest.mark.parametrize("name", SCHEDULES)
each_quantity = pytest.mark.parametrize("quantity", ["temperature", "margin"])


@each_schedule
@each_quantity
def test_a_schedule_gives_every_anchor_a_positive_value_from_start_to_end(name, quantity):
    schedule = make_schedule(name, quantity=quantity)
    for progress in (0.0, 0.33, 0.5, 0.99, 1.0):
        values = schedule(torch.arange(BATCH), progress)
        assert values.shape == (BATCH,)
        assert values.is_floating_point()
        assert all_finite(values)
        assert (values > 0).all()
        assert quantity == "temperature" or (values < 2).all()


@each_schedule
def test_a_schedule_moves(name):
    values = {tuple(make_schedule(name)(torch.arange(BATCH), step / 100).tolist()) for step in range(100)}
    assert len(values) > 3


@each_schedule
def test_a_row_has_one_value_wherever_it_stands_and_whatever_was_asked_before(name):
    schedule, index = make_schedule(name), torch.tensor([3, 0, 3, 7, 5, 3])
    first = schedule(index, 0.37)
    assert first[0] == first[2] == first[5]
    schedule(index, 0.9)
    assert torch.equal(schedule(index, 0.37), first)
    assert torch.equal(make_schedule(name)(index.flip(0), 0.37).flip(0), first)


@each_schedule
def test_a_schedule_learns_nothing_and_leaves_nothing_in_a_checkpoint(name):
    schedule = make_schedule(name)
    assert list(schedule.parameters()) == []
    assert schedule.state_dict() == {}
    assert not schedule(torch.arange(BATCH), 0.1).requires_grad


# Terms ------------------------------------------------------------------------------------------------------------------

DEPENDS_ON_AXES = {"embedding_l1"}
each_term = pytest.mark.parametrize("name", TERMS)


def term_value(name, audio, text, positives=None):
    positives = torch.eye(len(audio), dtype=torch.bool) if positives is None else positives
    return registry.build("term", name)(audio, text, positives)


@each_term
def test_a_term_is_a_finite_scalar_with_gradients_on_both_sides(name):
    audio, text = pairs()
    value = term_value(name, audio, text)
    value.backward()
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert all_finite(value, audio.grad, text.grad)
    assert audio.grad.abs().sum() > 0
    assert text.grad.abs().sum() > 0


@each_term
def test_the_order_of_the_batch_does_not_matter_to_a_term(name):
    audio, text = pairs()
    generator = torch.Generator().manual_seed(1)
    positives = torch.rand(BATCH, BATCH, generator=generator) < 0.2
    positives = positives | positives.T | torch.eye(BATCH, dtype=torch.bool)
    order = torch.randperm(BATCH, generator=generator)
    first = term_value(name, audio, text, positives)
    second = term_value(name, audio[order], text[order], positives[order][:, order])
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(TERMS) - DEPENDS_ON_AXES))
def test_turning_the_whole_space_does_not_change_a_term(name):
    audio, text = pairs(dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    torch.testing.assert_close(term_value(name, audio, text), term_value(name, audio @ turn, text @ turn), rtol=1e-10, atol=0)


@each_term
def test_two_pairs_are_enough_for_a_term(name):
    audio, text = pairs(batch=2)
    value = term_value(name, audio, text)
    value.backward()
    assert all_finite(value, audio.grad, text.grad)


@each_term
def test_one_pair_is_refused_by_a_term(name):
    with pytest.raises(ShapeError, match="2"):
        term_value(name, *pairs(batch=1))


@each_term
@pytest.mark.parametrize("make", [identical_pairs, collapsed, opposite])
def test_degenerate_embeddings_have_a_finite_term(make, name):
    audio, text = make()
    value = term_value(name, audio, text)
    value.backward()
    assert all_finite(value, audio.grad, text.grad)


@each_term
def test_a_batch_without_negatives_has_a_finite_term(name):
    audio, text = pairs()
    value = term_value(name, audio, text, torch.ones(BATCH, BATCH, dtype=torch.bool))
    value.backward()
    assert all_finite(value, audio.grad, text.grad)


@each_term
def test_half_precision_embeddings_have_a_full_precision_term(name):
    halves = pairs(dtype=torch.bfloat16)
    value = term_value(name, *halves)
    assert value.dtype == torch.float32
    assert torch.equal(value, term_value(name, *(x.detach().float() for x in halves)))
    value.backward()
    assert halves[0].grad.dtype == torch.bfloat16
    assert all_finite(halves[0].grad, halves[1].grad)


@each_term
def test_autocast_does_not_reach_a_term(name):
    audio, text = pairs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = term_value(name, audio, text)
    assert torch.equal(inside, term_value(name, audio, text))


# Towers -----------------------------------------------------------------------------------------------------------------


def audio_options(name):
    """Options that make a tower small, and need no file."""
    if name != "hf":
        return {"size": "tiny"} if name == "ced" else {}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": [8, 8], "conv_kernel": [20, 20], "conv_stride": [16, 20], "num_conv_pos_embedding_groups": 2}
    return {"config": {"model_type": "wav2vec2"} | sizes | convolutions, "front_end": {"sampling_rate": 8000}, "window_s": 1.0}


@pytest.fixture(scope="module", params=AUDIO_TOWERS)
def audio_tower(request):
    torch.manual_seed(0)
    return registry.build("audio encoder", request.param, audio_options(request.param)).eval()


def waveforms(tower, count):
    return 0.1 * torch.randn(count, tower.audio_spec.window_samples, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_an_audio_tower_gives_vectors_of_the_width_that_it_names(audio_tower):
    spec = audio_tower.audio_spec
    assert isinstance(spec, AudioSpec)
    assert spec.sample_rate > 0
    assert spec.window_s > 0
    features = audio_tower(waveforms(audio_tower, 2), torch.full((2,), spec.window_samples))
    assert features.shape == (2, audio_tower.embedding_dim)
    assert features.dtype == torch.float32
    assert not torch.allclose(features[0], features[1])


@torch.inference_mode()
def test_the_embedding_of_a_sound_does_not_depend_on_its_neighbours(audio_tower):
    sounds = waveforms(audio_tower, 3)
    num_samples = torch.tensor([audio_tower.audio_spec.window_samples, 1000, 5000])
    for row in (1, 2):
        sounds[row, num_samples[row] :] = 0
    together = audio_tower(sounds, num_samples)
    alone = torch.cat([audio_tower(sounds[row : row + 1], num_samples[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def silence(waveform):
    return waveform * 0


def full_scale(waveform):
    return torch.where(torch.arange(waveform.shape[1]) % 100 < 50, 1.0, -1.0).expand_as(waveform).clone()


@torch.inference_mode()
@pytest.mark.parametrize("make", [silence, full_scale])
def test_extreme_sounds_have_finite_embeddings(make, audio_tower):
    sound = make(waveforms(audio_tower, 1))
    assert all_finite(audio_tower(sound, torch.tensor([sound.shape[1]])))


@torch.inference_mode()
def test_a_single_sample_has_a_finite_embedding(audio_tower):
    sound = torch.zeros(1, audio_tower.audio_spec.window_samples)
    sound[0, 0] = 0.5
    assert all_finite(audio_tower(sound, torch.tensor([1])))


CAPTIONS = ["A dog barks twice.", "Rain falls on a tin roof.", "Nothing can be heard."]


def text_options(name):
    """Options that make a tower small, and need no file."""
    if name != "hf":
        return {"captions": CAPTIONS}
    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters | {"[CLS]": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 256)])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 257}
    return {"captions": CAPTIONS, "config": {"model_type": "bert"} | sizes, "tokenizer": tokenizer.to_str()}


@pytest.fixture(scope="module", params=TEXT_TOWERS)
def text_tower(request):
    torch.manual_seed(0)
    return registry.build("text encoder", request.param, text_options(request.param)).eval()


@torch.inference_mode()
def test_a_text_tower_gives_vectors_of_the_width_that_it_names(text_tower):
    features = text_tower(CAPTIONS)
    assert features.shape == (3, text_tower.embedding_dim)
    assert features.dtype == torch.float32
    assert not torch.allclose(features[0], features[1])


@torch.inference_mode()
@pytest.mark.parametrize("caption", ["", "   ", "Ein Hähnchen kräht 🐓", "犬が吠えている", "\u202e\x00\n\t", "bark " * 500])
def test_any_text_has_a_finite_embedding(caption, text_tower):
    assert all_finite(text_tower([caption]))
    assert all_finite(text_tower([caption, CAPTIONS[0]]))


@torch.inference_mode()
def test_the_embedding_of_a_caption_does_not_depend_on_its_neighbours(text_tower):
    together = text_tower([*CAPTIONS, "", "rain " * 30])
    alone = torch.cat([text_tower([caption]) for caption in [*CAPTIONS, "", "rain " * 30]])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_a_text_tower_is_rebuilt_from_what_it_says(name):
    first = registry.build("text encoder", name, text_options(name)).eval()
    rebuild = {key: value for key, value in json.loads(json.dumps(first.rebuild_options)).items() if value is not None}
    second = registry.build("text encoder", name, rebuild).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(CAPTIONS), second(CAPTIONS))


@pytest.mark.parametrize("kind", ["audio encoder", "text encoder"])
def test_every_parameter_of_a_tower_learns(kind):
    for name in registry.names(kind):
        torch.manual_seed(0)
        tower = registry.build(kind, name, (text_options if kind == "text encoder" else audio_options)(name)).train()
        if kind == "audio encoder":
            features = tower(waveforms(tower, 2), torch.full((2,), tower.audio_spec.window_samples))
        else:
            features = tower(CAPTIONS)
        (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        unreached = [
            key for key, p in tower.named_parameters() if p.requires_grad and (p.grad is None or not all_finite(p.grad))
        ]
        assert unreached == []


# Recipes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names("recipe"))
def test_a_recipe_says_where_the_sound_comes_from_and_whose_it_is(name):
    recipe = registry.build("recipe", name)
    assert isinstance(recipe.needs_source, bool)
    assert isinstance(recipe.makes_audio, bool)
    assert callable(recipe.clips)
    documented = registry.module("recipe", name).__doc__
    for word in ("Origin", "icence", "Layout"):
        assert word in documented, word


# Metrics ----------------------------------------------------------------------------------------------------------------

METRICS = registry.names("metric")
LOWER_IS_BETTER = {"best_rank"}


def ranked(num_queries=6, num_items=40, seed=0):
    """Scores without ties, and one to three relevant items for every query."""
    generator = np.random.default_rng(seed)
    scores = np.stack([generator.permutation(num_items) for _ in range(num_queries)]).astype(np.float64)
    relevant = np.zeros(scores.shape, dtype=bool)
    for row in range(num_queries):
        relevant[row, generator.choice(num_items, size=1 + row % 3, replace=False)] = True
    return scores, relevant


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_one_finite_value_per_query(name):
    scores, relevant = ranked()
    values = registry.build("metric", name)(scores, relevant)
    assert values.shape == (6,)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_ranking_is_best_and_the_reverse_is_worst(name):
    scores, relevant = ranked()
    metric = registry.build("metric", name)
    sign = -1 if name in LOWER_IS_BETTER else 1
    perfect = sign * metric(scores + 100 * relevant, relevant)
    worst = sign * metric(scores - 100 * relevant, relevant)
    np.testing.assert_allclose(metric(scores + 100 * relevant, relevant), 1)
    assert (worst < perfect).all()
    between = sign * metric(scores, relevant)
    assert (worst <= between).all()
    assert (between <= perfect).all()


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_items_and_queries_does_not_matter(name):
    scores, relevant = ranked()
    metric = registry.build("metric", name)
    items, queries = np.random.default_rng(1).permutation(40), np.random.default_rng(2).permutation(6)
    expected = metric(scores, relevant)
    np.testing.assert_array_equal(metric(scores[:, items], relevant[:, items]), expected)
    np.testing.assert_array_equal(metric(scores[queries], relevant[queries]), expected[queries])


# Indexes ----------------------------------------------------------------------------------------------------------------

INDEXES = registry.names("index")


def unit(count, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def filled(name, vectors):
    index = registry.build("index", name)
    index.add(vectors)
    return index


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_index_gives_the_best_items_first(name, dtype):
    vectors, queries = unit(50).astype(dtype), unit(4, seed=1)
    scores, rows = filled(name, vectors).search(queries, 5)
    assert scores.shape == rows.shape == (4, 5)
    assert rows.dtype == np.int64
    expected = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_array_equal(rows, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", INDEXES)
def test_equal_items_come_in_the_order_of_their_rows(name):
    vectors = np.repeat(unit(3), 4, axis=0)[np.random.default_rng(0).permutation(12)]
    scores, rows = filled(name, vectors).search(unit(3), 12)
    for row_scores, row in zip(scores, rows, strict=True):
        for _, group in itertools.groupby(zip(row_scores, row, strict=True), key=lambda pair: pair[0]):
            found = [int(place) for _, place in group]
            assert len(found) == 4
            assert found == sorted(found)


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_finds_no_more_than_there_is_and_only_what_is_wanted(name):
    index = filled(name, unit(10))
    assert index.search(unit(2), 99)[1].shape == (2, 10)
    scores, rows = index.search(unit(2), 99, rows=np.array([1, 4, 7]))
    assert sorted(rows[0].tolist()) == [1, 4, 7]
    assert index.search(unit(2), 5, rows=np.array([], dtype=np.int64))[1].shape == (2, 0)


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_refuses_what_it_cannot_search(name):
    index = registry.build("index", name)
    with pytest.raises(EmbeddingError, match="add"):
        index.search(unit(1), 1)
    index.add(unit(3))
    with pytest.raises(ShapeError, match="at least 1"):
        index.search(unit(1), 0)
    with pytest.raises(ShapeError, match=str(WIDTH)):
        index.search(unit(1)[:, :-1], 1)
