import json
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes.fsd50k import WORDS
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

DEV = """fname,labels,mids,split
64760,"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music","/m/02sgy,/m/0342h,/m/0fx80y,/m/04szw,/m/04rlf",train
16399,"Gunshot_and_gunfire,Explosion","/m/032s66,/m/014zdl",train
345111,"Bathtub_(filling_or_washing)",/m/03dnzn,val
"""
EVAL = """fname,labels,mids
99,"Gunshot_and_gunfire,Explosion","/m/032s66,/m/014zdl"
"""
VOCABULARY = """0,Electric_guitar,/m/02sgy
1,Guitar,/m/0342h
2,Plucked_string_instrument,/m/0fx80y
3,Musical_instrument,/m/04szw
4,Music,/m/04rlf
5,Gunshot_and_gunfire,/m/032s66
6,Explosion,/m/014zdl
7,Bathtub_(filling_or_washing),/m/03dnzn
"""
INFO = {
    "64760": {
        "title": "guitarras_63.wav",
        "description": " electric guitar\r\n",
        "tags": ["electric", "guitar"],
        "license": "CC0",
        "uploader": "someone",
    },
    "16399": {"title": "bang", "description": " "},
}


def corpus(folder: Path, *, dev: str = DEV, vocabulary: str | None = VOCABULARY, info: bool = True) -> Path:
    texts = {"FSD50K.ground_truth/dev.csv": dev, "FSD50K.ground_truth/eval.csv": EVAL}
    if vocabulary is not None:
        texts["FSD50K.ground_truth/vocabulary.csv"] = vocabulary
    if info:
        texts["FSD50K.metadata/dev_clips_info_FSD50K.json"] = json.dumps(INFO)
        texts["FSD50K.metadata/eval_clips_info_FSD50K.json"] = "{}"
    for part, name in (("dev", "64760"), ("dev", "16399"), ("dev", "345111"), ("eval", "99")):
        texts[f"FSD50K.{part}_audio/{name}.wav"] = ""
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def read_all(
    source: Path, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[list[Clip | Rejection], CorpusDescription]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    recipe = registry.build("recipe", "fsd50k", options)
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    return items, recipe.describe([item for item in items if isinstance(item, Clip)])


def clips(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip]:
    return [item for item in read_all(source, options, **changes)[0] if isinstance(item, Clip)]


def rejections(source: Path, options: dict[str, Any] | None = None) -> list[Rejection]:
    return [item for item in read_all(source, options)[0] if isinstance(item, Rejection)]


def test_a_row_becomes_a_clip_with_parents_among_its_labels(tmp_path: Path) -> None:
    first = clips(corpus(tmp_path))[0]
    assert first == Clip(
        "fsd50k/64760",
        "FSD50K.dev_audio/64760.wav",
        labels=("Electric guitar", "Guitar", "Plucked string instrument", "Musical instrument", "Music"),
        split="train",
        source="freesound/64760",
        extra={"mids": ["/m/02sgy", "/m/0342h", "/m/0fx80y", "/m/04szw", "/m/04rlf"]} | INFO["64760"],
    )


def test_splits_are_those_of_the_corpus(tmp_path: Path) -> None:
    items, description = read_all(corpus(tmp_path))
    found = {item.id: item.split for item in items if isinstance(item, Clip)}
    assert found == {"fsd50k/64760": "train", "fsd50k/16399": "train", "fsd50k/345111": "val", "fsd50k/99": "test"}
    assert len(items) == 4
    assert description.official == {"train": 36796, "val": 4170, "test": 10231}
    assert description.facts["classes_in_vocabulary"] == 8
    assert description.warnings == []


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        ("words", ("Gunshot, gunfire", "Explosion")),
        ("blanks", ("Gunshot and gunfire", "Explosion")),
        ("raw", ("Gunshot_and_gunfire", "Explosion")),
    ],
)
def test_the_comma_of_audioset_comes_back_unless_told_otherwise(tmp_path: Path, names: str, labels: tuple[str, ...]) -> None:
    found = {clip.id: clip.labels for clip in clips(corpus(tmp_path), {"names": names})}
    assert found["fsd50k/16399"] == found["fsd50k/99"] == labels


def test_words_differ_from_the_names_only_in_what_stands_for_a_comma() -> None:
    assert len(WORDS) == len(set(WORDS.values())) == 37
    for raw, words in WORDS.items():
        assert words.replace(", and ", ", ").replace(", ", "_and_").replace(" ", "_") == raw


