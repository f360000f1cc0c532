from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

COMMENTS = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=4\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
CLASSES = (
    'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
    '2,/t/dd00088,"Police car (siren)"\n3,/m/068hy,"Domestic animals, pets"\n'
)
LISTS = {
    "balanced_train_segments.csv": COMMENTS
    + '--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/09x0r"\n1234567e890, 30.000, 40.000, "/t/dd00088"\n',
    "unbalanced_train_segments.csv": COMMENTS + '_zz9-YY0aaB, 5.000, 15.000, "/m/05zppz"\n',
    "eval_segments.csv": COMMENTS + 'YQSuFyFm3Lc, 230.000, 240.000, "/m/09x0r,/m/05zppz,/m/09x0r"\n',
    "class_labels_indices.csv": CLASSES,
}
STRONG = {
    "audioset_train_strong.tsv": "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    "b0RFKhbpFJA_30000\t0.0\t10.0\t/m/09x0r\nb0RFKhbpFJA_30000\t1.5\t2.25\t/m/0zzz\nb0RFKhbpFJA_30000\t3.0\t4.0\t/m/09x0r\n",
    "audioset_eval_strong.tsv": "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\nabcdefg_123_500\t0.1\t0.2\t/m/0zzz\n",
    "mid_to_display_name.tsv": "/m/09x0r\tSpeech\n/m/0zzz\tClick, clack\n",
}
COMPLETE = ("balanced_train/Y--4gqARaEJE.wav", "1234567e890_30000.flac", "_zz9-YY0aaB_5_15.wav", "eval/YYQSuFyFm3Lc.wav")


def corpus(folder: Path, audio: Sequence[str] = (), lists: dict[str, str] = LISTS, **changes: str) -> Path:
    for name, content in (lists | {f"{stem}.csv": text for stem, text in changes.items()}).items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    for name in audio:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def run(source: Path, options: dict[str, Any] | None = None) -> tuple[list[Clip], list[Rejection], CorpusDescription]:
    recipe = registry.build("recipe", "audioset", options)
    request = RecipeRequest(source=source, audio_dir=None, output_dir=source, seed=0, workers=1, reporter=SilentReporter())
    items = list(recipe.clips(request))
    found = [item for item in items if isinstance(item, Clip)]
    return found, [item for item in items if isinstance(item, Rejection)], recipe.describe(found)


def test_segments_become_clips_with_names_for_labels(tmp_path: Path) -> None:
    clips, rejections, description = run(corpus(tmp_path, COMPLETE), {"subset": "all"})
    assert not rejections
    assert [clip.audio for clip in clips] == list(COMPLETE)
    assert clips[0] == Clip(
        id="audioset/--4gqARaEJE_0",
        audio="balanced_train/Y--4gqARaEJE.wav",
        labels=("Domestic animals, pets", "Speech"),
        split="train",
        source="youtube/--4gqARaEJE",
        extra={"video_start_s": 0.0, "video_end_s": 10.0},
    )
    assert [clip.labels for clip in clips[1:]] == [
        ("Police car (siren)",),
        ("Male speech, man speaking",),
        ("Speech", "Male speech, man speaking"),
    ]
    assert [clip.split for clip in clips] == ["train", "train", "train", "test"]
    assert description.official == {"train": 22_160 + 2_041_789, "test": 20_371}
    assert description.facts["num_classes"] == 4
    assert description.facts["class_names"] == "1"


@pytest.mark.parametrize(
    ("options", "ids", "official"),
    [
        (None, ["--4gqARaEJE_0", "1234567e890_30", "YQSuFyFm3Lc_230"], {"train": 22_160, "test": 20_371}),
        ({"subset": "unbalanced"}, ["_zz9-YY0aaB_5", "YQSuFyFm3Lc_230"], {"train": 2_041_789, "test": 20_371}),
    ],
)
def test_a_subset_names_the_training_part(
    tmp_path: Path, options: dict[str, Any] | None, ids: list[str], official: dict[str, int]
) -> None:
    clips, _, description = run(corpus(tmp_path, COMPLETE), options)
    assert [clip.id.removeprefix("audioset/") for clip in clips] == ids
    assert description.official == official


def test_one_list_is_a_source_with_the_classes_beside_it(tmp_path: Path) -> None:
    corpus(tmp_path, COMPLETE)
    clips, _, description = run(tmp_path / "eval_segments.csv")
    assert [(clip.id, clip.split) for clip in clips] == [("audioset/YQSuFyFm3Lc_230", "test")]
    assert description.facts["lists"] == ["eval_segments.csv"]
    with pytest.raises(ConfigError, match="option subset=all: the source is one list, eval_segments.csv; leave it out"):
        run(tmp_path / "eval_segments.csv", {"subset": "all"})


