import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes.audiocaps import NOT_IN_957
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/golden_metrics.json").read_text())
HEADER = "audiocap_id,youtube_id,start_time,caption\r\n"
TRAIN = HEADER + "7,1234567e890,10,A bell rings\r\n8,YQSuFyFm3Lc,230,A frog croaks\r\n"
TEST = HEADER + (
    '1,-abc_DEF012,30,A dog barks\r\n2,_zz9-YY0aaB,0,"Rain falls, then stops"\r\n'
    '3,-abc_DEF012,30,"Dogs bark, people talk"\r\n4,0UJtGcoPYa0,20,Caf\u00e9 noise\r\n5,_zz9-YY0aaB,0,Rain\r\n'
)
VAL = HEADER + "6,xC8kbrKJmco,5,A train passes\r\n9,aaaaaaaaaaa,0,Wind blows\r\n"


def corpus(folder: Path, audio: Sequence[str] = (), **lists: str) -> Path:
    """The three lists, and empty audio files."""
    for split, content in ({"train": TRAIN, "val": VAL, "test": TEST} if not lists else lists).items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.csv").write_bytes(content.encode())
    for name in audio:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


COMPLETE = (
    "train/Y1234567e890.wav",
    "train/YYQSuFyFm3Lc.wav",
    "val/xC8kbrKJmco_5.flac",
    "val/9.wav",
    "test/-abc_DEF012_30000.wav",
    "test/_zz9-YY0aaB_000000.mp3",
    "test/0UJtGcoPYa0.wav",
)


def run(
    source: Path, options: dict[str, Any] | None = None, audio_dir: Path | None = None
) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "audiocaps", options)
    request = RecipeRequest(source=source, audio_dir=audio_dir, output_dir=source, seed=0, workers=1, reporter=SilentReporter())
    items = list(recipe.clips(request))
    found = [item for item in items if isinstance(item, Clip)]
    return found, [item for item in items if isinstance(item, Rejection)], recipe.describe(found)


def test_rows_of_a_clip_are_joined_in_the_order_of_the_file(tmp_path: Path) -> None:
    clips, rejections, _ = run(corpus(tmp_path, COMPLETE))
    assert not rejections
    assert [clip.id for clip in clips if clip.split == "test"] == [
        "audiocaps/test/-abc_DEF012_30",
        "audiocaps/test/_zz9-YY0aaB_0",
        "audiocaps/test/0UJtGcoPYa0_20",
    ]
    assert next(clip for clip in clips if clip.split == "test") == Clip(
        id="audiocaps/test/-abc_DEF012_30",
        audio="test/-abc_DEF012_30000.wav",
        captions=(Caption("A dog barks"), Caption("Dogs bark, people talk")),
        split="test",
        source="youtube/-abc_DEF012",
        extra={"audiocap_ids": ["1", "3"], "video_start_s": 30},
    )


def test_the_golden_list_is_read_as_expected(tmp_path: Path) -> None:
    (case,) = [case for case in GOLDEN if case["kind"] == "csv_parse" and "audiocap_id" in case["text"]]
    keys = [clip["key"] for clip in case["expected"]["clips"]]
    clips, _, _ = run(corpus(tmp_path, [f"{key}.wav" for key in keys], test=case["text"]))
    assert sum(len(clip.extra["audiocap_ids"]) for clip in clips) == case["expected"]["n_rows"]
    assert [
        {"key": clip.id.removeprefix("audiocaps/test/"), "captions": [caption.text for caption in clip.captions]}
        for clip in clips
    ] == case["expected"]["clips"]


@pytest.mark.parametrize(
    "name",
    [
        "Y-abc_DEF012.wav",
        "-abc_DEF012_30.flac",
        "Y-abc_DEF012_30.wav",
        "1.wav",
        "3.wav",
        "-abc_DEF012.mp3",
        "-abc_DEF012_30000.wav",
        "-abc_DEF012_000030.wav",
        "audio_32000Hz/test/-abc_DEF012_30.flac",
    ],
)
def test_every_naming_convention_is_found(tmp_path: Path, name: str) -> None:
    clips, rejections, _ = run(corpus(tmp_path, [name], test=TEST))
    assert [(clip.id, clip.audio) for clip in clips] == [("audiocaps/test/-abc_DEF012_30", name)]
    assert [item.item for item in rejections] == ["audiocaps/test/_zz9-YY0aaB_0", "audiocaps/test/0UJtGcoPYa0_20"]


