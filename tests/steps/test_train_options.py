from typing import Any

import pytest
import torch

from clapkit import registry
from clapkit.config import TrainConfig, resolve
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.objectives import window_fusion
from clapkit.objectives.contract import needs_of
from clapkit.steps.train_options import (
    VARIANT_LOSSES,
    check,
    make_plan,
    numbers_of_variants,
    plugin_options,
    trained_towers,
)


def test_options_find_their_plugin() -> None:
    config = resolve(TrainConfig, {"loss": "svr", "alpha": 0.5, "options": ["window_s=2", "text.dropout=0.2", "loss.beta=0.1"]})
    options = plugin_options(config)
    assert options["audio"] == {"window_s": "2"}
    assert options["text"] == {"dropout": "0.2"}
    assert options["loss"]["alpha"] == 0.5
    assert options["loss"]["beta"] == "0.1"
    assert "batch_size" not in options["loss"]


def test_the_plan_counts_in_steps() -> None:
    plan = make_plan(resolve(TrainConfig, {"epochs": 3, "eval_every": 2, "keep_best": "t2a_MedR"}), 10)
    assert (plan.total_steps, plan.eval_every, plan.warmup_steps) == (30, 20, 1)
    assert plan.lower_is_better
    assert make_plan(resolve(TrainConfig, {"max_steps": 7}), 10).total_steps == 7
    assert make_plan(resolve(TrainConfig, {"epochs": 2000}), 10).warmup_steps == 500
    assert make_plan(resolve(TrainConfig, {"max_steps": 5, "warmup_steps": 9}), 10).warmup_steps == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unfreeze_last": 0, "freeze": "text"}, "--unfreeze-last 0: expected more than 0"),
        ({"layer_decay": 0.0}, "--layer-decay 0.0: expected more than 0"),
        ({"lora_rank": 0, "lora": "text"}, "--lora-rank 0: expected more than 0"),
        ({"accum_steps": 0}, "--accum-steps 0: expected more than 0"),
        ({"grad_cache_chunk": 0}, "--grad-cache-chunk 0: expected more than 0"),
        ({"unfreeze_last": 2}, "--unfreeze-last 2: belongs to --freeze; say which tower is frozen"),
        ({"lora_rank": 4}, "--lora-rank 4: belongs to --lora; say which towers get adapters"),
        ({"freeze": "text", "lora": "text"}, "--lora text: the text tower is frozen by --freeze; leave one out"),
        ({"freeze": "audio", "lora": "both"}, "--lora both: the audio tower is frozen by --freeze; leave one out"),
        ({"layer_decay": 1.5}, "--layer-decay 1.5: expected more than 0 and at most 1"),
        ({"diagnostics": 5, "accum_steps": 2}, "--diagnostics: measures steps of one batch; leave out --accum-steps"),
    ],
)
def test_adaptation_that_cannot_be_meant_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(resolve(TrainConfig, given))


@pytest.mark.parametrize(
    "given",
    [
        {"freeze": "text", "unfreeze_last": 2},
        {"freeze": "text", "lora": "audio", "lora_rank": 4},
        {"lora": "both"},
        {"layer_decay": 1.0},
        {"diagnostics": 5, "grad_cache_chunk": 2},
    ],
)
def test_adaptation_that_fits_together_is_taken(given: dict[str, Any]) -> None:
    check(resolve(TrainConfig, given))


def test_an_epoch_of_accumulated_batches_has_fewer_steps() -> None:
    # 10 batches of which 3 make a step: 3 steps an epoch, one batch is left over.
    plan = make_plan(resolve(TrainConfig, {"epochs": 4, "eval_every": 2, "accum_steps": 3, "grad_cache_chunk": 5}), 10)
    assert (plan.total_steps, plan.eval_every, plan.accum_steps, plan.grad_cache_chunk) == (12, 6, 3, 5)
    with pytest.raises(ConfigError, match="--accum-steps 11: an epoch has 10 batches; pass fewer, or a smaller --batch-size"):
        make_plan(resolve(TrainConfig, {"accum_steps": 11}), 10)


