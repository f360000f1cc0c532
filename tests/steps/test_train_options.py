from typing import Any

import pytest

from clapkit.config import TrainConfig, resolve
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.steps.train_options import check, make_plan, plugin_options, trained_towers


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
