import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes.urbansound8k import CLASSES, FOLD_SIZES, FileName, parse_name
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

COLUMNS = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
GOLDEN = Path(__file__).parents[2] / "golden" / "golden_metrics.json"


def rows() -> list[dict[str, str]]:
    """Two classes; in each of four folds two recordings, with two slices and one, and one more in fold 1."""
    found = []
    for fold in range(1, 5):
        for class_id in (3, 6):
            for number, num_slices in enumerate((2, 1, 1) if fold == 1 else (2, 1)):
                for slice in range(num_slices):
                    id = f"{fold}{class_id}{number}"
                    name = f"{id}-{class_id}-0-{slice}.wav"
                    cells = [name, id, f"{slice * 2}.5", f"{slice * 2 + 4}.5", "2", str(fold), str(class_id), CLASSES[class_id]]
                    found.append(dict(zip(COLUMNS, cells, strict=True)))
    return found


def corpus(folder: Path, listed: list[dict[str, str]] | None = None) -> Path:
    (folder / "metadata").mkdir()
    with (folder / "metadata" / "UrbanSound8K.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows() if listed is None else listed)
    for row in rows():
        place = folder / "audio" / f"fold{row['fold']}"
        place.mkdir(parents=True, exist_ok=True)
        (place / row["slice_file_name"]).write_bytes(b"")
    return folder


def read_all(
    source: Path, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[Clip | Rejection], CorpusDescription]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    recipe = registry.build("recipe", "urbansound8k", options)
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    return items, recipe.describe([item for item in items if isinstance(item, Clip)])


def clips(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip]:
    return [item for item in read_all(source, options, **changes)[0] if isinstance(item, Clip)]


def test_a_row_becomes_a_clip_and_its_times_no_span(tmp_path: Path) -> None:
    found = {clip.id: clip for clip in clips(corpus(tmp_path))}
    assert len(found) == 26
    assert found["urbansound8k/430-3-0-1"] == Clip(
        "urbansound8k/430-3-0-1",
        "audio/fold4/430-3-0-1.wav",
        labels=("dog barking",),
        split="test",
        fold=4,
        source="freesound/430",
        extra={
            "class_id": 3,
            "class": "dog_bark",
            "salience": "background",
            "recording_start_s": 2.5,
            "recording_end_s": 6.5,
        },
    )


def test_slices_of_a_recording_stay_in_one_split_of_folds_of_unequal_size(tmp_path: Path) -> None:
    found = clips(corpus(tmp_path), {"test_fold": "1"})
    assert Counter(clip.fold for clip in found) == {1: 8, 2: 6, 3: 6, 4: 6}
    assert {clip.fold for clip in found if clip.split == "test"} == {1}
    assert {clip.fold for clip in found if clip.split == "val"} == {4}
    assert len({(clip.source, clip.split) for clip in found}) == len({clip.source for clip in found}) == 18


@pytest.mark.parametrize(("names", "label"), [("words", "gunshot"), ("blanks", "gun shot"), ("raw", "gun_shot")])
def test_the_spelling_of_classes_is_an_option(tmp_path: Path, names: str, label: str) -> None:
    assert label in {clip.labels[0] for clip in clips(corpus(tmp_path), {"names": names})}


def test_missing_audio_is_counted_in_its_split_and_moves_nothing(tmp_path: Path) -> None:
    whole = {clip.id: clip.split for clip in clips(corpus(tmp_path))}
    (tmp_path / "audio" / "fold4" / "430-3-0-1.wav").unlink()
    items, description = read_all(tmp_path)
    (missing,) = [item for item in items if isinstance(item, Rejection)]
    assert (missing.item, missing.kind, missing.split) == ("urbansound8k/430-3-0-1", "missing", "test")
    assert "fold4/430-3-0-1.wav" in missing.reason
    assert {item.id: item.split for item in items if isinstance(item, Clip)}.items() <= whole.items()
    assert sum(description.official.values()) == 26


def test_a_file_in_the_folder_of_another_fold_is_rejected(tmp_path: Path) -> None:
    audio = corpus(tmp_path) / "audio"
    (audio / "fold4" / "430-3-0-1.wav").rename(audio / "fold2" / "430-3-0-1.wav")
    (found,) = [item for item in read_all(tmp_path)[0] if isinstance(item, Rejection)]
    assert (found.item, found.kind) == ("urbansound8k/430-3-0-1", "bad")
    assert "lies in fold2, but the list says fold 4" in found.reason


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("slice_file_name", "dog.wav", "slice_file_name 'dog.wav', expected fsID-classID-occurrence-slice"),
        ("fsID", "9", "has fsID '9', but 130 in its name"),
        ("classID", "4", "has classID '4', but 3 in its name"),
        ("class", "siren", "class 'siren' with classID 3, expected dog_bark"),
        ("fold", "", "has no fold"),
        ("fold", "one", "fold 'one', expected a whole number"),
        ("salience", "3", "has salience '3', expected 1 or 2"),
        ("start", "soon", "start 'soon', expected seconds"),
    ],
)
def test_a_row_that_cannot_be_right_is_rejected(tmp_path: Path, column: str, value: str, reason: str) -> None:
    listed = rows()
    listed[0][column] = value
    items, _ = read_all(corpus(tmp_path, listed))
    assert isinstance(items[0], Rejection)
    assert (items[0].item, items[0].kind) == ("UrbanSound8K.csv line 2", "bad")
    assert reason in items[0].reason
    assert sum(isinstance(item, Clip) for item in items) == 25


