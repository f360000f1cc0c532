import json
from pathlib import Path

import pytest

from clapkit import registry
from clapkit.config import PrepareConfig
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.steps.prepare_source import audio_root, check_source, corpus_name, recognise


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_arguments_the_built_in_corpus_is_meant() -> None:
    assert recognise(None, None) == ("synth", None)


def test_a_folder_is_recognised_by_what_lies_in_it(tmp_path: Path) -> None:
    plain, run, hub = tmp_path / "plain", tmp_path / "run", tmp_path / "hub"
    touch(plain / "a.wav")
    touch(run / "run.json")
    touch(run / "manifest.jsonl")
    touch(hub / "dataset_dict.json")
    assert recognise(str(plain), None) == ("folder", plain)
    assert recognise(str(run), None) == ("manifest", run)
    assert recognise(str(hub), None) == ("hf", hub)


def test_a_folder_of_shards_or_parquet_without_sounds_is_no_folder_of_sounds(tmp_path: Path) -> None:
    touch(tmp_path / "shards" / "train" / "000000.tar")
    touch(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    touch(tmp_path / "sounds" / "backup.tar")
    touch(tmp_path / "sounds" / "dog" / "1.wav")
    assert recognise(str(tmp_path / "shards"), None)[0] == "webdataset"
    assert recognise(str(tmp_path / "hub"), None)[0] == "hf"
    assert recognise(str(tmp_path / "sounds"), None)[0] == "folder"


def test_a_file_is_recognised_by_its_suffix_and_a_manifest_by_its_header(tmp_path: Path) -> None:
    table = touch(tmp_path / "t.csv")
    lines = touch(tmp_path / "t.jsonl", json.dumps({"audio": "a.wav"}))
    manifest = touch(tmp_path / "m.jsonl", json.dumps({"clapkit_manifest": 1, "name": "x", "root": "."}))
    shard = touch(tmp_path / "0.tar")
    assert recognise(str(table), None) == ("table", table)
    assert recognise(str(lines), None) == ("table", lines)
    assert recognise(str(manifest), None) == ("manifest", manifest)
    assert recognise(str(shard), None) == ("webdataset", shard)


def test_a_pattern_of_shards_is_recognised(tmp_path: Path) -> None:
    pattern = str(tmp_path / "{0..3}.tar")
    assert recognise(pattern, None) == ("webdataset", Path(pattern))
    assert corpus_name("webdataset", registry.build("recipe", "webdataset"), Path(pattern)) == tmp_path.name
    check_source("webdataset", registry.build("recipe", "webdataset"), Path(pattern), None)


def test_a_run_may_be_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "prepare" / "mine").mkdir(parents=True)
    assert recognise("manifest", "mine", runs_root=tmp_path) == ("manifest", tmp_path / "prepare" / "mine")
    assert recognise("table", "mine", runs_root=tmp_path) == ("table", Path("mine"))


def test_what_is_neither_recipe_nor_path_offers_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'clotho'"):
        recognise("cloto", None)
    with pytest.raises(ManifestError, match="no such file or folder"):
        recognise("./nothing", None)


def test_two_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two sources found"):
        recognise(str(tmp_path), "other")


def test_a_recipe_gets_what_it_reads(tmp_path: Path) -> None:
    folder, synth = registry.build("recipe", "folder"), registry.build("recipe", "synth")
    with pytest.raises(ConfigError, match="recipe folder: no source given"):
        check_source("folder", folder, None, None)
    with pytest.raises(ConfigError, match="recipe synth: reads nothing"):
        check_source("synth", synth, tmp_path, None)
    with pytest.raises(ManifestError, match="no such file or folder; correct the path"):
        check_source("folder", folder, tmp_path / "nothing", None)
    with pytest.raises(ManifestError, match="no such file or folder; correct the path"):
        check_source("folder", folder, tmp_path, tmp_path / "nothing")


def test_paths_start_at_the_audio_folder_the_source_or_the_run(tmp_path: Path) -> None:
    table, folder = touch(tmp_path / "t.csv"), registry.build("recipe", "folder")
    output = tmp_path / "run"
    assert audio_root(folder, tmp_path, PrepareConfig(), output) == tmp_path
    assert audio_root(folder, table, PrepareConfig(), output) == tmp_path
    assert audio_root(folder, table, PrepareConfig(audio_dir=tmp_path / "clips"), output) == tmp_path / "clips"
    assert audio_root(registry.build("recipe", "synth"), None, PrepareConfig(), output) == output
    assert audio_root(registry.build("recipe", "webdataset"), tmp_path, PrepareConfig(), output) == output / "audio"


def test_a_table_that_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    def refuse(path, *args, **options):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "m.jsonl").write_text("{}")
    monkeypatch.setattr(Path, "open", refuse)  # root may read whatever its mode says
    with pytest.raises(ManifestError, match=r"m\.jsonl: cannot be read \(Permission denied\); make it readable"):
        recognise(str(tmp_path / "m.jsonl"), None, runs_root=tmp_path)


def test_a_folder_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "drums [1]"
    touch(folder / "kick.wav")
    assert recognise(str(folder), None) == ("folder", folder)
    assert corpus_name("folder", registry.build("recipe", "folder"), folder) == "drums [1]"
