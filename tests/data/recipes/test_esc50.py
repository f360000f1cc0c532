import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes._class_names import class_name
from clapkit.data.recipes.esc50 import CLASSES, WORDS, FileName, parse_name
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

COLUMNS = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
GOLDEN = Path(__file__).parents[2] / "golden" / "golden_metrics.json"
# Classes of the miniature: target -> part of ESC-10.
TARGETS = {0: "True", 20: "True", 34: "False"}


def rows() -> list[dict[str, str]]:
    """Three classes; in each of five folds four clips of three recordings, the first of them with two takes."""
    found = []
    for fold in range(1, 6):
        for target, esc10 in TARGETS.items():
            for number, take in ((0, "A"), (0, "B"), (1, "A"), (2, "A")):
                clip_id = f"{fold}{target:02d}{number}"
                cells = [f"{fold}-{clip_id}-{take}-{target}.wav", str(fold), str(target), CLASSES[target], esc10, clip_id, take]
                found.append(dict(zip(COLUMNS, cells, strict=True)))
    return found


def corpus(folder: Path, listed: list[dict[str, str]] | None = None) -> Path:
    (folder / "meta").mkdir()
    (folder / "audio").mkdir()
    listed = rows() if listed is None else listed
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)
    for row in rows():
        (folder / "audio" / row["filename"]).write_bytes(b"")
    return folder


def read_all(
    source: Path, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[Clip | Rejection], CorpusDescription]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    recipe = registry.build("recipe", "esc50", options)
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    return items, recipe.describe([item for item in items if isinstance(item, Clip)])


def read(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip | Rejection]:
    return read_all(source, options, **changes)[0]


def clips(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip]:
    return [item for item in read(source, options, **changes) if isinstance(item, Clip)]


def test_a_row_becomes_a_clip(tmp_path: Path) -> None:
    found = {clip.id: clip for clip in clips(corpus(tmp_path))}
    assert len(found) == 60
    assert found["esc50/5-5200-B-20"] == Clip(
        "esc50/5-5200-B-20",
        "audio/5-5200-B-20.wav",
        labels=("baby crying",),
        split="test",
        fold=5,
        source="freesound/5200",
        extra={"class_id": 20, "category": "crying_baby", "esc10": True},
    )


@pytest.mark.parametrize(
    ("target", "category"),
    # As rows of the published list have them, for instance 1-21934-A-38.wav,1,38,clock_tick,True,21934,A.
    [(0, "dog"), (10, "rain"), (19, "thunderstorm"), (20, "crying_baby"), (29, "drinking_sipping"), (30, "door_wood_knock")]
    + [(34, "can_opening"), (35, "washing_machine"), (36, "vacuum_cleaner"), (37, "clock_alarm"), (38, "clock_tick")]
    + [(39, "glass_breaking"), (40, "helicopter"), (41, "chainsaw"), (44, "engine"), (49, "hand_saw")],
)
def test_targets_number_the_classes_as_the_published_list_does(target: int, category: str) -> None:
    assert CLASSES[target] == category


def test_fifty_different_classes_are_spelled_in_different_words() -> None:
    assert len(set(CLASSES)) == 50
    assert len({class_name(name, WORDS) for name in CLASSES}) == 50
    assert set(WORDS) <= set(CLASSES)
    assert (CLASSES.index("crying_baby"), CLASSES.index("hand_saw")) == (20, 49)


@pytest.mark.parametrize(("names", "label"), [("words", "opening a can"), ("blanks", "can opening"), ("raw", "can_opening")])
def test_the_spelling_of_classes_is_an_option(tmp_path: Path, names: str, label: str) -> None:
    items, description = read_all(corpus(tmp_path), {"names": names})
    assert label in {item.labels[0] for item in items if isinstance(item, Clip)}
    assert description.facts["names"] == names


def test_folds_are_the_unit_of_the_splits(tmp_path: Path) -> None:
    found = clips(corpus(tmp_path), {"test_fold": "2"})
    assert {clip.fold for clip in found if clip.split == "test"} == {2}
    assert {clip.fold for clip in found if clip.split == "val"} == {1}
    assert len({(clip.source, clip.split) for clip in found}) == len({clip.source for clip in found}) == 45
    # 4 clips a class in the fold, half of them is 2.
    assert Counter(clip.split for clip in found) == {"train": 42, "val": 6, "test": 12}


def test_the_esc10_part_can_be_had_alone_and_the_rest_is_counted(tmp_path: Path) -> None:
    items, description = read_all(corpus(tmp_path), {"subset": "esc10"})
    left_out = [item for item in items if isinstance(item, Rejection)]
    assert {item.labels[0] for item in items if isinstance(item, Clip)} == {"dog", "baby crying"}
    assert (len(left_out), {item.kind for item in left_out}) == (20, {"excluded"})
    assert (description.facts["subset"], description.facts["official_clips"]) == ("esc10", 400)