def test_a_class_above_the_last_and_a_second_row_are_rejected(tmp_path: Path) -> None:
    listed = [*rows(), rows()[1]]
    listed[0] |= {"slice_file_name": "130-10-0-0.wav", "classID": "10"}
    found = [item for item in read_all(corpus(tmp_path, listed))[0] if isinstance(item, Rejection)]
    assert "class 'dog_bark' with classID 10, expected a classID below 10" in found[0].reason
    assert found[1].item == "urbansound8k/130-3-0-1"
    assert "line 28 lists it again, first on line 3" in found[1].reason


def test_the_official_folds_are_facts(tmp_path: Path) -> None:
    description = read_all(corpus(tmp_path))[1]
    assert sum(FOLD_SIZES.values()) == description.facts["official_clips"] == 8732
    assert description.facts["official_clips_of_folds"]["4"] == 990
    (warning,) = description.warnings
    assert "holds 26 usable rows, expected 8732 in ten folds" in warning


def test_a_recording_in_two_folds_is_named_and_not_torn(tmp_path: Path) -> None:
    listed = rows()
    listed[1]["fold"] = "4"
    source = corpus(tmp_path, listed)
    (source / "audio" / "fold1" / "130-3-0-1.wav").rename(source / "audio" / "fold4" / "130-3-0-1.wav")
    items, description = read_all(source)
    assert "Recordings that lie in several folds: 1, first: freesound/130" in description.warnings[0]
    assert len({item.split for item in items if isinstance(item, Clip) and item.source == "freesound/130"}) == 1


def test_file_names_are_taken_apart_as_published() -> None:
    cases = json.loads(GOLDEN.read_text())
    (pairs,) = [case["pairs"] for case in cases if case["kind"] == "filename_parse"]
    golden = [pair for pair in pairs if pair["dataset"] == "urbansound8k"]
    assert golden
    for pair in golden:
        assert parse_name(pair["name"]) == FileName(**pair["fields"])
    assert parse_name("1-100032-A-0.wav") is None


def test_what_is_no_urbansound8k_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no UrbanSound8K, no metadata/UrbanSound8K\.csv found"):
        read_all(tmp_path)
    with pytest.raises(ConfigError, match="expected a share between 0 and 1"):
        read_all(tmp_path, {"val_share": "-1"})
    with pytest.raises(ManifestError, match=r"no clip in test_fold 7"):
        read_all(corpus(tmp_path), {"test_fold": "7"})
