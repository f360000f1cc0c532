"""The flags are the fields of the configurations, and what is not given stays not given."""

import dataclasses
from pathlib import Path

import pytest

from clapkit import registry
from clapkit.cli.options import flags_of, help_of
from clapkit.config import CONFIGS

CHOICES = {"loss": "loss", "audio_encoder": "audio encoder", "text_encoder": "text encoder"}


def field(command, name):
    return next(f for f in dataclasses.fields(CONFIGS[command]) if f.name == name)


@pytest.mark.parametrize("command", CONFIGS)
def test_every_field_is_an_option_of_its_command(command, clapkit_call):
    shown = clapkit_call(command, "--help").stdout
    for f in dataclasses.fields(CONFIGS[command]):
        for flag in () if f.metadata["argument"] else flags_of(f):
            assert flag in shown, flag


def test_a_field_is_its_own_flag_unless_it_names_others():
    assert flags_of(field("train", "batch_size")) == ("--batch-size",)
    assert flags_of(field("train", "run_dir")) == ("--run-dir", "-o")
    assert flags_of(field("retrieve", "k")) == ("-k",)


@pytest.mark.parametrize("name", CHOICES)
def test_help_lists_the_plugins(name):
    listed = help_of(field("train", name))
    assert all(plugin in listed for plugin in registry.names(CHOICES[name]))


def test_help_lists_choices_and_the_default_once():
    assert help_of(field("train", "sides")) == "svr on both directions or on text to audio only: bi, uni. [default: bi]"
    assert help_of(field("train", "batch_size")) == "Pairs in a batch, over all processes. [default: 32]"
    assert help_of(field("eval", "prompt")).endswith("[default: This is a sound of {}.]")
    assert "[default" not in help_of(field("train", "resume"))


def test_what_is_not_given_has_its_default(fake_step, clapkit_call):
    step = fake_step("train")
    assert clapkit_call("train", "--loss", "svr", "--radius", "adaptive").exit_code == 0
    (config,) = step.configs
    assert (config.loss, config.radius) == ("svr", "adaptive")
    assert (config.audio_encoder, config.text_encoder, config.embedding_dim) == ("small", "small", 512)
    assert (config.sides, config.alpha, config.beta, config.radius_init) == (None, None, None, None)  # the plug-in's
    svr = registry.defaults("loss", "svr")
    assert (svr["sides"], svr["alpha"], svr["radius"], svr["base"]) == ("bi", 1.0, "adaptive", "infonce")
    assert (config.batch_size, config.epochs, config.lr, config.seed, config.data) == (32, 20, 1e-3, 0, None)
    assert config.runs_root == Path("runs")


def test_repeatable_options_and_arguments_are_tuples(fake_step, clapkit_call):
    step = fake_step("eval")
    clapkit_call("eval", "one", "two", "--prompt", "a {}", "--prompt", "the {}", "-O", "a=1", "-O", "b=2")
    (config,) = step.configs
    assert config.runs == ("one", "two")
    assert config.prompt == ("a {}", "the {}")
    assert config.options == ("a=1", "b=2")


def test_the_runs_root_comes_from_the_environment_unless_given(fake_step, clapkit_call, workplace, monkeypatch):
    step = fake_step("prepare")
    monkeypatch.setenv("CLAPKIT_RUNS", str(workplace / "elsewhere"))
    clapkit_call("prepare", "--name", "a")
    clapkit_call("prepare", "--name", "a", "--runs-root", "here")
    assert [config.runs_root for config in step.configs] == [workplace / "elsewhere", Path("here")]
    assert (workplace / "elsewhere/prepare/a/result.json").is_file()
    assert (workplace / "here/prepare/a/result.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--radius", "adptive"],
            "--radius 'adptive': expected one of adaptive, static, fixed, ratio; did you mean 'adaptive'?",
        ),
        (["embed", "--store", "fp8"], "--store 'fp8': expected one of fp16, fp32"),
        (["train", "--seed", "-1"], "--seed -1: expected a whole number from 0 to"),
        (["train", "--lr", "nan"], "--lr nan: expected a finite number"),
    ],
)
def test_a_value_that_cannot_be_meant_is_our_error_in_one_line(arguments, message, workplace, clapkit_call):
    result = clapkit_call(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not (workplace / "runs").exists()


def test_defaults_come_from_a_toml_file_and_flags_win(fake_step, clapkit_call, workplace):
    step = fake_step("train")
    (workplace / "c.toml").write_text('loss = "svr"\nepochs = 3\noptions = ["dropout=0.1"]\n')
    clapkit_call("train", "--config", "c.toml", "--epochs", "5")
    (config,) = step.configs
    assert (config.loss, config.epochs, config.options) == ("svr", 5, ("dropout=0.1",))


def test_a_run_is_repeated_from_its_run_json(fake_step, clapkit_call, workplace):
    step = fake_step("train")
    clapkit_call("train", "--loss", "svr", "--seed", "7", "-O", "dropout=0.1", "--name", "first")
    result = clapkit_call("train", "--config", "runs/train/first/run.json", "--name", "second")
    assert result.exit_code == 0
    first, second = step.configs
    assert first.identity() == second.identity()
    assert second.name == "second"


def test_a_run_json_of_another_command_is_refused(fake_step, clapkit_call, workplace):
    fake_step("prepare")
    clapkit_call("prepare", "--name", "a")
    result = clapkit_call("train", "--config", "runs/prepare/a/run.json")
    assert result.exit_code == 1
    assert (
        result.stderr == "error: --config runs/prepare/a/run.json: is of a prepare run, expected one of train; name another\n"
    )


def test_an_unknown_key_in_a_file_is_an_error(workplace, clapkit_call):
    (workplace / "c.toml").write_text("epoch = 3\n")
    result = clapkit_call("train", "--config", "c.toml")
    assert result.exit_code == 1
    assert "unknown key in c.toml: 'epoch': did you mean 'epochs'?" in result.stderr