def test_strong_labels_are_events_of_segments_counted_in_milliseconds(tmp_path: Path) -> None:
    lists = STRONG | {"class_labels_indices.csv": CLASSES}
    corpus(tmp_path, ["b0RFKhbpFJA_30000.wav", "abcdefg_123_500.wav"], lists)
    clips, rejections, description = run(tmp_path, {"subset": "strong"})
    assert not rejections
    assert clips[0] == Clip(
        id="audioset/b0RFKhbpFJA_30",
        audio="b0RFKhbpFJA_30000.wav",
        labels=("Speech", "Click, clack"),
        split="train",
        source="youtube/b0RFKhbpFJA",
        extra={
            "video_start_s": 30.0,
            "events": [[0.0, 10.0, "Speech"], [1.5, 2.25, "Click, clack"], [3.0, 4.0, "Speech"]],
        },
    )
    assert (clips[1].id, clips[1].split, clips[1].source) == ("audioset/abcdefg_123_0.5", "test", "youtube/abcdefg_123")
    assert description.official == {"train": 103_463, "test": 16_996}


def test_strong_rows_that_cannot_be_used_are_rejected(tmp_path: Path) -> None:
    header = "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
    rows = "b0RFKhbpFJA\t0\t1\t/m/09x0r\nb0RFKhbpFJA_0\t1\t0\t/m/09x0r\nb0RFKhbpFJA_0\t0\t1\t/m/none\nb0RFKhbpFJA_0\t0\n"
    corpus(tmp_path, [], STRONG | {"audioset_train_strong.tsv": header + rows})
    _, rejections, _ = run(tmp_path / "audioset_train_strong.tsv")
    assert [item.item for item in rejections] == [f"audioset_train_strong.tsv line {line}" for line in (2, 3, 4, 5)]
    for item, reason in zip(
        rejections, ["expected id_milliseconds", "span from 1.0 s", "'/m/none' has no name", "2 cells found"], strict=True
    ):
        assert reason in item.reason


def test_missing_clips_are_counted_with_their_split(tmp_path: Path) -> None:
    clips, rejections, _ = run(corpus(tmp_path), {"subset": "all"})
    assert not clips
    assert Counter((item.kind, item.split) for item in rejections) == {("missing", "train"): 3, ("missing", "test"): 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('short, 0.000, 10.000, "/m/09x0r"', "id 'short', expected 11 letters"),
        ('aaaaaaaaaaa, 10.000, 10.000, "/m/09x0r"', "span from 10.0 s to 10.0 s"),
        ('aaaaaaaaaaa, soon, 10.000, "/m/09x0r"', "start_seconds 'soon', expected seconds"),
        ('aaaaaaaaaaa, 0.000, 10.000, "/m/none"', "class '/m/none' has no name, expected it in class_labels_indices.csv"),
        ('aaaaaaaaaaa, 0.000, 10.000, ""', "class '' has no name"),
        ("aaaaaaaaaaa, 0.000, 10.000, /m/09x0r,/m/068hy", "5 cells found, 4 expected"),
        ('YQSuFyFm3Lc, 230.000, 240.000, "/m/09x0r"', "YQSuFyFm3Lc_230 is listed on line 4 already"),
    ],
)
def test_rows_that_cannot_be_used_are_rejected_with_their_line(tmp_path: Path, row: str, reason: str) -> None:
    corpus(tmp_path, COMPLETE, eval_segments=LISTS["eval_segments.csv"] + row + "\n")
    clips, (rejection,), _ = run(tmp_path / "eval_segments.csv")
    assert len(clips) == 1
    assert (rejection.item, rejection.kind) == ("eval_segments.csv line 5", "bad")
    assert reason in rejection.reason


def test_a_clip_in_two_lists_is_taken_once_and_said(tmp_path: Path) -> None:
    corpus(tmp_path, COMPLETE, unbalanced_train_segments=LISTS["balanced_train_segments.csv"])
    clips, rejections, _ = run(tmp_path, {"subset": "all"})
    assert len(clips) == 3
    assert [item.item for item in rejections] == [
        "unbalanced_train_segments.csv --4gqARaEJE_0",
        "unbalanced_train_segments.csv 1234567e890_30",
    ]
    assert "is listed in balanced_train_segments.csv already" in rejections[0].reason


def test_what_is_no_audioset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError, match="no list of AudioSet found, expected balanced_train_segments.csv or eval_segments.csv"
    ):
        run(tmp_path)
    lists = {name: text for name, text in LISTS.items() if name != "class_labels_indices.csv"}
    with pytest.raises(ManifestError, match="no names of the classes found, expected class_labels_indices.csv or mid_to"):
        run(corpus(tmp_path, [], lists))
    (tmp_path / "other.csv").write_text("x")
    with pytest.raises(ManifestError, match="other.csv: is no list of AudioSet, expected one of balanced_train_segments.csv"):
        run(tmp_path / "other.csv")
    with pytest.raises(ManifestError, match="no column 'mid', columns found: index, name"):
        run(corpus(tmp_path, class_labels_indices="index,name\n0,Speech\n"))
    with pytest.raises(ManifestError, match="class_labels_indices.csv line 2: 4 cells found, 3 expected"):
        run(corpus(tmp_path, class_labels_indices="index,mid,display_name\n0,/m/1,Male speech, man\n"))
    with pytest.raises(ConfigError, match="subset=weak: expected one of balanced, unbalanced, all, strong"):
        run(tmp_path, {"subset": "weak"})
