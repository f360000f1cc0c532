import json

import numpy as np
import pytest
import soundfile

from clapkit import registry


def test_the_recipes_are_listed(clapkit_call, workplace):
    result = clapkit_call("prepare", "--list")
    assert result.exit_code == 0
    assert tuple(result.stdout.split()) == registry.names("recipe")
    assert {"esc10", "folder", "synth", "table"} <= set(registry.names("recipe"))
    assert not (workplace / "runs").exists()


def test_the_list_is_json_when_asked(clapkit_call, workplace):
    result = clapkit_call("prepare", "--list", "--json")
    assert json.loads(result.stdout) == {"recipes": list(registry.names("recipe"))}


def test_people_get_a_table(fake_step, clapkit_call):
    fake_step("prepare")
    result = clapkit_call("prepare", "--name", "x")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert "toy: 0.50 hours, 6 captions" in result.stdout
    assert ["train", "2"] in rows
    assert ["rejected", "1"] in rows
    assert result.stderr == "working on it\nrun directory: runs/prepare/x\n"


def test_recipe_and_source_are_arguments(fake_step, clapkit_call):
    step = fake_step("prepare")
    clapkit_call("prepare", "table", "captions.csv", "--audio-dir", "clips", "--limit", "3", "--strict")
    (config,) = step.configs
    assert (config.recipe, config.source, str(config.audio_dir), config.limit, config.strict) == (
        *("table", "captions.csv", "clips"),
        *(3, True),
    )


@pytest.fixture
def sounds(workplace):
    for number in range(12):
        path = workplace / "sounds" / ("dog bark", "rain")[number % 2] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * np.sin(0.05 * (number + 1) * np.arange(800)), 8000)
    return workplace / "sounds"


def test_a_folder_and_a_table_are_recognised(sounds, clapkit_call):
    folder = clapkit_call("prepare", sounds, "--json")
    assert json.loads(folder.stdout)["recipe"] == "folder"
    (sounds / "captions.csv").write_text("audio,caption\n" + "".join(f"rain/{n}.wav,It rains.\n" for n in (1, 3, 5)))
    table = clapkit_call("prepare", sounds / "captions.csv", "--json")
    assert json.loads(table.stdout)["recipe"] == "table"


def test_strict_makes_any_rejection_an_error(sounds, clapkit_call, workplace):
    (sounds / "rain" / "bad.wav").write_text("no sound")
    lenient = clapkit_call("prepare", sounds, "--name", "lenient", "--json")
    assert (lenient.exit_code, json.loads(lenient.stdout)["num_rejected"]) == (0, 1)
    assert "warning: 1 of 13 items rejected" in lenient.stderr
    strict = clapkit_call("prepare", sounds, "--name", "strict", "--strict")
    assert strict.exit_code == 1
    assert "error: --strict: 1 of 13 items rejected" in strict.stderr
    assert not (workplace / "runs/prepare/strict/manifest.jsonl").exists()


def test_an_unknown_option_lists_the_known_ones(workplace, clapkit_call):
    result = clapkit_call("prepare", "synth", "-O", "num_clip=60")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: unknown option of recipe 'synth': 'num_clip': did you mean 'num_clips'? known: num_clips, sample_rate\n"
    )
