import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyarrow import parquet

from clapkit.data.export.hub import write_hub
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError
from clapkit.types import Clip, SilentReporter, Tracker

ReadBack = Callable[[str, Path], tuple[dict[str, Clip], Path]]


@pytest.fixture
def tracker() -> Tracker:
    with SilentReporter().track("", None) as tracker:
        return tracker


def test_the_folder_has_the_layout_of_the_hub(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    result = write_hub(manifest, tmp_path / "h", rows_per_file=4, tracker=tracker)
    assert result["splits"] == {"train": {"num_clips": 7, "num_files": 2}, "val": {"num_clips": 3, "num_files": 1}}
    assert result["paths"] == [
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/val-00000-of-00001.parquet",
    ]
    assert sorted(path.name for path in (tmp_path / "h" / "data").iterdir()) == [path[5:] for path in result["paths"]]
    readme = (tmp_path / "h" / "README.md").read_text()
    assert "  - split: train\n    path: data/train-*.parquet\n  - split: val\n    path: data/val-*.parquet\n---" in readme


def test_rows_hold_the_sound_the_columns_and_the_type_of_audio(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    write_hub(manifest, tmp_path / "h", tracker=tracker)
    made = parquet.read_table(tmp_path / "h" / "data" / "train-00000-of-00001.parquet")
    features = json.loads(made.schema.metadata[b"huggingface"])["info"]["features"]
    assert features.keys() == set(made.column_names)
    assert features["audio"] == {"_type": "Audio"}
    row = made.to_pylist()[0]
    assert row["audio"] == {"bytes": (manifest.root / "a/0.wav").read_bytes(), "path": "0.wav"}
    assert (row["captions"], row["languages"]) == (["Ein Hund bellt.", "A dog 0."], ["de", "en"])
    assert (row["labels"], row["split"], row["fold"], row["sample_rate"]) == (["dog", "speech, male"], "train", 1, 8000)


def test_clips_come_back_identical(tmp_path: Path, manifest: Manifest, read_back: ReadBack, tracker: Tracker) -> None:
    write_hub(manifest, tmp_path / "h", rows_per_file=2, tracker=tracker)
    found, root = read_back("hf", tmp_path / "h")
    assert found.keys() == {clip.id for clip in manifest}
    for clip in manifest.clips[:4]:
        assert found[clip.id] == clip
        assert (root / clip.audio).read_bytes() == manifest.audio_path(clip).read_bytes()
    for clip in manifest.clips[4:]:
        start, stop = round((clip.start_s or 0) * 8000), None if clip.end_s is None else round(clip.end_s * 8000)
        expected = soundfile.read(manifest.audio_path(clip), start=start, stop=stop, dtype="float64")[0]
        assert np.array_equal(soundfile.read(root / found[clip.id].audio, dtype="float64")[0], expected)
        assert found[clip.id] == replace(clip, audio=found[clip.id].audio, start_s=None, end_s=None)


def test_equal_input_gives_equal_bytes(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    for name in ("one", "two"):
        write_hub(manifest, tmp_path / name, tracker=tracker)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_bad_files_are_counted(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    (manifest.root / "a/1.flac").unlink()
    result = write_hub(manifest, tmp_path / "h", tracker=tracker)
    assert {failed["item"] for failed in result["failed"]} == {"corpus/1.x", "span 1"}
    assert result["splits"]["val"] == {"num_clips": 2, "num_files": 1}
    assert parquet.read_metadata(tmp_path / "h" / "data" / "val-00000-of-00001.parquet").num_rows == 2
    assert not list((tmp_path / "h").rglob(".*"))


def test_groups_of_rows_stay_small(
    tmp_path: Path, manifest: Manifest, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clapkit.data.export.hub._GROUP_ROWS", 3)
    write_hub(manifest, tmp_path / "h", tracker=tracker)
    # Seven rows of train: 3 + 3 + 1.
    assert parquet.read_metadata(tmp_path / "h" / "data" / "train-00000-of-00001.parquet").num_row_groups == 3


def test_split_names_that_the_hub_refuses_are_changed_and_come_back(
    tmp_path: Path, manifest: Manifest, read_back: ReadBack, tracker: Tracker
) -> None:
    clips = [replace(clip, split=split) for clip, split in zip(manifest.clips, ["fold 1", "fold-1", "ß"], strict=False)]
    made = Manifest.write(tmp_path / "n.jsonl", clips, root=manifest.root, name="n")
    write_hub(made, tmp_path / "h", tracker=tracker)
    names = sorted(path.name.partition("-")[0] for path in (tmp_path / "h" / "data").iterdir())
    assert all(name.replace("_", "").isalnum() and name.isascii() for name in names)
    found, _ = read_back("hf", tmp_path / "h")
    assert {clip.split for clip in found.values()} == {"fold 1", "fold-1", "ß"}


def test_folders_with_content_and_empty_files_are_refused(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    with pytest.raises(ConfigError, match="is not empty, expected a new folder"):
        write_hub(manifest, tmp_path, tracker=tracker)
    with pytest.raises(ConfigError, match="--shard-size 0: expected at least 1"):
        write_hub(manifest, tmp_path / "h", rows_per_file=0, tracker=tracker)