def test_missing_audio_is_counted_with_its_split(tmp_path: Path) -> None:
    clips, rejections, _ = run(corpus(tmp_path))
    assert not clips
    assert Counter((item.kind, item.split) for item in rejections) == {
        ("missing", "train"): 2,
        ("missing", "val"): 2,
        ("missing", "test"): 3,
    }
    assert rejections[1].reason.startswith("no audio YQSuFyFm3Lc_230 or YYQSuFyFm3Lc_230 or YYQSuFyFm3Lc below ")


def test_one_video_with_two_clips_shares_no_name_without_start(tmp_path: Path) -> None:
    rows = HEADER + "1,aaaaaaaaaaa,0,One\r\n2,aaaaaaaaaaa,10,Two\r\n"
    clips, rejections, _ = run(corpus(tmp_path, ["aaaaaaaaaaa.wav", "aaaaaaaaaaa_10.wav"], test=rows))
    assert [clip.audio for clip in clips] == ["aaaaaaaaaaa_10.wav"]
    assert [(item.item, item.kind) for item in rejections] == [("audiocaps/test/aaaaaaaaaaa_0", "missing")]


def test_the_957_clips_leave_out_the_others_and_count_them(tmp_path: Path) -> None:
    clips, rejections, description = run(corpus(tmp_path, COMPLETE), {"clips": "957"})
    assert [(item.item, item.kind, item.split) for item in rejections] == [
        ("audiocaps/val/xC8kbrKJmco_5", "excluded", "val"),
        ("audiocaps/test/0UJtGcoPYa0_20", "excluded", "test"),
    ]
    assert Counter(clip.split for clip in clips) == {"train": 2, "val": 1, "test": 2}
    assert description.official == {"train": 49_838, "val": 494, "test": 957}
    assert not description.warnings
    assert (len(NOT_IN_957["test"]), len(NOT_IN_957["val"])) == (18, 1)


def test_the_official_clips_come_with_a_warning_that_papers_use_fewer(tmp_path: Path) -> None:
    clips, _, description = run(corpus(tmp_path, COMPLETE))
    assert description.official == {"train": 49_838, "val": 495, "test": 975}
    assert description.warnings == [
        "test holds 1 of the 18 clips that nearly all papers, which report 957, do without; "
        "prepare with -O clips=957 to compare"
    ]
    names = "-abc_DEF012_30\n0UJtGcoPYa0_20\n_zz9-YY0aaB_0"
    assert description.facts["clip_ids_sha256"]["test"] == hashlib.sha256(names.encode()).hexdigest()
    assert description.facts["num_clips"] == {"train": 2, "val": 2, "test": 3}
    assert description.facts["clips"] == "official"
    assert len(clips) == 7


def test_a_partial_copy_without_the_18_clips_is_not_sent_to_the_957(tmp_path: Path) -> None:
    audio = [name for name in COMPLETE if "0UJtGcoPYa0" not in name]
    assert len(audio) < len(COMPLETE)
    assert run(corpus(tmp_path, audio))[2].warnings == []


def rows(ids: Sequence[str], caption: str = "A dog") -> str:
    return HEADER + "".join(f"{number},{id},0,{caption}\r\n" for number, id in enumerate(ids))


@pytest.mark.parametrize(
    ("ids", "test_set", "num_warnings"),
    [
        ([*NOT_IN_957["test"], *(f"{i:011d}" for i in range(957))], "975", 1),
        ([f"{i:011d}" for i in range(957)], "957", 0),
        ([*NOT_IN_957["test"], *(f"{i:011d}" for i in range(939))], "other (957)", 1),
        ([f"{i:011d}" for i in range(913)], "other (913)", 0),
    ],
)
def test_the_test_set_in_use_is_named(tmp_path: Path, ids: list[str], test_set: str, num_warnings: int) -> None:
    _, _, description = run(corpus(tmp_path, [f"{id}.wav" for id in ids], test=rows(ids)))
    assert description.facts["test_set"] == test_set
    assert len(description.warnings) == num_warnings


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["A dog"] * 99 + ["a dog"], "AudioCaps v1"),
        (["a dog"] * 99 + ["A dog"], "AudioCaps 2.0"),
        (["a dog"] * 100, "AudioCaps of unknown version"),  # 2.0, or a version 1 in lower case
        (["a dog", "A dog"], "AudioCaps of unknown version"),
        (["\u72ac\u304c\u5420\u3048\u308b", "9 dogs"], "AudioCaps of unknown version"),
    ],
)
def test_the_version_is_told_by_the_case_of_the_captions(tmp_path: Path, captions: list[str], expected: str) -> None:
    content = HEADER + "".join(f"{k},aaaaaaaaaaa,0,{caption}\r\n" for k, caption in enumerate(captions))
    _, _, description = run(corpus(tmp_path, val=content))
    assert description.facts["captions"] == expected
    assert not description.warnings


