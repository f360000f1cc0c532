import json
import os

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
        "error: unknown option of recipe 'synth': 'num_clip': did you mean 'num_clips'? "
        "known: languages, num_clips, sample_rate\n"
    )


def test_the_findings_are_printed_and_those_without_items_are_not(fake_step, clapkit_call):
    step = fake_step("prepare")
    step.result |= {"num_missing": 4, "num_excluded": 0, "checks": {"silent": 0, "clipped": 12, "near_duplicate": 3}}
    result = clapkit_call("prepare", "--name", "x")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["of", "these", "missing", "audio", "4"] in rows
    assert ["clipped", "12"] in rows
    assert ["near_duplicate", "3"] in rows
    assert "Needs a look (report.html shows the worst)" in result.stdout
    assert "silent" not in result.stdout
    assert "left out" not in result.stdout


def test_a_clean_corpus_prints_no_verdict(fake_step, clapkit_call):
    step = fake_step("prepare")
    step.result |= {"checks": {"silent": 0}}
    assert "Needs a look" not in clapkit_call("prepare", "--name", "x").stdout


def test_choices_are_read_from_the_command_line(fake_step, clapkit_call):
    step = fake_step("prepare")
    given = [
        "--template",
        "a {}",
        "--template",
        "the {}",
        "--subtract",
        "a:test",
        "--check-overlap",
        "b",
        "--where",
        "fold = 1",
    ]
    given += ["--drop", "silent", "--languages", "en,fr", "--cache-audio", "flac", "--cache-rate", "16000", "--export", "hf"]
    result = clapkit_call("prepare", *given, "--shard-size", "5")
    assert result.exit_code == 0, result.stderr
    (config,) = step.configs
    assert (config.template, config.subtract, config.check_overlap) == (("a {}", "the {}"), ("a:test",), ("b",))
    assert (config.where, config.drop, config.languages) == ("fold = 1", "silent", "en,fr")
    assert (config.cache_audio, config.cache_rate, config.export, config.shard_size) == ("flac", 16000, "hf", 5)


@pytest.mark.skipif(os.name != "posix", reason="names with line breaks need a POSIX file system")
def test_names_with_line_breaks_and_escape_codes_are_printed_on_one_line(sounds, clapkit_call):
    (sounds / "rain" / "two\nlines\x1b[31m.wav").write_text("no sound")
    result = clapkit_call("prepare", sounds, "--name", "x")
    assert result.exit_code == 0, result.stderr
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith("warning: 1 of 13 items rejected")]
    assert "rain/two lines\\x1b[31m" in warning
    assert "\x1b" not in result.stderr + result.stdout


# Resuming ---------------------------------------------------------------------------------------------------------------


def test_resuming_where_nothing_is_there_starts(sounds, clapkit_call, workplace):
    named = clapkit_call("prepare", sounds, "--name", "x", "--resume", "--json")
    assert named.exit_code == 0, named.stderr
    assert json.loads(named.stdout)["num_clips"] == 12
    assert (workplace / "runs/prepare/x/result.json").is_file()


def test_resuming_without_a_name_and_without_an_unfinished_run_starts(sounds, clapkit_call, workplace):
    assert clapkit_call("prepare", sounds, "--resume").exit_code == 0
    assert len(list((workplace / "runs/prepare").iterdir())) == 1


def interrupt(monkeypatch, clapkit_call, *arguments):
    """Start a run and interrupt it once it has looked into its files."""
    from clapkit.steps import prepare

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "near_duplicates", killed)
        assert clapkit_call("prepare", *arguments).exit_code == 130


def test_an_interrupted_run_goes_on_with_its_own_options(sounds, clapkit_call, workplace, monkeypatch):
    interrupt(monkeypatch, clapkit_call, sounds, "--name", "x", "--split", "test", "--template", "Hear {}!")
    result = clapkit_call("prepare", "--resume", "--json")
    assert result.exit_code == 0, result.stderr
    assert "files looked at before: 12 of 12" in result.stderr
    assert json.loads(result.stdout)["splits"] == {"test": 12}
    assert "Hear rain!" in (workplace / "runs/prepare/x/manifest.jsonl").read_text()