@pytest.mark.parametrize(("captions", "text"), [("title", "guitarras_63.wav"), ("description", "electric guitar")])
def test_what_the_uploader_wrote_is_a_caption_only_if_asked_for(tmp_path: Path, captions: str, text: str) -> None:
    corpus(tmp_path)
    assert all(not clip.captions for clip in clips(tmp_path))
    assert clips(tmp_path, {"captions": captions})[0].captions == (Caption(text),)


def test_an_empty_description_is_counted_and_the_clip_stays(tmp_path: Path) -> None:
    items, _ = read_all(corpus(tmp_path), {"captions": "description"})
    empty = [item.item for item in items if isinstance(item, Rejection) and item.check == "empty_caption"]
    assert empty == ["fsd50k/16399 caption 1", "fsd50k/345111 caption 1", "fsd50k/99 caption 1"]
    assert sum(isinstance(item, Clip) for item in items) == 4


def test_captions_without_clip_information_are_refused(tmp_path: Path) -> None:
    corpus(tmp_path, info=False)
    assert "title" not in clips(tmp_path)[0].extra
    with pytest.raises(
        ManifestError, match=r"no FSD50K\.metadata/dev_clips_info_FSD50K\.json found, expected it for captions=title"
    ):
        read_all(tmp_path, {"captions": "title"})
    with pytest.raises(ConfigError, match="captions=tags: expected one of none, title, description"):
        read_all(tmp_path, {"captions": "tags"})


def test_missing_audio_is_counted_in_its_split(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "FSD50K.dev_audio" / "345111.wav").unlink()
    (missing,) = rejections(tmp_path)
    assert (missing.item, missing.kind, missing.split) == ("fsd50k/345111", "missing", "val")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,Tuba,/m/x,train", "label 'Tuba' is not in vocabulary.csv"),
        ("1,Music,/m/x,train", "label 'Music' has mid /m/x, but /m/04rlf in vocabulary.csv"),
        ('1,"Music,Guitar",/m/04rlf,train', "2 labels but 1 mids, expected one mid for each label"),
        ("1,,,train", "no label, expected at least one"),
        ("1,Music,/m/04rlf,dev", "fname 1 has split 'dev', expected train or val"),
        ("one,Music,/m/04rlf,train", "fname 'one', expected the number of a sound on Freesound"),
        ("1,Music,Guitar,/m/04rlf,train", "5 cells found, 4 expected from the header"),
        ("64760,Music,/m/04rlf,train", "dev.csv line 5 lists it again, first on dev.csv line 2"),
    ],
)
def test_a_row_that_cannot_be_right_is_rejected(tmp_path: Path, row: str, reason: str) -> None:
    (found,) = rejections(corpus(tmp_path, dev=f"{DEV}{row}\n"))
    assert found.kind == "bad"
    assert reason in found.reason


def test_labels_that_could_not_be_checked_are_named(tmp_path: Path) -> None:
    items, description = read_all(corpus(tmp_path, vocabulary=None, dev=f"{DEV}1,Tuba,/m/x,train\n"))
    assert [item.kind for item in items if isinstance(item, Rejection)] == ["missing"]
    assert description.facts["classes_in_vocabulary"] is None
    assert description.warnings == ["vocabulary.csv is not there, so labels were not checked against it."]


def test_one_list_alone_is_read_and_the_other_named(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "FSD50K.ground_truth" / "dev.csv").unlink()
    items, description = read_all(tmp_path)
    assert [item.id for item in items if isinstance(item, Clip)] == ["fsd50k/99"]
    (warning,) = description.warnings
    assert warning.startswith("dev.csv is not there")


def test_audio_may_lie_elsewhere(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "FSD50K.dev_audio").rename(tmp_path / "converted")
    (tmp_path / "converted" / "64760.wav").rename(tmp_path / "converted" / "64760.flac")
    found = clips(tmp_path, audio_dir=tmp_path / "converted")
    assert [clip.audio for clip in found] == ["64760.flac", "16399.wav", "345111.wav"]


def test_what_is_no_fsd50k_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no FSD50K, no FSD50K\.ground_truth/dev\.csv or eval\.csv found"):
        read_all(tmp_path)
    with pytest.raises(ManifestError, match=r"vocabulary\.csv line 1: 2 cells found, .*expected index,label,mid"):
        read_all(corpus(tmp_path, vocabulary="0,Music\n"))
    (tmp_path / "FSD50K.ground_truth" / "vocabulary.csv").unlink()
    (tmp_path / "FSD50K.ground_truth" / "dev.csv").write_text("fname,labels,mids\n1,Music,/m/04rlf\n")
    with pytest.raises(ManifestError, match=r"dev\.csv: no column 'split'"):
        read_all(tmp_path)