def test_the_version_of_train_is_told_by_its_rows(tmp_path: Path) -> None:
    _, _, description = run(corpus(tmp_path, train=HEADER + "1,aaaaaaaaaaa,0,a dog\n" * 49_838))
    assert description.facts["captions"] == "AudioCaps v1"
    assert description.official == {"train": 49_838}


def test_lists_of_two_releases_are_warned_of_and_train_of_the_second_has_no_count(tmp_path: Path) -> None:
    lowered = HEADER + "1,aaaaaaaaaaa,0,A dog\r\n" + "2,aaaaaaaaaaa,0,a dog\r\n" * 20
    _, _, description = run(corpus(tmp_path, train=lowered, val=VAL))
    assert description.facts["captions"] == "AudioCaps train 2.0, val v1"
    assert description.warnings == [
        "the lists are of several versions of AudioCaps (AudioCaps train 2.0, val v1): take all from one release"
    ]
    assert description.official == {"val": 495}


def test_an_empty_caption_is_rejected_and_its_clip_stays(tmp_path: Path) -> None:
    content = HEADER + "1,aaaaaaaaaaa,0, A dog \r\n2,aaaaaaaaaaa,0, \r\n3,bbbbbbbbbbb,0,\r\n"
    clips, rejections, _ = run(corpus(tmp_path, ["aaaaaaaaaaa.wav", "bbbbbbbbbbb.wav"], test=content))
    assert [clip.captions for clip in clips] == [(Caption("A dog"),)]
    assert [(item.item, item.check, item.kind) for item in rejections] == [
        ("audiocaps/test/aaaaaaaaaaa_0 caption 2", "empty_caption", "bad"),
        ("audiocaps/test/bbbbbbbbbbb_0 caption 1", "empty_caption", "bad"),
        ("audiocaps/test/bbbbbbbbbbb_0", "empty_caption", "bad"),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,1234567890,0,x", "youtube_id '1234567890', expected 11 letters"),
        ("1,#NAME?,0,x", "youtube_id '#NAME\\?', expected 11 letters"),
        ("1,aaaaaaaaaaa,soon,x", "start_time 'soon', expected whole seconds"),
        ("1,aaaaaaaaaaa,-1,x", "start_time '-1', expected whole seconds"),
        ("1,aaaaaaaaaaa,0,x, y", "5 cells found, 4 expected"),
    ],
)
def test_rows_that_cannot_be_used_are_rejected_with_their_line(tmp_path: Path, row: str, reason: str) -> None:
    clips, (rejection, *_), _ = run(corpus(tmp_path, ["bbbbbbbbbbb.wav"], test=f"{HEADER}{row}\r\n2,bbbbbbbbbbb,0,y\r\n"))
    assert [clip.extra["audiocap_ids"] for clip in clips] == [["2"]]
    assert (rejection.item, rejection.kind, rejection.split) == ("test.csv line 2", "bad", "test")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(rejection.reason)


def test_translated_lists_name_their_language(tmp_path: Path) -> None:
    content = HEADER + "1,aaaaaaaaaaa,0,\u72ac\u304c\u5420\u3048\u308b\r\n"
    clips, _, _ = run(corpus(tmp_path, ["aaaaaaaaaaa.wav"], test=content), {"language": "ja"})
    assert clips[0].captions == (Caption("\u72ac\u304c\u5420\u3048\u308b", "ja"),)