def test_flags_that_contradict_the_unfinished_run_are_refused(sounds, clapkit_call, workplace, monkeypatch):
    interrupt(monkeypatch, clapkit_call, sounds, "--name", "x", "--split", "test")
    result = clapkit_call("prepare", sounds, "--name", "x", "--resume", "--split", "train", "--check", "header")
    assert result.exit_code == 1
    expected = "error: --resume: --check, --split differ from what runs/prepare/x was started with; leave them out\n"
    assert result.stderr == expected
    assert clapkit_call("prepare", "--name", "x", "--resume", "--workers", "1").exit_code == 0


def test_a_finished_run_is_not_done_again(sounds, clapkit_call, workplace):
    first = clapkit_call("prepare", sounds, "--name", "x", "--json")
    before = (workplace / "runs/prepare/x/run.json").read_bytes()
    again = clapkit_call("prepare", sounds, "--name", "x", "--json", "--resume")
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert "runs/prepare/x: finished already, nothing to resume" in again.stderr
    assert (workplace / "runs/prepare/x/run.json").read_bytes() == before


def test_without_resume_an_unfinished_run_is_not_touched(sounds, clapkit_call, workplace, monkeypatch):
    interrupt(monkeypatch, clapkit_call, sounds, "--name", "x")
    result = clapkit_call("prepare", sounds, "--name", "x")
    assert result.exit_code == 1
    assert "already holds files" in result.stderr


# Lists of clips that are left out ---------------------------------------------------------------------------------------


def test_a_finished_run_is_skipped_only_where_its_list_held_the_same(sounds, clapkit_call, workplace):
    (workplace / "bad.txt").write_text("rain/1\n")
    given = (sounds, "--exclude", "bad.txt", "--check", "header", "--skip-existing", "--json")
    first = json.loads(clapkit_call("prepare", *given).stdout)
    again = clapkit_call("prepare", *given)
    assert "finished already, skipped" in again.stderr
    assert json.loads(again.stdout) == first
    (workplace / "bad.txt").write_text("rain/1\nrain/3\n")
    changed = clapkit_call("prepare", *given)
    assert "skipped" not in changed.stderr
    assert (first["num_excluded"], json.loads(changed.stdout)["num_excluded"]) == (1, 2)
    assert "finished already, skipped" in clapkit_call("prepare", *given).stderr
    (workplace / "bad.txt").write_text("rain/1\n")
    assert json.loads(clapkit_call("prepare", *given).stdout) == first


def test_a_named_run_whose_list_changed_is_refused(sounds, clapkit_call, workplace):
    (workplace / "bad.txt").write_text("rain/1\n")
    given = (sounds, "--exclude", "bad.txt:1", "--check", "header", "--skip-existing", "--name", "x")
    assert clapkit_call("prepare", *given).exit_code == 0
    assert "finished already, skipped" in clapkit_call("prepare", *given).stderr
    (workplace / "bad.txt").write_text("rain/3\n")
    changed = clapkit_call("prepare", *given)
    assert changed.exit_code == 1
    assert changed.stderr == (
        "error: runs/prepare/x: holds a finished run of another configuration "
        "(differs in exclude: bad.txt:1 has changed since); "
        "choose another --run-dir or --name, or pass --overwrite without --skip-existing\n"
    )
    other = clapkit_call("prepare", sounds, "--exclude", "bad.txt", "--check", "header", "--skip-existing", "--name", "x")
    assert "holds a finished run of another configuration (differs in exclude)" in other.stderr


def test_an_interrupted_run_does_not_go_on_with_another_list(sounds, clapkit_call, workplace, monkeypatch):
    (workplace / "bad.txt").write_text("rain/1\n")
    interrupt(monkeypatch, clapkit_call, sounds, "--name", "x", "--exclude", "bad.txt")
    (workplace / "bad.txt").write_text("rain/3\n")
    changed = clapkit_call("prepare", "--resume", "--name", "x")
    assert (changed.exit_code, changed.stderr.count("\n")) == (1, 1)
    assert "error: --exclude bad.txt: has changed since runs/prepare/x was started; restore it" in changed.stderr
    (workplace / "bad.txt").write_text("rain/1\n")
    result = clapkit_call("prepare", "--resume", "--name", "x", "--json")
    assert "files looked at before: 11 of 11" in result.stderr
    assert json.loads(result.stdout)["num_excluded"] == 1