def test_weights_become_options_of_their_towers() -> None:
    given = {"audio_encoder": "ced", "audio_weights": "a/b", "text_encoder": "hf", "text_weights": "c/d"}
    options = plugin_options(resolve(TrainConfig, given | {"options": ["max_tokens=8"]}))
    assert options["audio"] == {"weights": "a/b"}
    assert options["text"] == {"weights": "c/d", "max_tokens": "8"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"audio_weights": "a/b"},
            "--audio-weights a/b: the tower small is trained from scratch; pass --audio-encoder ced or hf",
        ),
        ({"text_weights": "a/b"}, "--text-weights a/b: the tower small is trained from scratch; pass --text-encoder hf"),
        ({"init": "x", "text_weights": "a/b"}, "--text-weights a/b: --init brings its own towers with their weights"),
    ],
)
def test_weights_that_no_tower_takes_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plugin_options(resolve(TrainConfig, given))


@pytest.mark.parametrize("option", ["audio.weights=a/b", "text.tokenizer=x", "text.config={}", "audio.front_end={}"])
def test_what_the_step_fills_in_cannot_be_given_as_an_option(option: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown option -O '{option.partition('=')[0]}'"):
        plugin_options(resolve(TrainConfig, {"audio_encoder": "hf", "text_encoder": "hf", "options": [option]}))


def test_weights_are_what_makes_a_tower_know_something() -> None:
    assert trained_towers(resolve(TrainConfig, {})) == ()
    assert trained_towers(resolve(TrainConfig, {"text_encoder": "hf", "text_weights": "a/b"})) == ("text",)
    assert trained_towers(resolve(TrainConfig, {"init": "x"})) == ("audio", "text")


def test_there_is_nothing_to_keep_to_without_a_model_that_has_learned_pairs() -> None:
    towers = {"audio_encoder": "ced", "audio_weights": "a/b", "text_encoder": "hf", "text_weights": "c/d"}
    for given in ({}, towers):  # of pre-trained towers the heads are fresh
        with pytest.raises(ConfigError, match="--loss hycd: keeps to what the model knew at its start.*by --init"):
            check(resolve(TrainConfig, {"loss": "hycd"} | given))
    check(resolve(TrainConfig, {"loss": "hycd", "init": "a/model"}))


def test_kinds_of_variants_are_refused_where_no_false_ones_are_made() -> None:
    given = {"loss": "compa", "true_variants": 1, "variants": "order"}
    check(resolve(TrainConfig, given))
    with pytest.raises(ConfigError, match="--variants order: says of which kinds .* --false-variants 0 asks for none"):
        check(resolve(TrainConfig, given | {"false_variants": 0}))


# Variants, languages, windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"false_variants": -1, "loss": "compa"}, "--false-variants -1: expected 0 or more"),
        ({"true_variants": -1, "loss": "compa"}, "--true-variants -1: expected 0 or more"),
        ({"windows": 0}, "--windows 0: expected more than 0"),
        ({"embedding_dim": 2**16 + 1}, "--embedding-dim 65537: expected at most 65536; pass fewer"),
        ({"batch_size": 2**20 + 1}, "--batch-size 1048577: expected at most 1048576 pairs; pass fewer"),
        ({"batch_size": 10**21, "loss": "dbpm", "language_strategy": "all"}, "expected at most 1048576 pairs"),
        ({"false_variants": 2}, "--false-variants 2: belongs to --loss compa"),
        (
            {"loss": "compa", "false_variants": 10**11},
            "--false-variants 100000000000, --true-variants 0: expected at most 1000",
        ),
        (
            {"loss": "compa", "false_variants": 400, "true_variants": 601},
            "400, --true-variants 601: expected at most 1000 in all",
        ),
        ({"false_variants": 0}, "--false-variants 0: belongs to --loss compa"),
        ({"true_variants": 1, "loss": "svr"}, "--true-variants 1: belongs to --loss compa"),
        ({"variants": "order"}, "--variants order: belongs to --loss compa"),
        ({"loss": "compa", "false_variants": 0}, "--false-variants 0: --loss compa is about variants; pass 1 or more"),
        ({"loss": "compa", "false_variants": 0, "true_variants": 0}, "--false-variants 0: --loss compa is about variants"),
        ({"anchor_language": "de"}, "--anchor-language de: belongs to --language-strategy anchor"),
        (
            {"anchor_language": "de", "language_strategy": "all"},
            "--anchor-language de: belongs to --language-strategy anchor",
        ),
        *(
            (
                {"language_strategy": strategy, "loss": "albef"},
                f"--language-strategy {strategy}: .*the queue of --loss albef holds all of them; use .* sample",
            )
            for strategy in ("all", "anchor")
        ),
        *(
            (
                {"language_strategy": strategy, "captions_per_clip": 2},
                f"--captions-per-clip 2: --language-strategy {strategy} says which captions of a clip share a batch",
            )
            for strategy in ("sample", "all", "anchor")
        ),
        *(
            ({"fusion": fusion}, f"--fusion {fusion}: needs several --windows of each clip")
            for fusion in ("mean", "attention", "softmax")
        ),
        ({"fusion": "mean", "windows": 1}, "--fusion mean: needs several --windows of each clip"),
        *(
            (
                {"fusion": "softmax", "windows": 2, "loss": loss},
                f"--fusion softmax: .*--loss {loss} compares one vector per clip; use --loss infonce or siglip",
            )
            for loss in ("svr", "dcl", "compa")
        ),
    ],
    ids=str,
)
def test_what_a_batch_holds_beside_pairs_has_to_be_looked_at(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(resolve(TrainConfig, given))


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "compa"},
        {"loss": "compa", "false_variants": 0, "true_variants": 1},
        {"loss": "compa", "variants": "order,swap", "base": "svr", "captions_per_clip": 2},
        {"language_strategy": "anchor", "anchor_language": "de"},
        {"language_strategy": "sample", "loss": "albef"},
        {"windows": 1},
        {"windows": 2, "loss": "svr"},
        {"windows": 2, "fusion": "attention", "loss": "svr"},
        {"windows": 2, "fusion": "softmax", "loss": "siglip", "language_strategy": "all"},
        {"loss": "hycd", "init": "x"},
        {"long_captions": "split"},
    ],
    ids=str,
)
def test_what_a_batch_holds_beside_pairs_may_be_looked_at(given: dict[str, Any]) -> None:
    check(resolve(TrainConfig, given))


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({}, (0, 0)),
        ({"loss": "compa"}, (3, 0)),
        ({"loss": "compa", "false_variants": 0, "true_variants": 2}, (0, 2)),
        ({"loss": "compa", "false_variants": 1}, (1, 0)),
    ],
)
def test_three_false_variants_of_a_caption_are_made_unless_told_otherwise(
    given: dict[str, Any], numbers: tuple[int, int]
) -> None:
    assert numbers_of_variants(resolve(TrainConfig, given)) == numbers


