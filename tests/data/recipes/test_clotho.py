import hashlib
import os
from pathlib import Path

import pytest

from clapkit import registry
from clapkit.data.recipes import _clotho_checks
from clapkit.errors import ManifestError, UnknownNameError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

HEADER = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
META_HEADER = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
SHARED = "FREEZER_DOOR_OPEN_CLOSE.wav"


def row(name: str, *captions: str) -> str:
    texts = captions or tuple(f"Sentence {k} of it." for k in range(1, 6))
    return ",".join('"' + text.replace('"', '""') + '"' for text in (name, *texts)) + "\n"


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def corpus(folder: Path) -> Path:
    """Two clips of development, three of validation, two of evaluation; one name in two splits."""
    tables = {
        "development": ["a &amp; b.wav", SHARED],
        "validation": [" blank .wav", "KOOKABURRA..WAV.wav", SHARED],
        "evaluation": ["plain.wav", "20061208.waves.02.wav"],
    }
    for split, names in tables.items():
        (folder / f"clotho_captions_{split}.csv").write_text(HEADER + "".join(map(row, names)), encoding="utf-8")
        for name in names:
            touch(folder / split / name)
    return folder


def read(source: Path, *, audio_dir: Path | None = None) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "clotho")
    request = RecipeRequest(source=source, audio_dir=audio_dir, output_dir=source, seed=0, workers=1, reporter=SilentReporter())
    items = list(recipe.clips(request))
    clips = [item for item in items if isinstance(item, Clip)]
    return clips, [item for item in items if isinstance(item, Rejection)], recipe.describe(clips)


def test_every_clip_of_every_split_is_read_with_five_captions(tmp_path: Path) -> None:
    clips, rejections, _ = read(corpus(tmp_path))
    assert rejections == []
    assert [(clip.id, clip.split, clip.audio) for clip in clips] == [
        ("clotho/train/a &amp; b", "train", "development/a &amp; b.wav"),
        ("clotho/train/FREEZER_DOOR_OPEN_CLOSE", "train", f"development/{SHARED}"),
        ("clotho/val/blank", "val", "validation/ blank .wav"),
        ("clotho/val/KOOKABURRA..WAV", "val", "validation/KOOKABURRA..WAV.wav"),
        ("clotho/val/FREEZER_DOOR_OPEN_CLOSE", "val", f"validation/{SHARED}"),
        ("clotho/test/plain", "test", "evaluation/plain.wav"),
        ("clotho/test/20061208.waves.02", "test", "evaluation/20061208.waves.02.wav"),
    ]
    assert {len(clip.captions) for clip in clips} == {5}
    assert clips[0].captions[4].text == "Sentence 5 of it."
    assert clips[0].source == "clotho/train/a &amp; b"


@pytest.mark.parametrize(
    ("table", "folder", "split"),
    [
        ("train.csv", "train", "train"),
        ("dev.csv", "dev", "train"),
        ("clotho_captions_development.csv", "development-training", "train"),
        ("val.csv", "val", "val"),
        ("clotho_captions_validation.csv", "development-validation", "val"),
        ("test.csv", "test", "test"),
        ("eval.csv", "eval", "test"),
        ("clotho_captions_evaluation.csv", "development-testing", "test"),
    ],
)
def test_every_naming_scheme_of_the_splits_is_known(tmp_path: Path, table: str, folder: str, split: str) -> None:
    (tmp_path / table).write_text(HEADER + row("x.wav"), encoding="utf-8")
    touch(tmp_path / "audio" / folder / "x.wav")
    clips, _, description = read(tmp_path)
    assert [(clip.split, clip.audio) for clip in clips] == [(split, f"audio/{folder}/x.wav")]
    assert list(description.official) == [split]


def test_tables_and_audio_may_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/clotho_captions_evaluation.csv").write_text(HEADER + row("x.wav"), encoding="utf-8")
    touch(tmp_path / "audio/evaluation/x.wav")
    clips, _, _ = read(tmp_path)
    assert clips[0].audio == "audio/evaluation/x.wav"


def test_a_single_table_can_be_the_source(tmp_path: Path) -> None:
    clips, _, description = read(corpus(tmp_path) / "clotho_captions_evaluation.csv", audio_dir=tmp_path / "evaluation")
    assert [clip.audio for clip in clips] == ["plain.wav", "20061208.waves.02.wav"]
    assert description.official == {"test": 1045}


@pytest.mark.parametrize("on_disk", ["a & b.wav", "a &amp; b.wav", "a &amp; b.flac"])
def test_audio_is_found_under_its_tidied_name(tmp_path: Path, on_disk: str) -> None:
    (tmp_path / "train.csv").write_text(HEADER + row("a &amp; b.wav"), encoding="utf-8")
    touch(tmp_path / "train" / on_disk)
    clips, _, _ = read(tmp_path)
    assert [clip.audio for clip in clips] == [f"train/{on_disk}"]