def test_missing_audio_is_counted_in_its_split_and_moves_nothing(tmp_path: Path) -> None:
    whole = {clip.id: clip.split for clip in clips(corpus(tmp_path))}
    for name in ("5-5000-A-0.wav", "1-1341-A-34.wav"):
        (tmp_path / "audio" / name).unlink()
    items, description = read_all(tmp_path)
    missing = {item.item: (item.kind, item.split) for item in items if isinstance(item, Rejection)}
    assert missing == {"esc50/5-5000-A-0": ("missing", "test"), "esc50/1-1341-A-34": ("missing", "train")}
    assert {item.id: item.split for item in items if isinstance(item, Clip)}.items() <= whole.items()
    assert description.official == {"train": 42, "val": 6, "test": 12}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("fold", "3", "has fold '3', but 1 in its name"),
        ("target", "1", "has target '1', but 0 in its name"),
        ("src_file", "77", "has src_file '77', but 1000 in its name"),
        ("take", "C", "has take 'C', but A in its name"),
        ("category", "cat", "category 'cat' with target 0, expected dog"),
        ("esc10", "1", "has esc10 '1', expected True or False"),
        ("filename", "dog.wav", "filename 'dog.wav', expected fold-clip_id-take-target"),
        ("filename", "1-1000-A-50.wav", "has target '0', but 50 in its name"),
    ],
)
def test_a_row_that_contradicts_its_file_name_is_rejected(tmp_path: Path, column: str, value: str, reason: str) -> None:
    listed = rows()
    listed[0][column] = value
    items = read(corpus(tmp_path, listed))
    assert isinstance(items[0], Rejection)
    assert items[0].item == "esc50.csv line 2"
    assert items[0].kind == "bad"
    assert reason in items[0].reason
    assert sum(isinstance(item, Clip) for item in items) == 59


def test_a_target_above_the_last_is_rejected(tmp_path: Path) -> None:
    listed = rows()
    listed[0] |= {"filename": "1-1000-A-50.wav", "target": "50"}
    (first, *_) = read(corpus(tmp_path, listed))
    assert isinstance(first, Rejection)
    assert "category 'dog' with target 50, expected a target below 50" in first.reason


def test_a_clip_that_is_listed_twice_is_rejected_the_second_time(tmp_path: Path) -> None:
    items = read(corpus(tmp_path, [*rows(), rows()[0]]))
    assert items[-1] == Rejection(
        "esc50/1-1000-A-0", "line 62 lists it again, first on line 2, expected one row for a clip; drop one of them"
    )
    assert sum(isinstance(item, Clip) for item in items) == 60


def test_a_list_by_itself_needs_only_the_columns_that_copies_keep(tmp_path: Path) -> None:
    corpus(tmp_path)
    listed = [{key: row[key] for key in COLUMNS[:5]} for row in rows()]
    table = tmp_path / "copy.json"
    table.write_text(json.dumps([row | {"fold": int(row["fold"]), "esc10": row["esc10"] == "True"} for row in listed]))
    found = clips(table, audio_dir=tmp_path / "audio")
    assert (len(found), found[0].audio, found[0].extra["esc10"]) == (60, "1-1000-A-0.wav", True)


def test_a_list_of_another_length_is_named(tmp_path: Path) -> None:
    (warning,) = read_all(corpus(tmp_path))[1].warnings
    assert "holds 60 usable rows, expected 2000" in warning


def test_file_names_are_taken_apart_as_published() -> None:
    cases = json.loads(GOLDEN.read_text())
    (pairs,) = [case["pairs"] for case in cases if case["kind"] == "filename_parse"]
    golden = [pair for pair in pairs if pair["dataset"] == "esc50"]
    assert golden
    for pair in golden:
        assert parse_name(pair["name"]) == FileName(**pair["fields"])
    assert parse_name("100032-3-0-0.wav") is None


def test_what_is_no_esc50_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no ESC-50, no meta/esc50\.csv found, expected it below the folder"):
        read(tmp_path)
    (tmp_path / "esc50.csv").write_text("filename,fold\na.wav,1\n")
    with pytest.raises(ManifestError, match=r"no column 'target', columns found: filename, fold"):
        read(tmp_path)


def test_options_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"val_share=2\.0: expected a share between 0 and 1"):
        read(tmp_path, {"val_share": "2"})
    with pytest.raises(ConfigError, match="subset=esc5: expected one of all, esc10"):
        read(tmp_path, {"subset": "esc5"})
    with pytest.raises(ManifestError, match=r"no clip in test_fold 6, folds found: \[1, 2, 3, 4, 5\]"):
        read(corpus(tmp_path), {"test_fold": "6"})