@pytest.mark.parametrize("place", ["dataset", "csv_files_v1"])
def test_lists_may_lie_one_folder_below_and_audio_elsewhere(tmp_path: Path, place: str) -> None:
    corpus(tmp_path / "lists" / place, val=VAL)
    corpus(tmp_path / "lists", audiocaps_test=TEST)
    corpus(tmp_path / "sound", ["x/Yaaaaaaaaaaa.wav"], notes="")
    clips, rejections, _ = run(tmp_path / "lists", audio_dir=tmp_path / "sound")
    assert [(clip.id, clip.audio) for clip in clips] == [("audiocaps/val/aaaaaaaaaaa_0", "x/Yaaaaaaaaaaa.wav")]
    assert len(rejections) == 4


@pytest.mark.parametrize(
    ("name", "split"),
    [("audiocaps_test_957.csv", "test"), ("Validation.csv", "val"), ("captions.csv", None), ("train_and_test.csv", None)],
)
def test_one_list_takes_its_split_from_its_name(tmp_path: Path, name: str, split: str | None) -> None:
    corpus(tmp_path, ["aaaaaaaaaaa.wav", "xC8kbrKJmco.wav"], val=VAL)
    (tmp_path / "val.csv").rename(tmp_path / name)
    clips, _, description = run(tmp_path / name)
    assert [clip.split for clip in clips] == [split, split]
    assert clips[1].id == ("audiocaps/" + (f"{split}/" if split else "") + "aaaaaaaaaaa_0")
    assert description.facts["num_clips"] == {split or "all": 2}
    assert any("says no split" in warning for warning in description.warnings) == (split is None)


def test_what_is_no_audiocaps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no list of AudioCaps found, expected train.csv, val.csv or test.csv"):
        run(tmp_path)
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(ManifestError, match="is no CSV file, expected a list such as test.csv"):
        run(tmp_path / "test.json")
    corpus(tmp_path, test="file_name,caption\nx,y\n")
    with pytest.raises(
        ManifestError, match="no column 'audiocap_id', columns found: file_name, caption; expected audiocap_id,"
    ):
        run(tmp_path)
    corpus(tmp_path / "dataset", test=TEST)
    with pytest.raises(ManifestError, match=r"two lists of test, test.csv and dataset/test.csv, expected one"):
        run(tmp_path)
    with pytest.raises(ConfigError, match="clips=883: expected one of official, 957"):
        run(tmp_path, {"clips": "883"})


REAL = pytest.mark.skipif("CLAPKIT_CAPTIONS" not in os.environ, reason="set CLAPKIT_CAPTIONS to the folder of real lists")


def real(name: str) -> Path:
    return Path(os.environ["CLAPKIT_CAPTIONS"]) / name


@REAL
@pytest.mark.slow
def test_the_real_lists_of_version_1_have_their_clips() -> None:
    _, rejections, description = run(real("audiocaps"))
    assert Counter((item.kind, item.split) for item in rejections) == {
        ("missing", "train"): 49_838,
        ("missing", "val"): 495,
        ("missing", "test"): 975,
    }
    assert description.facts["captions"] == "AudioCaps v1"


@REAL
def test_the_real_957_clips_are_those_of_the_list_that_papers_use(tmp_path: Path) -> None:
    with (real("audiocaps") / "test.csv").open(encoding="utf-8", newline="") as file:
        ids = {row["youtube_id"] for row in csv.DictReader(file)}
    audio = corpus(tmp_path, [f"Y{id}.wav" for id in ids], notes="")
    clips, rejections, description = run(real("audiocaps") / "test.csv", {"clips": "957"}, audio)
    assert (len(clips), sum(len(clip.captions) for clip in clips)) == (957, 4785)
    assert Counter(item.kind for item in rejections) == {"excluded": 18}
    assert description.facts["test_set"] == "957"
    clips, _, description = run(real("audiocaps") / "test.csv", None, audio)
    assert (len(clips), sum(len(clip.captions) for clip in clips)) == (975, 4875)
    assert description.facts["test_set"] == "975"


@REAL
def test_the_real_lists_of_version_2_are_told_from_the_first() -> None:
    _, rejections, description = run(real("audiocaps2"))
    assert Counter((item.kind, item.split) for item in rejections) == {("missing", "val"): 495, ("missing", "test"): 975}
    assert description.facts["captions"] == "AudioCaps 2.0"
