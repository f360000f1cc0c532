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


def test_what_an_update_changed_is_shown(fake_step, clapkit_call):
    step = fake_step("embed")
    step.result["changes"] = {"kept": 5, "new": 2, "changed": 0, "renamed": 1, "gone": 3}
    rows = [line.split() for line in clapkit_call("embed").stdout.splitlines()]
    assert ["kept", "5"] in rows
    assert ["renamed", "1"] in rows


def test_an_update_without_a_finished_run_names_what_to_run_first(workplace, clapkit_call):
    result = clapkit_call("embed", "--update")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: no finished embed run under runs/embed: run `clapkit embed` first\n",
    )


def test_resuming_a_finished_run_prints_its_result(fake_step, clapkit_call):
    step = fake_step("embed")
    clapkit_call("embed", "--name", "x", "--pool", "none")
    result = clapkit_call("embed", "--resume", "--name", "x", "--json")
    assert json.loads(result.stdout) == step.result
    assert "finished already, nothing to resume" in result.stderr
    assert len(step.configs) == 1


def test_resuming_takes_over_what_the_run_was_started_with(fake_step, clapkit_call):
    step = fake_step("embed")
    step.error = KeyboardInterrupt()
    assert clapkit_call("embed", "a.wav", "--name", "x", "--pool", "none").exit_code == 130
    step.error = None
    assert clapkit_call("embed", "--resume").exit_code == 0
    assert (step.configs[1].inputs, step.configs[1].pool, step.configs[1].resume) == (("a.wav",), "none", True)


def test_a_follower_looks_for_no_run(fake_step, clapkit_call, monkeypatch):
    from clapkit.steps import embed_processes

    step = fake_step("embed")
    followed = []
    monkeypatch.setattr(embed_processes, "run_follower", lambda: followed.append(True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    result = clapkit_call("embed", "--update")
    assert (result.exit_code, result.stdout, followed, step.configs) == (0, "", [True], [])


def test_other_processes_are_sent_home_where_the_first_one_cannot_begin(fake_step, clapkit_call, monkeypatch):
    from clapkit.steps import embed_processes

    fake_step("embed")
    clapkit_call("embed", "--name", "x")
    dismissed = []
    monkeypatch.setattr(embed_processes, "dismiss", lambda: dismissed.append(True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert clapkit_call("embed", "--name", "x").exit_code == 1
    assert clapkit_call("embed", "--update", "--name", "nothing").exit_code == 1
    assert clapkit_call("embed", "--name", "x", "--skip-existing").exit_code == 0
    assert len(dismissed) == 3