def test_audio_whose_blanks_were_stripped_is_found(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text(HEADER + row(" blank .wav"), encoding="utf-8")
    touch(tmp_path / "val/blank.wav")
    clips, _, _ = read(tmp_path)
    assert [clip.audio for clip in clips] == ["val/blank.wav"]


def test_a_name_in_two_splits_never_takes_the_audio_of_the_other(tmp_path: Path) -> None:
    (corpus(tmp_path) / "development" / SHARED).unlink()
    clips, rejections, _ = read(tmp_path)
    assert [(r.item, r.kind, r.split) for r in rejections] == [("clotho/train/FREEZER_DOOR_OPEN_CLOSE", "missing", "train")]
    assert f"validation/{SHARED}" in [clip.audio for clip in clips if clip.split == "val"]


def test_missing_audio_is_counted_with_its_split(tmp_path: Path) -> None:
    (corpus(tmp_path) / "evaluation/plain.wav").unlink()
    _, rejections, description = read(tmp_path)
    assert [(r.item, r.kind, r.split) for r in rejections] == [("clotho/test/plain", "missing", "test")]
    assert description.official == {"train": 3839, "val": 1045, "test": 1045}


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_metadata_give_sources_and_keywords_in_latin_1(tmp_path: Path, delimiter: str) -> None:
    cells = [
        ['"a &amp; b.wav"', '"café;street"', "123", "https://x/123", "[0, 441000]", "someone", "CC0"],
        [SHARED, "", "Not found", "NA", "", "", ""],
    ]
    lines = [META_HEADER.replace(",", delimiter), *(delimiter.join(c.replace(", ", " ") for c in line) for line in cells)]
    (corpus(tmp_path) / "clotho_metadata_development.csv").write_bytes("\r\n".join(lines).encode("latin-1"))
    clips, _, description = read(tmp_path)
    assert clips[0].source == "freesound/123"
    assert clips[0].extra == {
        "keywords": ["café", "street"],
        "sound_link": "https://x/123",
        "start_end_samples": "[0 441000]",
        "manufacturer": "someone",
        "license": "CC0",
    }
    assert (clips[1].source, clips[1].extra) == ("clotho/train/FREEZER_DOOR_OPEN_CLOSE", {})
    assert description.facts["without_sound_id"] == {"train": 1, "val": 3, "test": 2}


def test_metadata_rows_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    (corpus(tmp_path) / "clotho_metadata_evaluation.csv").write_text(META_HEADER + "\nplain.wav,only\n", encoding="utf-8")
    _, _, description = read(tmp_path)
    assert description.warnings[0].startswith("clotho_metadata_evaluation.csv: rows that cannot be read: 1, first: line 2")


def test_an_empty_caption_is_refused_and_the_clip_stays(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(HEADER + row("x.wav", "One.", " ", " Three. ", "Four.", "Five."), encoding="utf-8")
    touch(tmp_path / "x.wav")
    (clip,), (rejection,), _ = read(tmp_path)
    assert [caption.text for caption in clip.captions] == ["One.", "Three.", "Four.", "Five."]
    assert (rejection.item, rejection.check, rejection.kind) == ("clotho/test/x caption 2", "empty_caption", "bad")


def test_a_clip_without_any_caption_is_refused_once(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(HEADER + row("x.wav", "", "", "", "", ""), encoding="utf-8")
    touch(tmp_path / "x.wav")
    clips, (rejection,), _ = read(tmp_path)
    assert clips == []
    assert (rejection.item, rejection.check) == ("clotho/test/x", "empty_caption")


def test_rows_without_name_and_repeated_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(HEADER + row(" ") + row("x.wav") + row("x.wav") + "y.wav,one\n", encoding="utf-8")
    touch(tmp_path / "x.wav")
    clips, rejections, _ = read(tmp_path)
    assert len(clips) == 1
    assert [rejection.item for rejection in rejections] == ["test.csv line 2", "test.csv line 4", "test.csv line 5"]


def test_other_caption_files_are_not_confirmed_as_version_2_1(tmp_path: Path) -> None:
    _, _, description = read(corpus(tmp_path))
    assert description.facts["captions"] == "Clotho, not confirmed as 2.1"
    assert {file["split"] for file in description.facts["caption_files"].values()} == {"unknown"}


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_caption_file_is_recognised_whatever_its_line_ends(monkeypatch: pytest.MonkeyPatch, line_end: bytes) -> None:
    published = b"file_name,caption_1\r\nx.wav,One.\r\n"
    monkeypatch.setattr(_clotho_checks, "_CAPTION_MD5", {hashlib.md5(published).hexdigest(): "val"})
    found = _clotho_checks.caption_release("x.csv", published.replace(b"\r\n", line_end), "val")
    assert (found["split"], found["release"]) == ("val", "2.1")


def test_a_table_with_the_captions_of_another_split_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (corpus(tmp_path) / "clotho_captions_evaluation.csv").read_bytes()
    monkeypatch.setattr(_clotho_checks, "_CAPTION_MD5", {hashlib.md5(content).hexdigest(): "val"})
    _, _, description = read(tmp_path)
    assert description.warnings[0].startswith(
        "clotho_captions_evaluation.csv is read as test, but its content is the official val"
    )


def durations(split: str, count: int) -> list[float]:
    """So many durations with the published minimum, mean and maximum of a split."""
    published = _clotho_checks.PUBLISHED_DURATIONS[split]
    rest = (published.mean_s * count - published.min_s - published.max_s) / (count - 2)
    return [published.min_s, published.max_s] + [rest] * (count - 2)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_published_durations_fit_their_split(split: str) -> None:
    found, warning = _clotho_checks.check_durations(split, durations(split, _clotho_checks.OFFICIAL_CLIPS[split]))
    assert warning is None
    assert found is not None
    assert found["fits"] == split


@pytest.mark.parametrize(("named", "real", "official"), [("test", "val", "validation"), ("val", "test", "evaluation")])
def test_swapped_splits_are_named_by_their_durations(named: str, real: str, official: str) -> None:
    found, warning = _clotho_checks.check_durations(named, durations(real, 1045))
    assert found is not None
    assert found["fits"] == real
    assert warning is not None
    assert f"but they are those of {official}" in warning


def test_durations_of_no_split_are_warned_about() -> None:
    found, warning = _clotho_checks.check_durations("test", [10.0] * 1045)
    assert found is not None
    assert found["fits"] is None
    assert warning is not None
    assert "the audio may be cut or of another corpus" in warning


@pytest.mark.parametrize("count", [0, 1000, 1046])
def test_durations_of_a_partial_split_say_nothing(count: int) -> None:
    # 98 % of 1,045 are 1,024.1 clips.
    assert _clotho_checks.check_durations("test", [10.0] * count) == (None, None)


def test_describe_warns_about_swapped_durations(tmp_path: Path) -> None:
    recipe = registry.build("recipe", "clotho")
    (tmp_path / "test.csv").write_text(HEADER + row("x.wav"), encoding="utf-8")
    request = RecipeRequest(source=tmp_path, audio_dir=None, output_dir=tmp_path, seed=0, workers=1, reporter=SilentReporter())
    assert len(list(recipe.clips(request))) == 1
    clips = [Clip(id=str(k), audio="x", split="test", duration_s=s) for k, s in enumerate(durations("val", 1045))]
    description = recipe.describe(clips)
    assert any("swapped splits" in warning for warning in description.warnings)
    assert description.facts["durations_s"]["test"]["fits"] == "val"


def test_two_tables_of_one_split_are_refused(tmp_path: Path) -> None:
    (corpus(tmp_path) / "dev.csv").write_text(HEADER + row("x.wav"), encoding="utf-8")
    with pytest.raises(ManifestError, match="two caption tables of train found, expected one"):
        read(tmp_path)


def test_a_folder_without_caption_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no caption table of Clotho found, expected clotho_captions_development.csv"):
        read(tmp_path)


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("file_name,caption\nx.wav,One.\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="columns file_name, caption found, expected file_name, caption_1"):
        read(tmp_path)


def test_metadata_without_file_names_are_refused(tmp_path: Path) -> None:
    (corpus(tmp_path) / "clotho_metadata_evaluation.csv").write_text("name,keywords\nx,y\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="columns name, keywords found, expected file_name among them"):
        read(tmp_path)


def test_there_are_no_options() -> None:
    with pytest.raises(UnknownNameError, match="split"):
        registry.build("recipe", "clotho", {"split": "test"})


@pytest.mark.skipif("CLAPKIT_CAPTIONS" not in os.environ, reason="CLAPKIT_CAPTIONS does not name the folder with caption files")
def test_the_published_caption_files_parse_completely(tmp_path: Path) -> None:
    real = Path(os.environ["CLAPKIT_CAPTIONS"]) / "clotho"
    _, rejections, description = read(real)
    splits = [rejection.split for rejection in rejections if rejection.kind == "missing"]
    assert {split: splits.count(split) for split in set(splits)} == {"train": 3839, "val": 1045, "test": 1045}
    assert len(splits) == len(rejections)
    assert description.facts["captions"] == "Clotho 2.1"
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.csv").write_bytes((real / f"{name}.csv").read_bytes())
    for rejection in rejections:
        touch(tmp_path / rejection.item.partition("/")[2].partition("/")[0] / f"{rejection.item.split('/', 2)[2]}.wav")
    clips, rejections, _ = read(tmp_path)
    assert rejections == []
    assert len(clips) == 5929
    assert {len(clip.captions) for clip in clips} == {5}
    assert len({clip.audio for clip in clips}) == 5929
