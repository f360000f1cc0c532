import json

import pytest


def test_the_counts_are_shown(fake_step, clapkit_call):
    fake_step("embed")
    result = clapkit_call("embed")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert "Embedded toy" in result.stdout
    assert ["audio", "vectors", "3"] in rows
    assert ["text", "vectors", "6"] in rows
    assert ["width", "16"] in rows


def test_inputs_are_arguments(fake_step, clapkit_call):
    step = fake_step("embed")
    clapkit_call("embed", "a.wav", "b.wav", "--pool", "none", "--window-s", "2", "--store", "fp32")
    (config,) = step.configs
    assert (config.inputs, config.pool, config.window_s, config.store) == (("a.wav", "b.wav"), "none", 2.0, "fp32")


def test_json_is_the_result_and_nothing_else(fake_step, clapkit_call, workplace):
    step = fake_step("embed")
    result = clapkit_call("embed", "--json", "--name", "x")
    assert json.loads(result.stdout) == step.result == json.loads((workplace / "runs/embed/x/result.json").read_text())
    assert result.stderr == "working on it\nrun directory: runs/embed/x\n"


def test_quiet_says_nothing_but_the_result(fake_step, clapkit_call):
    fake_step("embed")
    result = clapkit_call("embed", "--quiet")
    assert result.stderr == ""
    assert "Embedded toy" in result.stdout


@pytest.mark.parametrize("command", ["embed", "eval"])
def test_a_command_without_plugins_takes_no_options_of_them(command, workplace, clapkit_call):
    result = clapkit_call(command, "-O", "pool=max")
    assert result.exit_code == 1
    assert result.stderr == ("error: unknown option -O 'pool': known: none; this command chooses no plug-in; leave it out\n")


@pytest.mark.parametrize(
    ("command", "needed"), [("embed", "train"), ("eval", "train"), ("train", "prepare"), ("retrieve", "embed")]
)
def test_a_command_that_lacks_its_input_names_the_one_to_run_first(command, needed, workplace, clapkit_call):
    words = ["dog barking"] if command == "retrieve" else []
    result = clapkit_call(command, *words)
    assert result.exit_code == 1
    assert result.stderr == f"error: no finished {needed} run under runs/{needed}: run `clapkit {needed}` first\n"
    assert not (workplace / "runs" / command).exists() or not any((workplace / "runs" / command).iterdir())