def test_the_losses_that_get_variants_are_those_that_ask_for_them() -> None:
    supplied = {"batch_size": 4, "num_rows": 4, "features": torch.eye(4)}
    asking = []
    for name in registry.names("loss"):
        known = {key: value for key, value in supplied.items() if key in registry.defaults("loss", name)}
        asking += [name] if "variants" in needs_of(registry.build("loss", name, known)) else []
    assert tuple(asking) == VARIANT_LOSSES


@pytest.mark.parametrize("name", ["cacr", "compa", "dcl", "decoupled", "infonce", "m3col", "mochi", "siglip", "triplet"])
def test_soft_max_fusion_is_let_through_for_the_losses_that_it_takes(name: str) -> None:
    config = resolve(TrainConfig, {"windows": 2, "fusion": "softmax", "loss": name})
    loss = registry.build("loss", name)
    if name in window_fusion.FUSABLE_NAMES:
        check(config)
        window_fusion.FusedSimilarity(loss)
        return
    with pytest.raises(ConfigError, match=f"--fusion softmax: .* --loss {name} "):
        check(config)
    with pytest.raises(ConfigError):
        window_fusion.FusedSimilarity(loss)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "alip", "language_strategy": "sample"}, "--language-strategy sample keeps apart; leave one out"),
        (
            {"loss": "alip", "language_strategy": "all", "captions_per_clip": 2},
            "--loss alip: .* --language-strategy all keeps apart",
        ),
        (
            {"loss": "compa", "false_variants": 0, "true_variants": 1, "options": ("hard_weight=2",)},
            "-O hard_weight=2: weighs false variants",
        ),
    ],
)
def test_a_loss_is_not_given_what_the_other_flags_leave_it_without(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(resolve(TrainConfig, given))


def test_the_weight_of_false_variants_is_taken_where_there_are_some() -> None:
    check(resolve(TrainConfig, {"loss": "compa", "options": ("hard_weight=2",)}))
